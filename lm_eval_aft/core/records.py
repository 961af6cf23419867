"""Records: what is asked, what an engine returns, and what a run keeps of it.

All records are frozen and hold plain values. They can be hashed, compared, stored and printed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from itertools import accumulate
from typing import Any, Literal

from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.thinking import without_thoughts
from lm_eval_aft.core.usage import Usage

FinishReason = Literal["stop", "length"]
# Tokens of a window of ``Confidence``, and of its tail. DeepConf takes 2,048 for both, in far longer texts.
CONFIDENCE_TOKENS = 32
# The log-probability of a token that is impossible or nearly so. OpenAI's servers send the same number.
LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Attributes:
        role: Who speaks: system, user or assistant.
        content: What is said.
    """

    role: str
    content: str

    def to_dict(self) -> dict[str, str]:
        """The message as chat templates and servers take it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation that waits for its next assistant turn.

    Attributes:
        messages: The messages, the question last.
        prefill: Text with which the answer must begin; empty for nearly every task.
        wrapped: True if lm-eval sent a bare string, which became one user message.
    """

    messages: tuple[Message, ...]
    prefill: str = ""
    wrapped: bool = False

    @property
    def identity(self) -> str:
        """SHA-256 of the messages and the prefill. Equal chats get equal drafts."""
        turns = [[message.role, message.content] for message in self.messages]
        return sha256(json.dumps([turns, self.prefill], ensure_ascii=False).encode()).hexdigest()

    @property
    def with_prefill(self) -> tuple[Message, ...]:
        """The messages, followed by the prefill as an assistant message if there is one."""
        return (*self.messages, Message("assistant", self.prefill)) if self.prefill else self.messages


@dataclass(frozen=True, slots=True)
class Prompt:
    """A chat made ready for an engine.

    Attributes:
        chat: The chat, as a server would get it.
        token_ids: The rendered prompt in tokens, or None if the engine holds no tokenizer.
        prompt_tokens: Length of the prompt in tokens; an estimate if ``token_ids`` is None.
        digest: SHA-256 of the token ids, or of the messages if there are none. Part of the store key.
        opened_thought: The mark with which the rendered prompt opens a thought; "" if it opens none.
    """

    chat: Chat
    token_ids: tuple[int, ...] | None
    prompt_tokens: int
    digest: str
    opened_thought: str = ""

    @property
    def unshown_mark(self) -> str:
        """The part of ``opened_thought`` that no completion shows.

        A server renders the prompt itself, so its engine puts the mark into the text.
        """
        return "" if self.token_ids is None else self.opened_thought


