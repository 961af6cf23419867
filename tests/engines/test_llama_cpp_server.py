"""engine=api with llama.cpp's own server, which the example of docs/engines.md starts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from helpers.paths import ROOT
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.registry import load_engine

FILE = os.environ.get("AFT_TEST_GGUF", "")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed here"),
    pytest.mark.skipif(not FILE, reason="AFT_TEST_GGUF names no GGUF file of a chat model"),
]
PORT = 18189
SAMPLED = Sampling(0.7, 0.95, 0, 12)


@pytest.fixture(scope="module")
def engine():
    command = [sys.executable, ROOT / "docs" / "examples" / "llama_cpp_server.py", FILE, str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("listening on" in line for line in server.stdout)
            address = {"base_url": f"http://127.0.0.1:{PORT}/v1", "model": FILE}
            yield load_engine("api", address, HostArgs("auto", None, "cpu"))
        finally:
            server.kill()


def test_drafts_are_counted_and_a_seed_gives_its_text_again(engine):
    prompt = engine.renderer.encode(Chat((Message("user", "Name three animals."),)))
    requests = [Request(prompt, SAMPLED, seed) for seed in (1, 2, 3)]
    first, again = (
        [completion for _, completion in sorted(engine.generate(requests), key=lambda pair: pair[0])] for _ in "ab"
    )
    assert all(completion.text and 0 < completion.generated_tokens <= 12 for completion in first)
    assert len({completion.text for completion in first}) > 1
    assert [completion.text for completion in again] == [completion.text for completion in first]
