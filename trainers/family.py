"""The bundled family: a base trained from scratch on ``aft_arith``, and what SFT and AFT make of it.

    python -m trainers.family base     OUT     tokenizer, prompt template, and the base's weights
    python -m trainers.family rows     OUT     drafts of the base on new problems, and the rows of all four trainings
    python -m trainers.family train    OUT     sft, aft, aft-no-drafts and aft-pseudo, by ``aft train``
    python -m trainers.family ship     OUT     base, sft and aft into the package

``make checkpoints`` runs the four, on a GPU where there is one (CUDA_VISIBLE_DEVICES= hides it). Problems are drawn
without end; few questions come twice. A right draft that is shown is the target, word for word, which ``aft train``
warns of: which one to adopt is what is to be learnt. Where none is right the target is a way that was not shown. What
was tried before, and why it did not work, stands in docs/experiments.md. Every number of a run stands in
``FamilyConfig``.
Over 200 lines: it is one recipe, to be read from top to bottom.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch

from lm_eval_aft import bundled
from lm_eval_aft.bundled import arith
from lm_eval_aft.bundled.arith import Problem, Way
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import AFTError, ConfigError
from lm_eval_aft.core.files import atomic_write
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message, Question, Sampling
from lm_eval_aft.engines.base import HostArgs, load_engine
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore
from trainers.settings import KINDS, Kind, make_config

WORDS = ("<pad>", "<unk>", "<draft>", "<ask>", "<answer>", "<end>", "make", "=", ";", "+", "-", "*")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ '<ask> ' + m['content'] + ' ' }}"
    "{% else %}{{ '<answer> ' + m['content'] + ' <end> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<answer> ' }}{% endif %}"
)
PROMPT_TEMPLATE = (  # each draft as an answer to what it reaches: whether that is what was asked for is left to see
    "{% block draft %}{% endblock %}"
    "{% block aggregate %}{% for draft in drafts %}<draft> {{ question.split(' make ') | first }} make "
    "{{ draft.split() | last }} <answer> {{ draft }} <end> {% endfor %}{% endblock %}"
)
SHIPPED = (
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "aft_config.json", "README.md"),
)
TRAINED_K = (1, 3, 3, 5, 5, 5)
QUESTION_TOKENS = arith.COUNT + 4  # "<ask>", the numbers, "make", the target, "<answer>"
ANSWER_TOKENS = 6 * (arith.COUNT - 1)  # each step has five words and a separator; the last one's is the end


@dataclass(frozen=True)
class Stage:
    """One stage of the base's training; see ``train_base``.

    Attributes:
        steps: Of the optimizer.
        rate: The highest learning rate of a cosine schedule.
        misses: Share of examples whose question asks for another target than their way reaches.
        siblings: Share of documents whose problems have the same numbers and different targets.
    """

    steps: int
    rate: float
    misses: float = 0.0
    siblings: float = 0.0


@dataclass(frozen=True)
class FamilyConfig:
    """All settings of the family; the defaults are those of the checkpoints that ship."""

    width: int = 96
    depth: int = 4
    heads: int = 4
    stages: tuple[Stage, ...] = (Stage(2200, 1.5e-3), Stage(400, 6e-4, 0.3), Stage(1200, 2e-3, 0.3, 0.7))
    again: Stage = Stage(400, 2e-3, 0.3, 0.7)  # once more and once more, until repeats are exact
    exact: float = 0.95  # mean probability of repeating a whole answer; what aggregation gains hangs on it
    rounds: int = 6  # of ``again`` at most
    documents: int = 72  # a step
    problems: int = 4  # a document
    repeats: int = 2  # of them, at its end
    repeat_weight: float = 3.0  # of a token of a repeated answer in the loss; one told for the first time has 1
    queries: int = 8_000
    drafts: int = 8
    sets: int = 3
    mixed: float = 0.7  # share of draft sets that hold right and wrong ones, where a query has both
    temperature: float = 0.7
    train_epochs: float = 3.0
    train_batch: int = 128
    plain_rate: float = 3e-4
    aft_rate: float = 6e-4
    plain_share: float = 0.35
    seed: int = 0


# ---------------------------------------------------------------- the base


def make_tokenizer() -> Any:
    """One token a word: whole numbers, operators, and the marks of the prompt."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *map(str, range(arith.LIMIT + 1))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<draft>", "<ask>", "<answer>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(config: FamilyConfig, tokenizer: Any) -> Any:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=3 * config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(shape)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def device() -> torch.device:
    """Where all of it runs: the GPU if there is one. ``aft train`` looks for itself, in the same way."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def train_base(config: FamilyConfig, out: Path) -> None:
    """Train the base in stages, and write weights, tokenizer, template and curve.

    A document holds several problems with their ways, and some of them again: as in ordinary text, what was said
    before helps to say it again, and a model learns to look it up. The first stage has right ways alone. A model that
    has seen nothing else ends every answer in the target, true or not, so that its errors hide in a false last step;
    in the second a share of the ways misses the target and says so. In the third the problems of a document mostly
    share their numbers, so that looking one up means looking at its target.
    """
    tokenizer = make_tokenizer()
    model, curve = make_model(config, tokenizer).to(device()), list[dict[str, Any]]()
    for number, stage in enumerate(stages_of(config, curve), 1):
        done = out / "stages" / str(number)  # a killed run goes on after its last whole stage
        if (done / "curve.json").is_file():
            told = read_curve(done, config)
            model = type(model).from_pretrained(done).to(device())
        else:
            told = train_stage(model, tokenizer, config, stage, number)
            model.save_pretrained(done)
            write_curve(done, config, told)
        curve += told
    folder = out / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    template = Template(PROMPT_TEMPLATE, "aft_arith")
    (out / "template.j2").write_text(PROMPT_TEMPLATE, encoding="utf-8")
    CheckpointConfig(PROMPT_TEMPLATE, template.digest, mask_policy="targets only").save(folder)
    write_curve(folder, config, curve)
    (folder / "README.md").write_text(base_card(config, curve), encoding="utf-8")
    if curve[-1]["word_for_word"] < config.exact:
        click.echo(
            f"warning: the base repeats {curve[-1]['word_for_word']:.0%} of the answers before it word for word, "
            f"{config.exact:.0%} were wanted: aggregation will gain less on it (docs/experiments.md).",
            err=True,
        )


def base_card(config: FamilyConfig, curve: Sequence[Mapping[str, Any]]) -> str:
    """README.md of the base."""
    rows = [
        f"| {row['steps']} at {row['rate']} | {row['step']} | {row['loss']} | {row['greedy']:.3f} | {row['look_up']} "
        f"| {row['word_for_word']:.3f} |"
        for row in curve
    ]
    return "\n".join(
        [
            "# Base of the bundled family",
            "",
            "Trained from scratch on `aft_arith` by `make checkpoints`; knows nothing else. Greedy: share of new "
            "problems solved. Look-up: nats a token of an answer that stands in the document already, and how often it "
            "is repeated word for word.",
            "",
            "| stage | step | loss | greedy | look-up | word for word |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "    " + json.dumps(asdict(config)),
            "",
        ]
    )


def stages_of(config: FamilyConfig, curve: Sequence[Mapping[str, Any]]) -> Iterator[Stage]:
    """The stages, then ``again`` until the curve, which the caller goes on writing, ends in exact repeats."""
    yield from config.stages
    for _ in range(config.rounds):
        if curve[-1]["word_for_word"] >= config.exact:
            return
        yield config.again


def write_curve(folder: Path, config: FamilyConfig, curve: list[dict[str, Any]]) -> None:
    """Settings and curve beside weights."""
    text = json.dumps({"settings": asdict(config), "curve": curve}, indent=1)
    with atomic_write(folder / "curve.json") as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")


def read_curve(folder: Path, config: FamilyConfig) -> list[dict[str, Any]]:
    """The curve of a finished stage.

    Raises:
        ConfigError: If there is none, or it was trained with other settings.
    """
    file = folder / "curve.json"
    if not file.is_file():
        raise ConfigError(f"{file} is not there: train the base first (python -m trainers.family base).")
    told = json.loads(file.read_text(encoding="utf-8"))
    if told["settings"] != json.loads(json.dumps(asdict(config))):
        raise ConfigError(f"{folder} was trained with other settings: remove it, or choose another folder.")
    return list(told["curve"])


def train_stage(model: Any, tokenizer: Any, config: FamilyConfig, stage: Stage, number: int) -> list[dict[str, Any]]:
    """Train on problems drawn anew, with a cosine schedule of its own; returns the curve.

    Args:
        model: Trained in place.
        tokenizer: Its tokenizer.
        config: Documents a step.
        stage: Steps, rate, and what the documents are like.
        number: Its place, from 1: each stage draws problems and documents of its own.
    """
    known = tokenizer.get_vocab()
    unseen, judge = arith.problems("validation", config.seed), random.Random(config.seed)
    check = list(islice(unseen, 400))
    kinds = {"look_up": replace(stage, siblings=0), "look_up_siblings": replace(stage, siblings=1)}
    held_out = {name: [document(config, kind, unseen, judge) for _ in range(100)] for name, kind in kinds.items()}
    own = 100 * (config.seed + 1) + number  # rows are made of the problems of seed + 1
    stream, rng = arith.problems("train", own), random.Random(own)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)
    curve: list[dict[str, Any]] = []
    started = time.process_time()
    for step in range(1, stage.steps + 1):
        warm, part = min(1.0, step / 100), 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * warm * part + 1e-5
        texts = [document(config, stage, stream, rng) for _ in range(config.documents)]
        told, repeated = answer_losses(model, known, texts, config)
        weight = config.repeat_weight
        loss = (told.sum() + weight * repeated.sum()) / (told.numel() + weight * repeated.numel())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0 or step == stage.steps:
            row = {"step": step, "loss": round(loss.item(), 4), "greedy": greedy_accuracy(model, known, check)}
            with torch.inference_mode():
                repeated_of = {name: answer_losses(model, known, held_out[name], config)[1] for name in kinds}
            row |= {name: round(losses.mean().item(), 4) for name, losses in repeated_of.items()}
            row["word_for_word"] = round((-repeated_of["look_up"].sum(-1)).exp().mean().item(), 4)
            curve.append({**asdict(stage), **row, "cpu_s": round(time.process_time() - started)})
            click.echo(json.dumps(curve[-1]))
    return curve


def answer_losses(
    model: Any, known: dict[str, int], texts: Sequence[str], config: FamilyConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of all answer tokens, in nats: of the answers told first and of those repeated.

    Returns:
        Two tensors, (documents, config.problems, ANSWER_TOKENS) and (documents, config.repeats, ANSWER_TOKENS).
    """
    rows = [[known[word] for word in text.split()] for text in texts]
    ids = torch.tensor(rows, device=model.device)  # (documents, seq): equally long
    logits = model(input_ids=ids[:, :-1]).logits  # (documents, seq - 1, vocab)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    parts = torch.nn.functional.pad(losses, (1, 0)).unflatten(1, (-1, QUESTION_TOKENS + ANSWER_TOKENS))
    answers = parts[..., QUESTION_TOKENS:]
    return answers[:, : config.problems], answers[:, config.problems :]