# The rarer settings of ``Sampling``, with the values that switch them off.
EXTRAS_OFF = {"min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine samples a text.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus mass in (0, 1]; 1 is off.
        top_k: Number of most likely tokens kept; 0 is off.
        max_tokens: Most tokens to generate, the end token included.
        until: Strings that end the text and are cut from it (drafts of base models only).
        seeded: False lets the engine sample without the request's seed (``seed=none``), at its full speed.
        beams: Number of beams of beam search; 1 is none.
        min_p: Least probability of a token, as a share of the most likely token's; 0 is off.
        repetition_penalty: Divides positive logits of tokens in the prompt or the text, and multiplies negative ones; 1
            is off.
        frequency_penalty: Subtracted from a token's logit for each time that the text has it; 0 is off.
        presence_penalty: Subtracted from the logit of a token that the text has; 0 is off.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    until: tuple[str, ...] = ()
    seeded: bool = True
    beams: int = 1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    @property
    def extras(self) -> dict[str, float]:
        """The rarer settings that are on, by the names that servers and vLLM have for them."""
        return {name: getattr(self, name) for name, off in EXTRAS_OFF.items() if getattr(self, name) != off}

    @property
    def penalised(self) -> bool:
        """Whether tokens that the text has already are penalised."""
        return bool(set(self.extras) - {"min_p"})


@dataclass(frozen=True, slots=True)
class Request:
    """One generation that an engine must write.

    Attributes:
        prompt: The prompt.
        sampling: How its text is sampled.
        seed: A whole number below 2**63.
        confidence: Whether the completion must have its confidence. The text does not depend on it.
    """

    prompt: Prompt
    sampling: Sampling
    seed: int
    confidence: bool = False


@dataclass(frozen=True, slots=True)
class Confidence:
    """How likely the model found a text that it generated, in four numbers of natural logarithms.

    The log-probability of a token is that of the model's own distribution: before temperature, top-p, top-k and
    penalties. Tail and window follow the "tail confidence" and "lowest group confidence" of DeepConf (arXiv
    2508.15260). DeepConf averages over the most likely tokens of each position; these numbers take the generated one.

    Attributes:
        sum: Sum over the tokens.
        mean: Mean over the tokens.
        tail: Mean over the last 32 tokens.
        window: Lowest mean of 32 consecutive tokens; the mean of a shorter text.
    """

    sum: float
    mean: float
    tail: float
    window: float

    @classmethod
    def of(cls, logprobs: Sequence[float]) -> Confidence | None:
        """The confidence of a text.

        Args:
            logprobs: The log-probability of each generated token, the end token included.

        Returns:
            None if there are no tokens.

        Raises:
            ValueError: If one is NaN or infinite upwards.
        """
        if any(math.isnan(value) or value == math.inf for value in logprobs):
            raise ValueError("a log-probability is not a number")
        if not logprobs:
            return None
        # Rounding may give a log-probability slightly above 0. Adding 0.0 turns -0.0 into 0.0, as SQLite does.
        values = [min(0.0, max(LOWEST_LOGPROB, value)) + 0.0 for value in logprobs]
        sums = [0.0, *accumulate(values)]
        size = min(len(values), CONFIDENCE_TOKENS)
        means = [(end - start) / size for start, end in zip(sums, sums[size:], strict=False)]
        return cls(sums[-1], sums[-1] / len(values), means[-1], min(means))


@dataclass(frozen=True, slots=True)
class LookAhead:
    """The forward passes behind a text, if the engine runs proposed tokens together.

    Attributes:
        forward_passes: Forward passes that the text took part in, with that of its prompt.
        proposed_tokens: Tokens that were proposed. The number of those kept is ``generated_tokens - forward_passes``.
    """

    forward_passes: int
    proposed_tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated text. Its tokens are counted when it ends.

    Attributes:
        text: The decoded text, without end tokens.
        token_ids: Generated ids, the end token included; empty if a server does not return them.
        finish_reason: "stop", or "length" if ``max_tokens`` cut the text.
        prompt_tokens: Length of the prompt.
        computed_prompt_tokens: Prompt tokens that ran through the model for this text. The others were shared.
        generated_tokens: Tokens generated, the end token included; with beams, the sum over the beams.
        confidence: How likely the model found the text, or None if the engine did not say.
        look_ahead: The forward passes behind the text, or None if no tokens are proposed. The draft store does not
            keep them.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    computed_prompt_tokens: int
    generated_tokens: int
    confidence: Confidence | None = None
    look_ahead: LookAhead | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """One generation and its place in the schedule. Layer 0 holds the drafts themselves.

    Attributes:
        layer: 0 for the drafts, 1 to L for the aggregation layers.
        index: Position in the layer, from 0.
        seed: Seed of this generation, below 2**63.
        completion: What the engine generated. Empty and cut texts are kept too.
        reused: True if it came from the store or from an equal request of this run.
        elapsed_s: Seconds from the start of its layer to its end.
        opened_thought: The mark with which the prompt opened a thought, in which the text begins; "" if it opened none.
    """

    layer: int
    index: int
    seed: int
    completion: Completion
    reused: bool
    elapsed_s: float
    opened_thought: str = ""

    @property
    def empty(self) -> bool:
        """Whether the text holds no answer: it is only white space, or only a thought."""
        return not self.answer().strip()

    @property
    def cut(self) -> bool:
        """Whether the text ended at ``max_tokens``."""
        return self.completion.finish_reason == "length"

    def answer(self, think_end: str = "") -> str:
        """The text without its thoughts.

        Args:
            think_end: The mark that ends thinking, if the user names one.
        """
        return without_thoughts(self.completion.text, self.opened_thought, end=think_end, cut=self.cut)


@dataclass(frozen=True, slots=True)
class Question:
    """One request of lm-eval, decoded.

    Attributes:
        chat: The chat to answer.
        drafts: Sampling of the drafts and of every layer but the last.
        final: Sampling of the last layer, or of the single answer if ``layers=0``.
        task: Name of the task.
        doc_id: Row of the document in its split.
        doc_hash: lm-eval's hash of the document.
        repeat: Which of the task's ``repeats`` this is, from 0.
        turn: Which turn of a dialogue this is, from 0.
        until: The task's stop strings. An answer ends before the first of them.
        think_end: The mark that ends thinking, or "". An answer begins after the last of them.
    """

    chat: Chat
    drafts: Sampling
    final: Sampling
    task: str = ""
    doc_id: int = 0
    doc_hash: str = ""
    repeat: int = 0
    turn: int = 0
    until: tuple[str, ...] = ()
    think_end: str = ""

    @property
    def sampling_key(self) -> tuple[Sampling, Sampling]:
        """Equal for all questions of one task in one run. A task may vary the last layer's temperature by question."""
        return self.drafts, replace(self.final, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Grade:
    """What the task makes of one text under one of its filters.

    Attributes:
        filter: Name of lm-eval's filter, such as flexible-extract.
        metrics: The value of each metric that is a number for one document, in the task's order.
        answer: The answer that the filter extracts, or that the task's own code compares. Answers that this code takes
            as equal have one spelling. None if there is none, or if nothing extracts answers.
        extracts: Whether answers are extracted at all; a filter that keeps the whole text extracts none.
    """

    filter: str
    metrics: dict[str, float] = field(default_factory=dict)
    answer: str | None = None
    extracts: bool = False


# Names of fields in a line of a trace file, if they differ from the names here.
_JSON_NAMES = {"computed_usage": "spent"}
# Fields that a line has only if they have a value.
_LEFT_OUT = frozenset({"choice", "look_ahead", "subsets", "usage_by_model"})


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that one question produced.

    Attributes:
        question: The question.
        drafts: All generations, by layer and then by index.
        cut_tokens: For each aggregation layer, the tokens cut from each text it read so that the prompt fits; with
            ``subsets``, those of the texts of each subset in turn.
        answer: The last text, before the task's stop strings cut it.
        usage: Logical cost. Every generation counts, wherever it came from.
        computed_usage: The part of ``usage`` that this run computed.
        settings: Settings of the run that wrote the trace.
        scores: If the answer was selected, one score for each text of the layer before: votes or rewards.
        draft_tokens: For each aggregation layer, the tokens of all texts that it read, before the cut; 0 without one.
        grades: For each text of ``drafts``, its grade under each of the task's filters; empty if nothing was graded.
        subsets: For each aggregation layer and each text of it, the indices of the texts that it read; empty if every
            text read the whole layer before it.
        choice: With ``strategy=select``, the text that names the chosen one. ``drafts`` does not hold it.
        usage_by_model: ``usage`` by the name of the model, if the run has several models; else empty.
    """

    question: Question
    drafts: tuple[Draft, ...]
    cut_tokens: tuple[tuple[int, ...], ...]
    answer: str
    usage: Usage
    computed_usage: Usage
    settings: dict[str, Any] = field(default_factory=dict)
    scores: tuple[float, ...] = ()
    draft_tokens: tuple[int, ...] = ()
    grades: tuple[tuple[Grade, ...], ...] = ()
    subsets: tuple[tuple[tuple[int, ...], ...], ...] = ()
    choice: Draft | None = None
    usage_by_model: dict[str, Usage] = field(default_factory=dict)

    @property
    def set_settings(self) -> dict[str, Any]:
        """The settings that have a value. A version that knows more settings writes the unset ones as None."""
        return {name: value for name, value in self.settings.items() if value is not None}

    def layer(self, number: int) -> tuple[Draft, ...]:
        """The generations of one layer, by index."""
        return tuple(draft for draft in self.drafts if draft.layer == number)

    def read_by(self, layer: int, index: int) -> tuple[int, ...]:
        """The indices of the texts of the layer before that a text read."""
        if layer <= len(self.subsets):
            return self.subsets[layer - 1][index]
        return tuple(draft.index for draft in self.layer(layer - 1))

    def to_json(self) -> str:
        """One line of JSON; ``from_json`` reads it back to an equal trace."""
        row = {_JSON_NAMES.get(name, name): value for name, value in _values(self).items()}
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=_values)

    @classmethod
    def from_json(cls, line: str) -> Trace:
        """Read a line that ``to_json`` wrote; see ``from_dict`` for the errors."""
        return cls.from_dict(parse_json(line))

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Trace:
        """Make a trace from a parsed line.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: If the row is not a trace. Callers name the file.
        """
        return cls(
            question=_question(row["question"]),
            drafts=tuple(_draft(draft) for draft in row["drafts"]),
            cut_tokens=tuple(tuple(layer) for layer in row["cut_tokens"]),
            answer=row["answer"],
            usage=Usage(**row["usage"]),
            computed_usage=Usage(**row["spent"]),
            settings=row["settings"],
            scores=tuple(row.get("scores", ())),
            draft_tokens=tuple(row.get("draft_tokens", ())),
            grades=tuple(tuple(Grade(**grade) for grade in text) for text in row.get("grades", ())),
            subsets=tuple(tuple(map(tuple, layer)) for layer in row.get("subsets", ())),
            choice=_draft(row["choice"]) if row.get("choice") else None,
            usage_by_model={name: Usage(**usage) for name, usage in row.get("usage_by_model", {}).items()},
        )


def _values(record: Any) -> dict[str, Any]:
    """The fields of a record. Unlike ``asdict`` it copies no value, which takes a third of the time."""
    values = ((each.name, getattr(record, each.name)) for each in fields(record))
    return {name: value for name, value in values if value or name not in _LEFT_OUT}


def _sampling(row: dict[str, Any]) -> Sampling:
    return Sampling(**{**row, "until": tuple(row["until"])})


def _question(row: dict[str, Any]) -> Question:
    chat = row["chat"]
    messages = tuple(Message(**message) for message in chat["messages"])
    parts = {"chat": Chat(messages, chat["prefill"], chat["wrapped"]), "until": tuple(row.get("until", ()))}
    return Question(**{**row, **parts, "drafts": _sampling(row["drafts"]), "final": _sampling(row["final"])})


def _draft(row: dict[str, Any]) -> Draft:
    completion = row["completion"]
    confidence, look_ahead = completion.get("confidence"), completion.get("look_ahead")
    parts = {
        "token_ids": tuple(completion["token_ids"]),
        "confidence": None if confidence is None else Confidence(**confidence),
        "look_ahead": None if look_ahead is None else LookAhead(**look_ahead),
    }
    return Draft(**{**row, "completion": Completion(**{**completion, **parts})})
