"""How much time and memory do the commands that read runs take, and how often do they open each file?

The runs are made first: lm-eval with the scripted engine on gsm8k with generated questions, with samples and traces.
The first has k=5, layers=2. The second and all further ones have k=3, layers=1 and a seed of their own. Each command is
then a process of its own, in turns. An audit hook counts how often a command opens each file of samples and traces.

``--beside`` names the checkout of an earlier commit. That commit makes the runs, and its commands read them in the same
turns. ``equal_output`` says whether both sides printed and wrote the same bytes. A command that the other commit does
not have is measured on one side.

Usage: python benchmarks/reading.py [--count 1319] [--runs 2] [--turns 3] [--beside FOLDER] [--only COMMAND...]
           [--out benchmarks/results]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from common import add_turns, parser, write
from memory import write_questions

ROOT = Path(__file__).resolve().parent.parent
# k and layers of the first two runs; the others are as the second.
POINTS = ((5, 2), (3, 1))
# The measured process. It imports nothing else, so that each checkout pays for its own imports.
CHILD = """
import json, sys, time
opened = {}

def count(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".jsonl"):
        opened[str(arguments[0])] = opened.get(str(arguments[0]), 0) + 1

sys.addaudithook(count)
started = time.perf_counter()
from lm_eval_aft.cli import aft
code = aft.main(sys.argv[1:], standalone_mode=False)
figures = {
    "cpu_s": time.process_time(),
    "wall_s": time.perf_counter() - started,
    # A child inherits its parent's peak in ru_maxrss, and not here.
    "peak_mb": next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024,
    "opened": max(opened.values(), default=0),
}
print(json.dumps(figures), file=sys.stderr)
sys.exit(code)
"""


@dataclass(frozen=True)
class Reading:
    """What one process of a command took.

    Attributes:
        cpu_s: Processor time, user and system.
        wall_s: Time that passed.
        peak_mb: Peak memory (MB).
        opened: The highest number of times that one file of samples or traces was opened.
        output: Digest of what the command printed and wrote.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float
    opened: int
    output: str


def make_run(out: Path, questions: Path, k: int, layers: int, seed: int, checkout: Path) -> None:
    """Evaluate the scripted engine of a checkout, with samples and traces below ``out``."""
    model_args = {"engine": "scripted", "k": k, "layers": layers, "seed": seed, "record": str(out / "traces")}
    script = Path(__file__).with_name("reading_run.py")
    command = [sys.executable, str(script), str(out), str(questions), json.dumps(model_args)]
    subprocess.run(command, env=_environment(checkout), check=True, capture_output=True)


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout)}


def commands(runs: Sequence[Path], page: Path) -> dict[str, list[str]]:
    """The commands that are measured, by name."""
    folders = [str(run) for run in runs]
    return {
        "report": ["report", *folders],
        "report --html": ["report", *folders, "--html", str(page)],
        "compare": ["compare", *folders],
        "compare --strategies": ["compare", "--strategies", *folders],
        "diagnose": ["diagnose", folders[0]],
        "votes": ["votes", folders[0]],
        "plot": ["plot", *folders, "--png", str(page.parent)],
    }


def measure(words: Sequence[str], checkout: Path, page: Path) -> Reading | None:
    """Run a command of one checkout in a process of its own. Returns None if the checkout has no such command."""
    page.unlink(missing_ok=True)
    command = [sys.executable, "-c", CHILD, *words]
    done = subprocess.run(command, capture_output=True, env=_environment(checkout), check=False)
    if b"No such option" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(f"aft {' '.join(words)} ended with {done.returncode}:\n{done.stderr.decode()[-2000:]}")
    written = page.read_bytes() if page.exists() else b""
    figures = json.loads(done.stderr.splitlines()[-1])
    return Reading(**figures, output=sha256(done.stdout + written).hexdigest())


def summary(readings: Sequence[Reading]) -> dict[str, Any]:
    """Medians of the turns, and each turn's processor time."""
    rows = [asdict(each) for each in readings]
    medians = {name: round(statistics.median(row[name] for row in rows), 2) for name in ("cpu_s", "wall_s", "peak_mb")}
    return {**medians, "cpu_s_of_turns": [round(each.cpu_s, 2) for each in readings], "opened": readings[0].opened}


def compare_checkouts(
    words: Mapping[str, Sequence[str]], beside: Path | None, turns: int, page: Path
) -> dict[str, Any]:
    """Measure each command in turns; every other turn has the reverse order of checkouts."""
    sides = {"here": ROOT, **({"beside": beside} if beside else {})}
    found: dict[str, dict[str, list[Reading]]] = {name: {side: [] for side in sides} for name in words}
    for turn in range(turns):
        for name, command in words.items():
            for side in list(sides)[:: -1 if turn % 2 else 1]:
                if reading := measure(command, sides[side], page):
                    found[name][side].append(reading)
    return {
        name: {
            **{side: summary(readings) for side, readings in of_command.items() if readings},
            "equal_output": len({each.output for readings in of_command.values() for each in readings}) == 1,
        }
        for name, of_command in found.items()
    }


def main() -> None:
    """Make the runs and measure."""
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=1319, help="Number of questions (default 1319).")
    options.add_argument("--runs", type=int, default=2, help="Number of runs (default 2).")
    options.add_argument("--beside", type=Path, help="Checkout of another commit, which is measured beside this one.")
    options.add_argument("--only", nargs="+", help="Commands to measure; by default all.")
    options.add_argument("--keep", type=Path, help="Folder for the runs. Runs that are there are read again.")
    add_turns(options)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        questions = folder / "questions.jsonl"
        runs = [folder / f"run-{number}" for number in range(args.runs)]
        write_questions(questions, args.count)
        for number, run in enumerate(runs):
            if not run.exists():
                make_run(run, questions, *POINTS[min(number, 1)], 1234 + number, args.beside or ROOT)
        page = Path(temporary, "page.html")
        words = {name: each for name, each in commands(runs, page).items() if not args.only or name in args.only}
        figures = {
            "questions": args.count,
            "runs": args.runs,
            "largest_mb": {
                kind: round(max((file.stat().st_size for file in folder.rglob(pattern)), default=0) / 1e6, 1)
                for kind, pattern in (("samples", "samples_*.jsonl"), ("traces", "traces/*.jsonl"))
            },
            "commands": compare_checkouts(words, args.beside, args.turns, page),
        }
    write("reading", figures, args.out)


if __name__ == "__main__":
    main()