def document(config: FamilyConfig, stage: Stage, stream: Iterator[tuple[Problem, Way]], rng: random.Random) -> str:
    """Several problems with their ways, then some of the right ones again; a miss asks for the target before it."""
    made = _siblings(config.problems, stream, rng) if rng.random() < stage.siblings else []
    solved = [*made, *islice(stream, config.problems - len(made))]
    parts, right, before = [], [], 0
    for problem, way in solved:
        missed = before and rng.random() < stage.misses and before != problem.target
        asked = Problem(problem.numbers, before) if missed else problem
        parts.append(f"<ask> {asked.question} <answer> {arith.write(way)} <end>")
        right += [] if missed else parts[-1:]
        before = problem.target
    return " ".join([*parts, *(rng.choice(right) for _ in range(config.repeats))])  # the first is never missed


def _siblings(count: int, stream: Iterator[tuple[Problem, Way]], rng: random.Random) -> list[tuple[Problem, Way]]:
    """Problems with the same numbers and different targets, as many of ``count`` as sixty tries find."""
    problem, way = next(stream)
    found = {problem.target: (problem, way)}
    for _ in range(60):
        if len(found) == count:
            break
        other = arith.random_way(problem.numbers, rng)
        if other is not None:
            found.setdefault(other[-1].result, (Problem(problem.numbers, other[-1].result), other))
    return list(found.values())


