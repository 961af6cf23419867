"""Faults of trainings. The units of work are steps, and those on disk are in whole checkpoints."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench import Bench, Fault, Outcome

# These are imported before the forks, because every training needs them.
import trainers.fitting.loop  # noqa: F401
from trainers.fitting.run import newest_checkpoint, step_of
from trainers.settings import TrainConfig
from trainers.train import run_training

STEPS = 8


class Trainings:
    """Trains a tiny model, with all its weights, for eight steps and a checkpoint at every second one."""

    def __init__(self, bench: Bench, model: str) -> None:
        self.bench, self.model = bench, model
        self.data = bench.work / "rows.jsonl"
        rows = ({"query": f"{n} + 1?", "drafts": [], "target": "", "sft_target": f"{n + 1}"} for n in range(8))
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        whole = bench.work / "whole-training"
        if bench.wait(bench.start(whole, self.job(whole))):
            raise RuntimeError(f"an undisturbed training failed: {bench.message(whole)}")
        self.expected = self.weights(whole)

    def job(self, folder: Path) -> Callable[[], object]:
        """A training in a folder."""
        settings = {"lora_rank": 0, "batch_size": 2, "epochs": 2, "log_every": 1, "save_every": 2, "device": "cpu"}
        config = TrainConfig(model=self.model, data=str(self.data), output=str(folder / "run"), **settings)
        return lambda: run_training("sft", config)

    def weights(self, folder: Path) -> bytes:
        """The weights of a finished training; none if it is not finished."""
        path = folder / "run" / "model.safetensors"
        return path.read_bytes() if path.is_file() else b""

    def kept(self, folder: Path) -> int:
        """The step of the newest whole checkpoint."""
        newest = newest_checkpoint(folder / "run")
        return step_of(newest) if newest else 0

    def outcome(self, fault: Fault, folder: Path, code: int) -> Outcome:
        """Repeat a training, and record the round."""
        kept, message = self.kept(folder), self.bench.message(folder)
        repeated = self.bench.wait(self.bench.start(folder, self.job(folder)))
        output = folder.with_suffix(".output").read_text()
        resumed = [int(step) for step in re.findall(r"resumes after checkpoint (\d+)", output)]
        finished = "nothing is left to train" in output
        again = 0 if finished else kept - (resumed[-1] if resumed else 0)
        whole = repeated == 0 and self.weights(folder) == self.expected
        known = self.bench.tracebacks(folder), self.bench.key_characters(folder)
        return Outcome(fault.name, fault.codes, code, message, STEPS, kept, again, None, whole, *known)

    def stopped(self, fault: Fault, folder: Path, draw: random.Random) -> Outcome:
        """Send SIGTERM at a random step."""
        pid, log, steps = self.bench.start(folder, self.job(folder)), folder / "run" / "log.jsonl", draw.randint(1, 4)
        self.bench.reach(pid, lambda: log.is_file() and log.read_text().count("\n") >= steps)
        time.sleep(draw.random() / 50)
        os.kill(pid, signal.SIGTERM)
        return self.outcome(fault, folder, self.bench.wait(pid))

    def full_disk(self, fault: Fault, folder: Path, draw: random.Random) -> Outcome | None:
        """Train on a disk that has room for some files only, and make it larger afterwards."""
        folder.mkdir()
        size = f"size={draw.randint(300, 900)}k"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True).returncode:
            return None
        try:
            code = self.bench.wait(self.bench.start(folder, self.job(folder)))
            subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
            return self.outcome(fault, folder, code)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)

    def two(self, fault: Fault, folder: Path, draw: random.Random) -> Outcome:
        """Start a second training in the folder while the first one is at work. The second one is refused."""
        first, second = folder, folder.with_name(f"{folder.name}-second")
        pid = self.bench.start(first, self.job(folder))
        self.bench.reach(pid, (folder / "run").is_dir)
        time.sleep(draw.random() / 2)
        code = self.bench.wait(self.bench.start(second, self.job(folder)))
        if self.bench.wait(pid):
            raise RuntimeError(f"the first of two trainings failed: {self.bench.message(first)}")
        first.with_suffix(".message").write_text(self.bench.message(second))
        return self.outcome(fault, folder, code)

    def faults(self) -> tuple[Fault, ...]:
        """All faults of trainings."""
        return (
            # On a busy machine a training may end before the signal comes.
            Fault("SIGTERM, training", 5, self.stopped, (0, 143)),
            Fault("disk full, training", 8, self.full_disk),
            Fault("two trainings, one folder", 4, self.two),
        )
