"""What the start-up file costs every start of Python: ``python benchmarks/startup.py [--runs N]`` prints JSON.

Makes an empty virtual environment that sees this checkout, and times ``python -c pass`` there with the start-up file
present and removed, in turns, so that a busy machine slows both alike. Exits 1 where the difference of the medians is
above the limit. Knows nothing of lm-eval. Run by hand and, with few runs, by tests/test_autoload.py.
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
    """Medians over ``runs`` starts of each kind."""

    python: str
    runs: int
    without_file_ms: float
    with_file_ms: float
    extra_ms: float
    limit_ms: float
    within_limit: bool


@dataclass(frozen=True)
class Environment:
    """A virtual environment and the place where its start-up file comes and goes."""

    python: Path
    startup_file: Path

    def start(self, *, with_file: bool) -> float:
        """Start Python once; return the milliseconds until it has ended."""
        if with_file:
            self.startup_file.write_bytes((ROOT / "startup" / self.startup_file.name).read_bytes())
        else:
            self.startup_file.unlink(missing_ok=True)
        begun = time.perf_counter()
        subprocess.run([self.python, "-c", "pass"], check=True)
        return (time.perf_counter() - begun) * 1000


def build(folder: Path) -> Environment:
    """Make the environment, with the checkout on its path as an editable install puts it there."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    (Path(found) / "_lm_eval_aft.pth").write_text(f"{ROOT}\n")
    return Environment(python, Path(found) / "lm_eval_aft.pth")


def opens_the_door(environment: Environment) -> bool:
    """Whether the start-up file does its work there: a file that failed would look cheap."""
    environment.start(with_file=True)
    ask = "import sys; print(any(type(finder).__name__ == 'Door' for finder in sys.meta_path))"
    done = subprocess.run([environment.python, "-c", ask], check=True, capture_output=True, text=True)
    return done.stdout == "True\n"


def measure(runs: int) -> Report:
    """Time ``runs`` starts of each kind, each pair in the other order than the pair before."""
    with tempfile.TemporaryDirectory() as folder:
        environment = build(Path(folder))
        if not opens_the_door(environment):
            sys.exit("the start-up file did not open the door: is LM_EVAL_AFT_AUTOLOAD=0 set?")
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
    """Measure, print, and say by the exit code whether the limit holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="starts of each kind (default 200)")
    report = measure(parser.parse_args().runs)
    print(json.dumps(asdict(report), indent=2))
    sys.exit(not report.within_limit)


if __name__ == "__main__":
    main()
