"""The figures of the bundled family in docs/figures, made from the results files of this folder.

    python benchmarks/figures.py

In the figures of costs, runs and votes are those of training seed 0 on 4,000 problems. The other baselines were run on
the first 1,000 problems. The figure of gains has the means of three training seeds; see ``family_figure.py``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import family_figure

from lm_eval_aft.analysis.frontier import Frontier, FrontierPoint, make_frontier
from lm_eval_aft.analysis.report.figures import draw_costs, draw_frontier
from lm_eval_aft.analysis.stats import Interval

RESULTS = Path(__file__).parent / "results"
RUNS, BASELINES = RESULTS / "family-aft_arith-seed0.json", RESULTS / "opponents-aft_arith-seed0.json"
FIGURES = Path(__file__).parent.parent / "docs" / "figures"
MODELS = {"SFT": "SFT", "AFT": "AFT", "SFT + Agg": "SFT that aggregates"}
# The systems of the second file that the first one lacks.
OTHERS = ("best of 10 by the reward model", "beam of 11", "refined 10 times")
SYSTEM = re.compile(r"(?P<model>SFT \+ Agg|SFT|AFT),? (?P<what>.*)")


def points(rows: list[dict[str, Any]], questions: int, note: str = "") -> Iterator[FrontierPoint]:
    """The point of each row of a results file; ``note`` is added to the names."""
    for row in rows:
        match = SYSTEM.fullmatch(row["system"])
        assert match, row["system"]
        what, drafts = match["what"], 0
        if what in ("greedy", "layers=0"):
            what = "single answer"
        elif setting := re.fullmatch(r"\((\d+), (\d+)\)", what):
            what = f"k={setting[1]}, layers={setting[2]}"
        elif vote := re.fullmatch(r"majority of (\d+)", what):
            what, drafts = f"vote of {vote[1]}", int(vote[1])
        score = Interval(row["accuracy"], row["low"], row["high"], 0.95, "wilson", questions)
        yield FrontierPoint(MODELS[match["model"]], row["system"], row["generated_tokens"], score, what + note, drafts)


def family() -> Frontier:
    """All points of the family that ships, at training seed 0."""
    runs = json.loads(RUNS.read_text(encoding="utf-8"))
    # The file also holds means over all subsets of drafts, whose numbers of texts are whole.
    whole = [row for row in runs["rows"] if isinstance(row["texts"], float)]
    baselines = json.loads(BASELINES.read_text(encoding="utf-8"))
    others = [row for row in baselines["opponents of AFT (5, 2)"] if row["system"].endswith(OTHERS)]
    drawn = [*points(whole, runs["questions"]), *points(others, baselines["questions"], " *")]
    return make_frontier("aft_arith", "accuracy", "tokens", True, drawn)


def main() -> None:
    """Draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the figures")
    out = parser.parse_args().out
    sizes = "bars are 95% intervals; n = 4,000, and 1,000 at a star"
    costs = draw_costs(family(), out / "cost-family.png", f"aft_arith, accuracy at equal tokens; {sizes}")
    best = draw_frontier(family(), out / "frontier-family.png", f"aft_arith, the best at each cost; {sizes}")
    gains = out / "family-tokens.png"
    family_figure.draw(json.loads(family_figure.FIGURES.read_text(encoding="utf-8"))["rows"], gains)
    for file in (*costs, *best, gains):
        print(file)


if __name__ == "__main__":
    main()
