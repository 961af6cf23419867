"""The base of the family: a small Llama trained from scratch, in stages."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lm_eval_aft.bundled import arith
from lm_eval_aft.bundled.arith import Problem, Way
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import write_text
from lm_eval_aft.core.jsonl import read_json
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.terminal import note
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from trainers.family.documents import ANSWER_TOKENS, PROMPT_TEMPLATE, QUESTION_TOKENS, document, make_tokenizer
from trainers.family.settings import FamilyConfig, Stage, recorded

BASE_CARD = """# Base of the bundled family

Trained from scratch on `aft_arith` by `make checkpoints`; it can do nothing else. Greedy: share of new problems \
solved. In-context copying: loss, in nats a token, on an answer that is in the document already, and how often the \
model copies it word for word.

| stage | step | loss | greedy | in-context copying | word for word |
|---|---|---|---|---|---|
{rows}
    {settings}
"""


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
    """The GPU if there is one, else the CPU. ``aft train`` chooses its device by itself, in the same way."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def train_base(config: FamilyConfig, out: Path) -> None:
    """Train the base in stages, and write weights, tokenizer, template and curve.

    A document holds several answered problems, and some of them again. Copying the first answer is the easiest way to
    write the second, so the model learns in-context copying. Each stage corrects a fault of the one before:

    - In the first stage all answers are right. A model that has seen nothing else ends every answer in the target,
      even if the last step is false.
    - In the second stage a share of the answers reaches another number than the target, and says so.
    - In the third stage most documents have problems with the same numbers, so that copying requires the target.

    A training that was killed continues after its last finished stage.
    """
    tokenizer = make_tokenizer()
    model, curve = make_model(config, tokenizer).to(device()), list[dict[str, Any]]()
    for number, stage in enumerate(stages_of(config, curve), 1):
        finished = out / "stages" / str(number)
        if (finished / "curve.json").is_file():
            points = read_curve(finished, config)
            model = type(model).from_pretrained(finished).to(device())
        else:
            points = train_stage(model, tokenizer, config, stage, number)
            model.save_pretrained(finished)
            write_curve(finished, config, points)
        curve += points
    folder = out / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    template = Template(PROMPT_TEMPLATE, "aft_arith")
    write_text(out / "template.j2", PROMPT_TEMPLATE)
    CheckpointConfig(PROMPT_TEMPLATE, template.digest, mask_policy="targets only").save(folder)
    write_curve(folder, config, curve)
    write_text(folder / "README.md", base_card(config, curve))
    if curve[-1]["word_for_word"] < config.copy_accuracy_goal:
        note(
            f"warning: the base copies {curve[-1]['word_for_word']:.0%} of the answers in its context word for word; "
            f"the goal is {config.copy_accuracy_goal:.0%}. Aggregation will gain less with it (docs/lab-notes)."
        )


def base_card(config: FamilyConfig, curve: Sequence[Mapping[str, Any]]) -> str:
    """README.md of the base."""
    rows = [
        f"| {row['steps']} at {row['rate']} | {row['step']} | {row['loss']} | {row['greedy']:.3f} | {row['look_up']} "
        f"| {row['word_for_word']:.3f} |\n"
        for row in curve
    ]
    return BASE_CARD.format(rows="".join(rows), settings=json.dumps(recorded(config)))


def stages_of(config: FamilyConfig, curve: Sequence[Mapping[str, Any]]) -> Iterator[Stage]:
    """The stages, then ``extra_stage`` until copies are exact.

    Args:
        config: The stages, the goal, and how many extra stages are allowed.
        curve: The points so far. The caller adds those of each stage.
    """
    yield from config.stages
    for _ in range(config.rounds):
        if curve[-1]["word_for_word"] >= config.copy_accuracy_goal:
            return
        yield config.extra_stage


def write_curve(folder: Path, config: FamilyConfig, curve: list[dict[str, Any]]) -> None:
    """Write settings and curve beside weights."""
    text = json.dumps({"settings": recorded(config), "curve": curve}, indent=1)
    write_text(folder / "curve.json", f"{text}\n")


def read_curve(folder: Path, config: FamilyConfig) -> list[dict[str, Any]]:
    """The curve of a finished stage.

    Raises:
        ConfigError: If there is none, or it was trained with other settings.
    """
    file = folder / "curve.json"
    if not file.is_file():
        raise ConfigError(f"{file} is not there: train the base first (python -m trainers.family base).")
    state = read_json(file, "the curve of a stage", ConfigError)
    if state["settings"] != json.loads(json.dumps(recorded(config))):
        raise ConfigError(f"{folder} was trained with other settings: remove it, or choose another folder.")
    return list(state["curve"])


