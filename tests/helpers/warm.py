"""Programs in forks of one Python that has imported lm-eval, torch and our packages, which takes seconds in each start.

A test starts ``[*warm.command, "-m", "lm_eval", ...]`` where it would start ``[sys.executable, "-m", "lm_eval", ...]``.
That command is a small client. It hands its arguments, environment, folder and streams to the server, which forks, and
ends with the exit code of the fork. The fork runs the module, file or ``-c`` code as ``__main__``. Some variables of
the environment act at import and keep the server's value. A test of start-up, imports or signals needs a real start.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PRELOADED = (
    "lm_eval._cli",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "lm_eval_aft.cli.compare",
    "lm_eval_aft.cli.report",
    "lm_eval_aft.cli.sweep",
    "lm_eval_aft.engines.hf.engine",
    "lm_eval_aft.model",
    "torch.distributed.fsdp",
    "trainers.train",
    "trainers.fitting.loop",
    "transformers.models.llama.modeling_llama",
)
START_S = 120.0


class WarmPython:
    """The server, from the test's side.

    Attributes:
        command: Words that take the place of ``sys.executable``.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="warm"))
        address = str(self.folder / "socket")
        self.command = [sys.executable, "-I", "-S", __file__, "run", address]
        environment = {**os.environ, "HF_DATASETS_CACHE": str(self.folder / "datasets")}
        # A session of its own, so that everything that it started ends with it.
        self.server = subprocess.Popen(
            [sys.executable, __file__, "serve", address],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        while not (self.folder / "socket").exists():
            assert self.server.poll() is None, "the server did not start"
            assert time.monotonic() < deadline, "the server starts too slowly"
            time.sleep(0.02)

    def close(self) -> None:
        """End the server and everything that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def programs(self, folder: Path, *names: str) -> Path:
        """Write programs of these names that run in forks. Returns their folder, for PATH.

        Args:
            folder: Where to make the folder.
            *names: ``"python"``, or programs beside ``sys.executable``.
        """
        programs = folder / "programs"
        programs.mkdir()
        for name in names:
            target = [] if name == "python" else [str(Path(sys.executable).with_name(name))]
            words = " ".join(f"'{word}'" for word in [*self.command, *target])
            (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            (programs / name).chmod(0o755)
        return programs

    def ranks(
        self, words: Sequence[str], environment: dict[str, str] | None = None, count: int = 2
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in processes that find each other, as under torchrun.

        Args:
            words: Arguments of Python.
            environment: Further variables.
            count: Number of processes.

        Returns:
            What they wrote, and the exit code of the first that failed.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        common = {**os.environ, **address, **sizes, **(environment or {})}
        pipe = subprocess.PIPE
        started = [
            subprocess.Popen(
                [*self.command, *words],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=pipe,
                stderr=pipe,
                text=True,
            )
            for rank in range(count)
        ]
        written = [process.communicate(timeout=300) for process in started]
        code = next((process.returncode for process in started if process.returncode), 0)
        outputs = ("".join(texts) for texts in zip(*written, strict=True))
        return subprocess.CompletedProcess(words, code, *outputs)


def run_in_fork(address: str, words: Sequence[str]) -> int:
    """The client: let the server run a program on this process's streams. Returns its exit code."""
    request = {"words": list(words), "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        text = json.dumps(request).encode()
        sent = socket.send_fds(server, [text], [0, 1, 2])
        server.sendall(text[sent:])
        server.shutdown(socket.SHUT_WR)
        code = int(_received(server) or 1)
    if code < 0:
        # The program was killed, and this process ends in the same way.
        with suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def serve(address: str) -> None:
    """The server: import everything, then fork for each connection. Returns only in a fork, which runs a program."""
    import gc
    from importlib import import_module

    for name in PRELOADED:
        # Another version of lm-eval or torch may have other modules.
        with suppress(ImportError):
            import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address + ".new")
        listener.listen()
        # Clients wait for this name.
        os.rename(address + ".new", address)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    beginning, streams, _, _ = socket.recv_fds(connection, 65536, 3)
    request = json.loads(beginning + _received(connection))
    program = os.fork()
    if program:
        _, status = os.waitpid(program, 0)
        with suppress(OSError):
            connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    _become(**request)


def _become(words: list[str], environment: dict[str, str], folder: str) -> None:
    """Run a program as Python's own command line would have started it."""
    import runpy

    from lm_eval_aft import _autoload

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    kind, *rest = words
    module = kind == "-m"
    sys.argv = rest if module else [kind, *rest[1:]] if kind == "-c" else words
    sys.path[0] = folder if module else "" if kind == "-c" else os.path.dirname(os.path.abspath(kind))
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    if environment.get(_autoload.SWITCH) != "0":
        # At the import of lm_eval these arguments were not there yet.
        _autoload.ADDITIONS["lm_eval"](sys.modules["lm_eval"])
    if module:
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    action, place, *program = sys.argv[1:]
    if action == "serve":
        serve(place)
    else:
        sys.exit(run_in_fork(place, program))