@torch.inference_mode()
def greedy_accuracy(model: Any, known: dict[str, int], problems: Sequence[tuple[Problem, Way]]) -> float:
    """Share of problems whose greedy answer is right."""
    words = {number: word for word, number in known.items()}
    asked = [[known[word] for word in f"<ask> {p.question} <answer>".split()] for p, _ in problems]
    ids = torch.tensor(asked, device=model.device)  # (problems, seq)
    cache, written, given = None, [], ids
    for _ in range(ANSWER_TOKENS):
        output = model(input_ids=given, past_key_values=cache, use_cache=True)
        cache, given = output.past_key_values, output.logits[:, -1:].argmax(-1)  # (problems, 1)
        written.append(given)
    rows = torch.cat(written, 1).tolist()
    texts = [" ".join(words[token] for token in row).partition(" <end>")[0] for row in rows]
    right = sum(arith.is_right(problem, text) for (problem, _), text in zip(problems, texts, strict=True))
    return right / len(problems)


# ---------------------------------------------------------------- the rows


def draft(config: FamilyConfig, out: Path, problems: Sequence[Problem]) -> list[tuple[str, ...]]:
    """The base's drafts of each problem, made by the engine and the schedule of an evaluation."""
    engine = load_engine("hf", {"pretrained": str(out / "base"), "dtype": "float32"}, HostArgs(64, None, str(device())))
    sampling = Sampling(config.temperature, 0.95, 0, ANSWER_TOKENS)
    questions = [
        Question(Chat((Message("user", problem.question),)), sampling, sampling, doc_id=number)
        for number, problem in enumerate(problems)
    ]
    # one layer's drafts and nothing more: layers=0 makes one text, so each draft is a repeat of its own
    repeats = [
        Question(q.chat, sampling, sampling, doc_id=q.doc_id, repeat=index)
        for q in questions
        for index in range(config.drafts)
    ]
    run = AFTConfig(k=1, layers=0, seed=config.seed)
    traces = propose_and_aggregate(repeats, engine, Template(PROMPT_TEMPLATE, "aft_arith"), run, NoStore())
    texts = [trace.answer for trace in traces]
    return [tuple(texts[i : i + config.drafts]) for i in range(0, len(texts), config.drafts)]