def train_stage(model: Any, tokenizer: Any, config: FamilyConfig, stage: Stage, number: int) -> list[dict[str, Any]]:
    """Train on new problems with a cosine schedule.

    Args:
        model: Trained in place.
        tokenizer: The model's tokenizer.
        config: How many documents a step has, and what they hold.
        stage: Steps, learning rate, and shares of special documents.
        number: Position of the stage, from 1. Each stage draws its own problems and documents.

    Returns:
        A point of the curve for every 200 steps and for the last one.
    """
    vocabulary = tokenizer.get_vocab()
    unseen, check_rng = arith.problems("validation", config.seed), random.Random(config.seed)
    check_problems = list(islice(unseen, 400))
    kinds = {
        "look_up": replace(stage, shared_numbers_share=0),
        "look_up_siblings": replace(stage, shared_numbers_share=1),
    }
    held_out = {name: [document(config, kind, unseen, check_rng) for _ in range(100)] for name, kind in kinds.items()}
    # The rows of the trainings are made from the problems of seed + 1, so stages use others.
    stage_seed = 100 * (config.seed + 1) + number
    stream, rng = arith.problems("train", stage_seed), random.Random(stage_seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)
    curve: list[dict[str, Any]] = []
    started = time.process_time()
    for step in range(1, stage.steps + 1):
        warmup, decay = min(1.0, step / 100), 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * warmup * decay + 1e-5
        texts = [document(config, stage, stream, rng) for _ in range(config.documents)]
        first, repeated = answer_losses(model, vocabulary, texts, config)
        weight = config.repeat_weight
        loss = (first.sum() + weight * repeated.sum()) / (first.numel() + weight * repeated.numel())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0 or step == stage.steps:
            point = {"step": step, "loss": round(loss.item(), 4)}
            point["greedy"] = greedy_accuracy(model, vocabulary, check_problems)
            point |= copying(model, vocabulary, held_out, config)
            curve.append({**recorded(stage), **point, "cpu_s": round(time.process_time() - started)})
            note(json.dumps(curve[-1]), err=False)
    return curve


@torch.inference_mode()
def copying(
    model: Any, vocabulary: dict[str, int], held_out: Mapping[str, Sequence[str]], config: FamilyConfig
) -> dict[str, float]:
    """Loss on repeated answers by kind of document, and the mean probability of copying a whole answer."""
    repeated = {name: answer_losses(model, vocabulary, texts, config)[1] for name, texts in held_out.items()}
    figures = {name: round(losses.mean().item(), 4) for name, losses in repeated.items()}
    return figures | {"word_for_word": round((-repeated["look_up"].sum(-1)).exp().mean().item(), 4)}


def answer_losses(
    model: Any, vocabulary: dict[str, int], texts: Sequence[str], config: FamilyConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses in nats of all answer tokens.

    Returns:
        Those of first answers, (documents, config.problems, ANSWER_TOKENS), and those of repeated ones,
        (documents, config.repeats, ANSWER_TOKENS).
    """
    # All documents have the same length.
    rows = [[vocabulary[word] for word in text.split()] for text in texts]
    ids = torch.tensor(rows, device=model.device)  # (documents, seq)
    logits = model(input_ids=ids[:, :-1]).logits  # (documents, seq - 1, vocab)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    parts = torch.nn.functional.pad(losses, (1, 0)).unflatten(1, (-1, QUESTION_TOKENS + ANSWER_TOKENS))
    answers = parts[..., QUESTION_TOKENS:]
    return answers[:, : config.problems], answers[:, config.problems :]


@torch.inference_mode()
def greedy_accuracy(model: Any, vocabulary: dict[str, int], problems: Sequence[tuple[Problem, Way]]) -> float:
    """Share of problems whose greedy answer is right."""
    words = {number: word for word, number in vocabulary.items()}
    prompts = [[vocabulary[word] for word in f"<ask> {p.question} <answer>".split()] for p, _ in problems]
    ids = torch.tensor(prompts, device=model.device)  # (problems, seq)
    for _ in range(ANSWER_TOKENS):
        tokens = model(input_ids=ids).logits[:, -1:].argmax(-1)  # (problems, 1)
        ids = torch.cat([ids, tokens], dim=-1)  # (problems, seq + 1)
    rows = ids[:, -ANSWER_TOKENS:].tolist()
    texts = [" ".join(words[token] for token in row).partition(" <end>")[0] for row in rows]
    right = sum(arith.is_right(problem, text) for (problem, _), text in zip(problems, texts, strict=True))
    return right / len(problems)
