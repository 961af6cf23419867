"""The figure of docs/results.md: what each system gains over SFT greedy, against the tokens that it writes.

The script reads the figures that ``benchmarks/family_seeds.py`` wrote. Bars are its intervals.

Usage: python benchmarks/family_figure.py [--figures FILE] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "benchmarks" / "results" / "family-seeds.json"
# Name of each line, its colour and marker, and the systems along it.
LINES = {
    "AFT, k=5": ("#0969da", "o", ("AFT, layers=0", "AFT (5, 1)", "AFT (5, 2)", "AFT (5, 3)")),
    "SFT that aggregates, k=5": ("#9a6700", "s", ("SFT, greedy", "SFT + Agg (5, 1)", "SFT + Agg (5, 2)")),
    "SFT, majority vote": ("#59636e", "^", ("SFT, greedy", "SFT, majority of 5", "SFT, majority of 11")),
}


def points(rows: list[dict[str, Any]], systems: tuple[str, ...]) -> list[tuple[float, float, float, float]]:
    """Tokens a question, difference in points, and the lengths of its interval to both sides, of each system."""
    known = {row["system"]: row for row in rows}
    found = []
    for row in (known[name] for name in systems if name in known):
        difference, low, high = (100 * row.get(key, 0.0) for key in ("difference", "difference_low", "difference_high"))
        found.append((row["generated_tokens"], difference, difference - low, high - difference))
    return found


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Draw the lines that have points into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.axhline(0, color="#818b98", linewidth=0.8)
    for name, (colour, marker, systems) in LINES.items():
        found = points(rows, systems)
        if not found:
            continue
        tokens, gains, below, above = zip(*found, strict=True)
        axes.errorbar(tokens, gains, (below, above), color=colour, marker=marker, capsize=3, linewidth=1.5)
        axes.annotate(name, (tokens[-1], gains[-1]), (8, -3), textcoords="offset points", color=colour)
    axes.set_xlabel("generated tokens a question")
    axes.set_ylabel("points over SFT greedy")
    axes.set_xlim(0, 400)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=Path, default=FIGURES, help="JSON file of benchmarks/family_seeds.py")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures" / "family-tokens.png")
    arguments = parser.parse_args()
    draw(json.loads(arguments.figures.read_text(encoding="utf-8"))["rows"], arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
