"""The tables of docs/reliability.md: what was injected, what it did, and what the messages say.

``python tests/faults/table.py [--share 1.0]`` runs the faults, counts the hostile inputs, and writes the tables.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench import CRASH, HUNG, Outcome

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
MARKS = "<!-- faults: made by tests/faults/table.py -->\n", "<!-- /faults -->\n"
COLUMNS = (
    *("fault", "injected", "survived", "exit codes", "tracebacks", "hangs", "key characters shown"),
    *("committed work lost", "finished, not committed"),
)
# Tests that inject faults themselves. Each case checks that nothing committed is lost.
SERVERS = {
    "test_a_server_that_begins_to_drip_or_flood[drip": "server drips",
    "test_a_server_that_begins_to_drip_or_flood[flood": "server floods",
    "test_a_filling_disk_keeps_every_paid_reply_that_fits": "disk full, engine=api",
}
HOSTILE = "hostile input (`tests/hostile`)"


def as_markdown(outcomes: Sequence[Outcome], more: Sequence[Sequence[object]] = ()) -> str:
    """Two tables: counts by fault, and messages by fault.

    Args:
        outcomes: All rounds.
        more: Further rows of the first table. What is not counted is empty or left out.
    """
    names = list(dict.fromkeys(outcome.fault for outcome in outcomes))
    by_fault = {name: [outcome for outcome in outcomes if outcome.fault == name] for name in names}
    rows = [_counts(name, rounds) for name, rounds in by_fault.items()]
    rows += [[*row, *[""] * (len(COLUMNS) - len(row))] for row in more]
    messages = [[name, _most_frequent(rounds)] for name, rounds in by_fault.items()]
    shown = [row for row in messages if row[1]]
    return f"{_table(COLUMNS, rows)}\n\n{_table(('fault', 'most frequent message'), shown)}"


def _counts(name: str, rounds: Sequence[Outcome]) -> list[object]:
    codes = ", ".join(str(code) for code in sorted({outcome.exit_code for outcome in rounds}))
    open_ends = [outcome.uncommitted for outcome in rounds if outcome.uncommitted is not None]
    return [
        name,
        len(rounds),
        sum(outcome.whole for outcome in rounds),
        codes,
        sum(outcome.tracebacks + (outcome.exit_code == CRASH) for outcome in rounds),
        sum(outcome.exit_code == HUNG for outcome in rounds),
        sum(outcome.key_characters for outcome in rounds),
        sum(outcome.again for outcome in rounds),
        sum(open_ends) if open_ends else "",
    ]


def _most_frequent(rounds: Sequence[Outcome]) -> str:
    messages = Counter(_without_details(outcome.message) for outcome in rounds if outcome.message)
    return messages.most_common(1)[0][0] if messages else ""


def _without_details(message: str) -> str:
    """A message with N for each number and PATH for each path."""
    paths = r"(?<!\w)(?:\w+://[\w.:-]+)?/[\w.-]+(?:/[\w.-]+)*"
    return re.sub(r"(?<!\w)\d[\d,]*", "N", re.sub(paths, "PATH", message)).replace("|", "/")


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def count_cases(folder: Path) -> Counter[str]:
    """Run the tests of servers, and count the cases by name.

    Raises:
        SystemExit: If a case fails. Its lines are shown.
    """
    report, path = folder / "cases.xml", "tests/faults/test_server_faults.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", f"--junitxml={report}"]
    if subprocess.run([*command, path], cwd=ROOT, check=False).returncode:
        sys.exit(f"{path}: a case failed, so no table is written")
    cases = ElementTree.parse(report).iter("testcase")
    return Counter(case.get("name", "") for case in cases if case.find("skipped") is None)


def rows_of_tests(folder: Path) -> list[list[object]]:
    """The rows of faults that tests inject themselves."""
    servers, rows = count_cases(folder), []
    for start, name in SERVERS.items():
        injected = sum(count for case, count in servers.items() if case.startswith(start))
        rows.append([name, injected, injected, "", "", "", "", 0])
    options = ["-q", "-p", "no:cacheprovider", "-m", "", "--collect-only"]
    collect = [sys.executable, "-m", "pytest", *options, "tests/hostile"]
    lines = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    cases = sum(line.startswith("tests/hostile/") and "::" in line for line in lines)
    return [*rows, [HOSTILE, cases, "all, or `.ci/run` fails"]]


def write(text: str, share: float) -> None:
    """Put the tables between their marks in docs/reliability.md."""
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
    part = f"`FAULT_SHARE={share:g} make reliability-table`, with {share:.0%} of the rounds"
    made = part if share != 1 else "`make reliability-table`"
    PAGE.write_text(f"{page[:start]}Made by {made}.\n\n{text}\n{page[end:]}", encoding="utf-8")


def main() -> None:
    """Run everything and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    share = float(os.environ.get("FAULT_SHARE", "1"))
    parser.add_argument("--share", type=float, default=share, help="Share of the rounds that are run.")
    share = parser.parse_args().share
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "FAULT_SHARE": str(share)}
    import inject

    from helpers.tiny_models import save_tiny

    with tempfile.TemporaryDirectory() as folder:
        outcomes = inject.run_all(save_tiny(Path(folder, "tiny")), Path(folder, "runs"), share)
        write(as_markdown(outcomes, rows_of_tests(Path(folder))), share)
    sys.exit(0 if all(outcome.whole for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
