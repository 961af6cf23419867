"""How much time does the start-up file add to every start of Python?

The script makes an empty virtual environment that sees this checkout. It measures ``python -c pass`` there with and
without the start-up file, in turns, so that other work on the machine slows both. It exits with 1 if the difference of
the medians is above the limit.

Usage: python benchmarks/startup.py [--runs 200]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MS = 2.0


@dataclass(frozen=True)
class Report:
    """Medians in milliseconds over ``runs`` starts with the file and ``runs`` without it."""

    python: str
    runs: int
    without_file_ms: float
    with_file_ms: float
    extra_ms: float
    limit_ms: float
    within_limit: bool


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and the path of its start-up file, which may be absent."""

    python: Path
    startup_file: Path

    def start(self, *, with_file: bool) -> float:
        """Start Python once. Returns the milliseconds until it ends."""
        if with_file:
            self.startup_file.write_bytes((ROOT / "startup" / self.startup_file.name).read_bytes())
        else:
            self.startup_file.unlink(missing_ok=True)
        started = time.perf_counter()
        subprocess.run([self.python, "-c", "pass"], check=True)
        return (time.perf_counter() - started) * 1000


def build(folder: Path) -> Environment:
    """Make the environment, with the checkout on its path as in an editable install."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    (site / "_lm_eval_aft.pth").write_text(f"{ROOT}\n")
    return Environment(python, site / "lm_eval_aft.pth")


def installs_the_hook(environment: Environment) -> bool:
    """Whether the start-up file works in the environment. A file that failed would seem fast."""
    environment.start(with_file=True)
    code = "import sys; print(any(type(finder).__name__ == 'PluginFinder' for finder in sys.meta_path))"
    done = subprocess.run([environment.python, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout == "True\n"


def measure(runs: int) -> Report:
    """Measure ``runs`` starts with the file and ``runs`` without it; every other pair has the reverse order."""
    with tempfile.TemporaryDirectory() as folder:
        environment = build(Path(folder))
        if not installs_the_hook(environment):
            sys.exit("the start-up file installed no import hook: is LM_EVAL_AFT_AUTOLOAD=0 set?")
        times: dict[bool, list[float]] = {True: [], False: []}
        for pair in range(runs):
            for with_file in (pair % 2 == 0, pair % 2 == 1):
                times[with_file].append(environment.start(with_file=with_file))
    without_file, with_file_ms = statistics.median(times[False]), statistics.median(times[True])
    extra = with_file_ms - without_file
    return Report(
        python=platform.python_version(),
        runs=runs,
        without_file_ms=round(without_file, 3),
        with_file_ms=round(with_file_ms, 3),
        extra_ms=round(extra, 3),
        limit_ms=LIMIT_MS,
        within_limit=extra <= LIMIT_MS,
    )


def main() -> None:
    """Measure and print the report. The exit code is 1 if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=200, help="Starts with the file and starts without it (default 200)."
    )
    report = measure(parser.parse_args().runs)
    print(json.dumps(asdict(report), indent=2))
    sys.exit(not report.within_limit)


if __name__ == "__main__":
    main()
