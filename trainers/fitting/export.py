"""Rows for other training programs: the prompts and targets of ``aft train``, in the layouts that these read.

The layouts are:

- ``messages``: a chat that ends with the target, for programs that render it themselves;
- ``prompt-completion``: the rendered prompt and the target as texts, from which TRL makes our token ids;
- ``sharegpt``: the chat as ``conversations`` of ``from`` and ``value`` (axolotl, LLaMA-Factory);
- ``verl``: prompts with the right answer, for reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_aft.core.errors import ConfigError, PromptTooLong
from lm_eval_aft.core.files import atomic_write, writing
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.core.prompts import Fitted
from lm_eval_aft.core.records import Chat, Message
from trainers.fitting.examples import Encoder
from trainers.fitting.model import load_tokenizer
from trainers.fitting.resume import template_of
from trainers.rows.result import DataResult
from trainers.rows.row import DataRow, read_training_rows
from trainers.rows.samples import Sample, make_prompts, make_samples
from trainers.settings import Kind, TrainConfig

# The settings that examples depend on.
EXAMPLE_SETTINGS = ("model", "revision", "k", "sets_per_query", "plain_share", "max_length", "seed")
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


@dataclass(slots=True)
class Split:
    """Number of rows that another tokenization of the texts would split into other tokens than ``aft train``."""

    differs: int = 0


def export_rows(source: Path, form: str, config: TrainConfig, kind: Kind = "aft", gold: str = "gold") -> DataResult:
    """Render the examples that ``aft train`` would learn, in the layout of another program.

    Args:
        source: A file of rows.
        form: One of ``EXPORT_FORMATS``. verl gets prompts without targets, for any kind.
        config: Model, template, k and the other settings that examples depend on.
        kind: Which examples; see ``trainers.settings.KINDS``.
        gold: Key of a row that holds the right answer (verl only).

    Raises:
        AFTError: If a row or a setting is wrong, or no example fits.
    """
    rows = read_training_rows(source)
    encoder = Encoder(load_tokenizer(config), template_of(config), config.max_length)
    samples = make_prompts(rows, config) if form == "verl" else make_samples(rows, kind, config)
    split = Split()
    write: dict[str, Callable[[Sample, Fitted], DataRow]] = {
        "messages": lambda sample, fitted: {"messages": _turns(fitted.prompt.chat, sample.target)},
        "prompt-completion": lambda sample, fitted: _texts(encoder, sample, fitted, split),
        "sharegpt": lambda sample, fitted: _sharegpt(_turns(fitted.prompt.chat, sample.target)),
        "verl": lambda sample, fitted: _verl(sample, fitted, gold, source.stem),
    }
    fits = list(_fitting(samples, encoder))
    if not fits:
        raise ConfigError(f"none of the {len(samples)} examples fits max_length={config.max_length}: raise it.")
    exported = [write[form](sample, fitted) for sample, fitted in fits]
    cut = sum(any(fitted.cut_tokens) for _, fitted in fits)
    facts = [
        f"{len(exported)} examples of {len(rows)} rows, {sum(bool(sample.drafts) for sample, _ in fits)} with drafts; "
        f"over max_length: {len(samples) - len(fits)} left out, drafts cut in {cut}"
    ]
    facts += _advice(encoder, form, split)
    settings = {name: value for name, value in config.to_dict().items() if name in EXAMPLE_SETTINGS}
    settings |= {"to": form, "kind": "prompts" if form == "verl" else kind, "template": encoder.template.digest}
    return DataResult(exported, facts, settings, [source])


def write_rows(path: Path, rows: Sequence[DataRow]) -> None:
    """Write exported rows: Parquet if the name ends in .parquet, else JSON lines.

    Raises:
        RecordError: If the file cannot be written.
    """
    if path.suffix != ".parquet":
        write_jsonl(path, rows)
        return
    import pyarrow
    from pyarrow import parquet

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), partial)


def _fitting(samples: Sequence[Sample], encoder: Encoder) -> Iterator[tuple[Sample, Fitted]]:
    """The samples that fit, each with its prompt. The budget is that of ``aft train``."""
    for sample in samples:
        reserved = len(encoder.target_ids(sample)) if sample.target else 1
        try:
            yield sample, encoder.fit_prompt(sample, reserved)
        except PromptTooLong:
            continue


def _turns(chat: Chat, target: str) -> list[dict[str, str]]:
    answer = [Message("assistant", target.strip())] if target else []
    return [message.to_dict() for message in (*chat.messages, *answer)]


def _sharegpt(turns: Sequence[Mapping[str, str]]) -> DataRow:
    """The turns under ShareGPT's names. Roles that it has no name for stay as they are."""
    return {
        "conversations": [
            {"from": SHAREGPT.get(turn["role"], turn["role"]), "value": turn["content"]} for turn in turns
        ]
    }


def _texts(encoder: Encoder, sample: Sample, fitted: Fitted, split: Split) -> DataRow:
    """Prompt and completion as texts, such that the tokenizer makes the ids of ``aft train`` from them."""
    tokenizer = encoder.renderer.tokenizer
    prompt = prompt_text(encoder, fitted)
    end = tokenizer.decode([encoder.end_id], skip_special_tokens=False)
    completion = encoder.target_text(sample) + end
    ids = [*(fitted.prompt.token_ids or ()), *encoder.target_ids(sample)]
    split.differs += list(tokenizer(prompt + completion)["input_ids"]) != ids
    return {"prompt": prompt, "completion": completion}


def prompt_text(encoder: Encoder, fitted: Fitted) -> str:
    """The prompt as a text. It lacks the BOS token if the tokenizer would add a second one."""
    tokenizer, text = encoder.renderer.tokenizer, encoder.renderer.render(fitted.prompt.chat)
    bare = text.removeprefix(tokenizer.bos_token or "")
    ids = list(fitted.prompt.token_ids or ())
    return bare if list(tokenizer(text)["input_ids"]) != ids == list(tokenizer(bare)["input_ids"]) else text


def _verl(sample: Sample, fitted: Fitted, gold: str, name: str) -> DataRow:
    """A row in verl's layout. Its reward function gets data_source, ground_truth and extra_info."""
    row = sample.data
    if row.get(gold) is None:
        raise ConfigError(f"{sample.where} has no {gold!r}: verl needs the right answer, name its key with --gold.")
    return {
        "data_source": str(row.get("data_source") or name),
        "prompt": _turns(fitted.prompt.chat, ""),
        "ability": str(row.get("ability") or "reasoning"),
        "reward_model": {"style": "rule", "ground_truth": str(row[gold])},
        "extra_info": {"index": int(sample.where.rpartition(" ")[2]), "drafts": len(sample.drafts)},
    }


def _advice(encoder: Encoder, form: str, split: Split) -> list[str]:
    """What to set in the other program so that it trains as this one."""
    facts = []
    if split.differs:
        facts.append(
            f"warning: in {split.differs} rows the tokenizer merges the end of the prompt with the target, so that "
            "another program learns other tokens there"
        )
    tokenizer = encoder.renderer.tokenizer
    if form == "prompt-completion" and encoder.end_id != tokenizer.eos_token_id:
        end = tokenizer.decode([encoder.end_id], skip_special_tokens=False)
        facts.append(f"set eos_token to {end} in TRL: it would add {tokenizer.eos_token} to each completion")
    if form in ("messages", "sharegpt"):
        facts.append("the other program renders the chats with its own template: let it learn the last turn only")
    return facts
