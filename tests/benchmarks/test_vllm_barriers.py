"""The comparison of barriers on vLLM's CPU build, with a tiny model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from helpers.paths import ROOT
from helpers.tiny_models import save_tiny_for_vllm

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here"),
]


def test_every_way_writes_the_same_tokens(tmp_path):
    tiny = save_tiny_for_vllm(tmp_path / "tiny")
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": f"What is {n} + {n}?"}) + "\n" for n in range(9)))
    words = ["--pretrained", tiny, "--questions", str(questions), "--engine", "vllm", "--dtype", "float32"]
    words += ["--count", "9", "--k", "2", "--layers", "2", "--max-tokens", "6", "--turns", "1", "--async-llm"]
    script = str(ROOT / "benchmarks" / "barriers.py")
    # A process of its own, because vLLM's engines live until their process ends.
    subprocess.run([sys.executable, script, *words, "--out", str(tmp_path)], check=True)
    (file,) = tmp_path.glob("barriers-*.json")
    ways = json.loads(file.read_text())["ways"]
    names = ["whole layers", "streaming", "batches of 8", "batches of 16", "AsyncLLM", "second engine"]
    assert list(ways) == names
    assert len({way["generated_tokens"] for way in ways.values()}) == 1
    assert ways["AsyncLLM"]["steps"] is None