def make_rows(config: FamilyConfig, out: Path) -> dict[str, Any]:
    """Write train.jsonl and validation.jsonl, and return what stands in them."""
    counts: dict[str, Any] = {}
    for split, size in (("train", config.queries), ("validation", config.queries // 20)):
        solved = list(islice(arith.problems(split, config.seed + 1), size))
        drafts = draft(config, out, [problem for problem, _ in solved])
        rng = random.Random(f"{config.seed} {split}")
        drafted = [(problem, arith.write(way), texts) for (problem, way), texts in zip(solved, drafts, strict=True)]
        rows = [row for each in drafted for row in rows_of(*each, config, rng)]
        write_jsonl(out / f"{split}.jsonl", rows)
        write_jsonl(out / f"{split}_sft.jsonl", ({"query": p.question, "sft_target": way} for p, way, _ in drafted))
        right = [sum(arith.is_right(problem, text) for text in texts) for problem, _, texts in drafted]
        counts[split] = {"queries": size, "rows": len(rows), "draft_accuracy": sum(right) / size / config.drafts}
        counts[split]["none_right"] = right.count(0) / size
    return counts


def rows_of(
    problem: Problem, solution: str, texts: Sequence[str], config: FamilyConfig, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Draw sets of drafts; the target is a right one that is shown, else another right way."""
    right = [text for text in texts if arith.is_right(problem, text)]
    wrong = [text for text in texts if text not in right]
    for _ in range(config.sets):
        k = rng.choice(TRAINED_K)
        shown = rng.sample(list(texts), k)
        if k > 1 and right and wrong and rng.random() < config.mixed:  # drafts that disagree teach to choose
            most = min(k - 1, len(right))
            some = rng.randint(min(most, max(1, k - len(wrong))), most)
            shown = rng.sample(right, some) + rng.sample(wrong, min(k - some, len(wrong)))
            rng.shuffle(shown)
        adopted = [text for text in shown if text in right]
        target = rng.choice(adopted) if adopted else rng.choice(right) if right else solution
        yield {"query": problem.question, "drafts": shown, "target": target, "sft_target": solution}


# ---------------------------------------------------------------- the four trainings


def train_all(config: FamilyConfig, out: Path, kinds: Sequence[Kind], seed: int) -> None:
    """Train each kind on the base by ``aft train``."""
    from trainers.train import run_training

    for kind in kinds:
        of_kind = "_sft" if kind == "sft" else ""
        settings = training_settings(config, out, kind, seed) | {
            "data": str(out / f"train{of_kind}.jsonl"),
            "validation": str(out / f"validation{of_kind}.jsonl"),
            "output": str(out / f"{kind}-{seed}"),
        }
        run_training(kind, make_config(settings, "trainers.family"))


def training_settings(config: FamilyConfig, out: Path, kind: Kind, seed: int) -> dict[str, Any]:
    """What every training on the base has; all weights, though LoRA does as well (docs/experiments.md)."""
    return {
        "model": str(out / "base"),
        "template": str(out / "template.j2"),
        "lora_rank": 0,
        "learning_rate": config.plain_rate if kind in ("sft", "aft-no-drafts") else config.aft_rate,
        "epochs": config.train_epochs,  # for sft 12 were tried: the lowest validation loss is that of 3
        "batch_size": config.train_batch,
        "plain_share": config.plain_share,
        "max_length": 512,
        "seed": seed,
        "log_every": 50,
    }


@click.group()
def main() -> None:
    """Build the bundled family."""


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Of its weights and problems.")
def base(out: Path, seed: int) -> None:
    """Train the base from scratch."""
    train_base(FamilyConfig(seed=seed), out)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="The base's.")
def rows(out: Path, seed: int) -> None:
    """Draft with the base and write the rows of all trainings."""
    config = FamilyConfig(seed=seed)
    read_curve(out / "base", config)  # which says whether that is its seed
    counts = make_rows(config, out)
    with atomic_write(out / "rows.json") as partial:
        partial.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(counts))


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Only this one; can be given again."
)
@click.option("--seed", default=0, show_default=True, help="Of the training.")
def train(out: Path, kinds: tuple[Kind, ...], seed: int) -> None:
    """Train sft, aft, aft-no-drafts and aft-pseudo on the base."""
    train_all(FamilyConfig(), out, kinds or tuple(KINDS), seed)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Of the training.")
def ship(out: Path, seed: int) -> None:
    """Copy base, SFT and AFT into the package; what they say names no folder of this disk."""
    sources = {name: out / ("base" if name == "base" else f"{name}-{seed}") for name in bundled.NAMES}
    for path in (source / file for source in sources.values() for file in SHIPPED):
        if not path.is_file():
            raise ConfigError(f"{path} is not there: run trainers.family base, rows and train on {out} first.")
    for name, source in sources.items():
        target = bundled.FOLDER / name
        target.mkdir(parents=True, exist_ok=True)
        for file in SHIPPED:
            content = (source / file).read_bytes()
            if file.endswith((".json", ".md")):
                for folder in (out.resolve(), out):  # as it was given to the trainings, or to this command
                    content = content.replace(f"{folder}/base".encode(), b"bundled:base")
                    content = content.replace(f"{folder}/".encode(), b"")
            with atomic_write(target / file) as partial:  # a run that reads the old one keeps a whole file
                partial.write_bytes(content)


if __name__ == "__main__":
    from lm_eval_aft import _autoload

    try:
        main()
    except AFTError as failure:
        _autoload.print_error(failure)
        sys.exit(failure.exit_code)
