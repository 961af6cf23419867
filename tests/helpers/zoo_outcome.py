"""What the hf engine does with each architecture of the zoo, and the table of it in docs/engines.md.

``python tests/helpers/zoo_outcome.py`` runs the whole zoo and writes the table.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from transformers import GenerationConfig

from helpers import zoo
from helpers.tiny_models import tiny_tokenizer
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.records import Chat, Message, Prompt, Request, Sampling
from lm_eval_aft.engines.hf.look_ahead import Proposer
from lm_eval_aft.engines.registry import load_engine

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
MARKS = "<!-- zoo: made by tests/helpers/zoo_outcome.py -->\n", "<!-- /zoo -->\n"
STOPS = [3, *range(100, 112)]
STEPS = 9
# Shorter and longer than the sliding windows, chunks and original contexts of the zoo, two of one length.
LENGTHS = (5, 23, 12, 23, 14)
PADDED = "equal; any prompts share a batch"
SAME_LENGTH = "equal; prompts of one length share a batch"
ALONE = "equal; one row at a time"


def prompts(sizes: Iterable[int] = LENGTHS, seed: int = 1) -> list[tuple[int, ...]]:
    """Random token ids that are no control tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(4, 200, (size,), generator=generator).tolist()) for size in sizes]


def save(kind: str, folder: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Build an architecture's model, and write it with a tokenizer as a checkpoint."""
    model = zoo.build(kind, changes)
    model.generation_config = GenerationConfig(eos_token_id=STOPS, pad_token_id=0, bos_token_id=1)
    model.save_pretrained(folder)
    if (
        model.config.model_type not in zoo.ARCHITECTURES
    ):  # a part of a larger config, which alone names the architecture
        zoo.config(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def load(folder: str) -> Any:
    """The hf engine around a checkpoint, in fp32 on the CPU. Decoders of seq2seq models have to be named as such."""
    arguments = {"pretrained": folder, "dtype": "float32", "backend": "causal"}
    return load_engine("hf", arguments, HostArgs("auto", None, "cpu"))


@torch.inference_mode()
def generated(model: Any, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """The greedy text of one prompt, alone and without pads, by transformers' own ``generate``."""
    ids = torch.tensor([prompt])
    with contextlib.redirect_stdout(None):  # reformer prints
        if getattr(model.config, "rope_parameters", None):
            model(input_ids=ids[:, :1])  # a rope that grew with an earlier text is as new again
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=STEPS,
            do_sample=False,
            eos_token_id=STOPS,
            pad_token_id=0,
        )
    return tuple(written[0, len(prompt) :].tolist())


def request(prompt: tuple[int, ...], temperature: float = 0.0, seed: int = 0) -> Request:
    chat = Chat((Message("user", "x"),))
    return Request(Prompt(chat, prompt, len(prompt), str(prompt)), Sampling(temperature, 0.95, 0, STEPS), seed)


def texts(engine: Any, requests: list[Request]) -> list[tuple[int, ...]]:
    completions = dict(engine.generate(requests))
    return [completions[index].token_ids for index in range(len(requests))]


def compare(model: Any, engine: Any) -> list[str]:
    """Where the engine's texts differ from those of ``generate``, and fanned out from those alone."""
    asked = prompts()
    expected = [generated(model, prompt) for prompt in asked]
    greedy = [request(prompt) for prompt in asked]
    sampled = [request(prompt, 1.0, 10 * index + seed) for index, prompt in enumerate(asked[:3]) for seed in range(3)]
    ways = {
        "alone": [texts(engine, [each])[0] for each in greedy] == expected,
        "in a batch": texts(engine, greedy) == expected,
        "fanned out": texts(engine, sampled) == [texts(engine, [each])[0] for each in sampled],
        "scored": scores_agree(model, engine, asked),
        "with proposals": with_proposals(engine, [*greedy, *sampled]) == texts(engine, [*greedy, *sampled]),
    }
    assert len(set(expected)) > 2, f"the texts of the reference do not depend on the prompt: {expected}"
    return [way for way, equal in ways.items() if not equal]


def with_proposals(engine: Any, requests: list[Request]) -> list[tuple[int, ...]]:
    """The texts if the engine proposes other tokens and another number of them at each step, as far as it can."""
    numbers = itertools.count()

    def propose(_: Proposer, most: int) -> list[int]:
        number = next(numbers)
        return [4 + (31 * number + place) % 190 for place in range(min(number % 4, most))]

    engine.looks_ahead = engine.rules.look_ahead
    with mock.patch.object(Proposer, "propose", propose):
        found = texts(engine, requests)
    assert (next(numbers) > 0) == engine.rules.look_ahead
    engine.looks_ahead = False
    return found


@torch.inference_mode()
def scores_agree(model: Any, engine: Any, asked: list[tuple[int, ...]]) -> bool:
    """Whether choices have the log-probabilities of one whole text, alone and without pads."""
    choices = [prompts((1, 4, 2), seed=index) for index in range(len(asked))]
    for index, scores in engine.scorer.score_choices(asked, choices, quiet=True):
        for choice, (score, greedy) in zip(choices[index], scores, strict=True):
            ids = torch.tensor([[*asked[index], *choice]])
            if getattr(model.config, "rope_parameters", None):
                model(input_ids=ids[:, :1])
            logits = model(input_ids=ids).logits[0, -len(choice) - 1 : -1]
            expected = float(logits.log_softmax(-1).gather(-1, torch.tensor(choice)[:, None]).sum())
            likeliest = logits.argmax(-1).tolist() == list(choice)
            if abs(score - expected) > 2e-3 * max(1.0, abs(expected)) or greedy != likeliest:
                return False
    return True


def outcome(kind: str) -> str:
    """What becomes of an architecture: equal and how, refused and why, or not built and why.

    Raises:
        AssertionError: If a text differs, or a refusal does not name the way out.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = save(kind, folder)
        except Exception as error:
            return f"not built: {reason(error)}"
        try:
            generated(model, prompts()[0])
        except Exception as error:
            problem = f"not built: generate fails ({reason(error)})"
        else:
            problem = ""
        try:
            engine = load(folder)
        except EngineError as error:
            sentence = str(error).partition("cannot be loaded: ")[2]
            if "engine=vllm" not in sentence or "\n" in sentence:
                raise AssertionError(f"{kind} is refused without a way out: {error}") from error
            return problem or f"refused: {sentence}"
        assert not problem, f"{kind} was loaded, and {problem}"
        different = compare(model, engine)
    assert not different, f"{kind} is different {', '.join(different)}: {engine.rules}"
    if not engine.rules.many_rows:
        return ALONE
    return PADDED if engine.rules.mixed_lengths else SAME_LENGTH


def reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0].partition(". ")[0] if lines else ""
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {first}")[:160]


def documented() -> dict[str, str]:
    """The outcomes in the table of the page."""
    table = PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0]
    found = {}
    for line in table.splitlines()[4:]:
        result, _, names = (cell.strip() for cell in line.strip("|").split(" | ", 2))
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", names), result.replace(r"\|", "|"))
    return found


def documented_version() -> str:
    """The version of transformers whose architectures the page lists."""
    found = re.search(r"transformers (\S+) ships", PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2])
    return found[1] if found else ""


def table(outcomes: dict[str, str]) -> str:
    """The Markdown of the table, most architectures first."""
    by_result: dict[str, list[str]] = {}
    for kind, result in sorted(outcomes.items()):
        by_result.setdefault(result, []).append(kind)
    order = sorted(by_result.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [
        f"The {len(outcomes)} causal architectures that transformers {transformers.__version__} ships:\n",
        "| result | | architectures |\n| --- | --- | --- |",
    ]
    for result, kinds in order:
        names = ", ".join(f"`{kind}`" for kind in kinds)
        lines.append(f"| {result.replace('|', chr(92) + '|')} | {len(kinds)} | {names} |")
    return "\n".join(lines) + "\n"


def write_page(outcomes: dict[str, str]) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(before + MARKS[0] + table(outcomes) + MARKS[1] + after, encoding="utf-8")


def run(kinds: Iterable[str]) -> Iterator[tuple[str, str]]:
    for kind in kinds:
        try:
            yield kind, outcome(kind)
        except Exception as error:
            yield kind, f"DIFFERENT: {type(error).__name__}: {error}"


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    outcomes = {}
    for kind, result in run(sys.argv[1:] or zoo.ARCHITECTURES):
        print(kind, result, flush=True)
        outcomes[kind] = result
    if not sys.argv[1:]:
        write_page(outcomes)
