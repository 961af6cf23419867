"""The records that cross every border: what is asked, what comes back, what is kept.

All are frozen and hold plain values, so that they can be hashed, compared, stored and printed. Knows nothing of
engines, stores or lm-eval. Everybody imports it. Over 200 lines because each field says what it holds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

from lm_eval_aft.core.usage import Usage

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation that waits for its next assistant turn.

    Attributes:
        messages: The turns, the question last.
        prefill: Text with which the answer must begin; empty for nearly every task.
        wrapped: True when lm-eval sent a bare string and we made one user turn of it.
    """

    messages: tuple[Message, ...]
    prefill: str = ""
    wrapped: bool = False

    @property
    def identity(self) -> str:
        """SHA-256 of what is asked; equal chats draw equal drafts."""
        turns = [[message.role, message.content] for message in self.messages]
        return sha256(json.dumps([turns, self.prefill], ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A chat made ready for an engine.

    Attributes:
        chat: The messages, as a server would get them.
        token_ids: The rendered prompt in tokens, or None where the engine holds no tokenizer.
        prompt_tokens: Its length; an estimate where ``token_ids`` is None.
        digest: SHA-256 of the token ids, else of the messages: the prompt's part of a store key.
    """

    chat: Chat
    token_ids: tuple[int, ...] | None
    prompt_tokens: int
    digest: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next text is drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus mass in (0, 1]; 1 is off.
        top_k: Number of most likely tokens kept; 0 is off.
        max_tokens: Upper bound of generated tokens, the end token included.
        until: Strings that end the text and are cut from it (drafts of base models only).
        beams: Texts kept side by side by beam search; 1 is none.
        seeded: False lets the engine draw as it likes (``seed=none``), at its full speed.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    until: tuple[str, ...] = ()
    seeded: bool = True
    beams: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """One generation asked of an engine; ``seed`` is a whole number below 2**63."""

    prompt: Prompt
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated text, with the counts of the moment it was born.

    Attributes:
        text: The decoded text, without end tokens.
        token_ids: Generated ids, the end token included; empty where a server does not tell.
        finish_reason: "stop", or "length" when ``max_tokens`` cut it.
        prompt_tokens: Length of its prompt.
        computed_prompt_tokens: Those of them that ran through the model for this text; the rest were shared.
        generated_tokens: Tokens generated, the end token included; with beams those of all beams.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    computed_prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Draft:
    """One generation in its place: ``index`` of ``layer``; layer 0 holds the drafts proper.

    Attributes:
        layer: 0 for the drafts, 1 to L for the aggregation passes.
        index: Position in the layer, from 0.
        seed: Seed of this generation, below 2**63.
        completion: What was generated; an empty or cut one stays here too.
        reused: True when it came from the store or from an equal request of this run.
        elapsed_s: Seconds from the start of its layer to its end.
    """

    layer: int
    index: int
    seed: int
    completion: Completion
    reused: bool
    elapsed_s: float

    @property
    def empty(self) -> bool:
        """Nothing but white space was written."""
        return not self.completion.text.strip()

    @property
    def cut(self) -> bool:
        """It ended at ``max_tokens``, not by itself."""
        return self.completion.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Question:
    """One request of the host, decoded: what to answer, how, and where it belongs.

    Attributes:
        chat: What is asked.
        drafts: Sampling of the drafts and of every layer but the last.
        final: Sampling of the last layer, or of the plain answer at ``layers=0``.
        task: Name of the task.
        doc_id: Row of the document in its split.
        doc_hash: lm-eval's hash of the document.
        repeat: Which of the task's ``repeats`` this is, from 0.
        turn: Which turn of a dialogue is answered, from 0.
        until: The task's stop strings: what follows the first of them is no part of an answer.
        think_end: The mark that ends thinking: what precedes the last of them is no part of an answer; "" is none.
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
    def drawn(self) -> tuple[Sampling, Sampling]:
        """How the texts of a run are drawn, so that other runs are told apart; a task may vary the last temperature."""
        return self.drafts, replace(self.final, temperature=0.0)

    def after_thinking(self, text: str) -> str:
        """A text without what precedes the last mark that ends thinking."""
        return text.rpartition(self.think_end)[2].lstrip() if self.think_end else text

    def answer_in(self, text: str) -> str:
        """What the task's scorer is given of a text, as lm-eval's own models cut theirs."""
        text = self.after_thinking(text)
        for stop in self.until:
            text = text.split(stop)[0]
        return text


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything one question produced.

    Attributes:
        question: What was asked.
        drafts: All generations, layer by layer, by index within a layer.
        cut_tokens: Per aggregation pass, tokens cut from each text it read so that the prompt fitted.
        answer: The last text, before the task's stop strings.
        usage: Logical cost: every generation counts, wherever it came from.
        spent: The part of it that this run computed.
        scores: Where the answer was elected: one a text of the layer before, votes or rewards.
    """

    question: Question
    drafts: tuple[Draft, ...]
    cut_tokens: tuple[tuple[int, ...], ...]
    answer: str
    usage: Usage
    spent: Usage
    settings: dict[str, Any] = field(default_factory=dict)
    scores: tuple[float, ...] = ()

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are set: a version that knows further ones writes them as None."""
        return {name: value for name, value in self.settings.items() if value is not None}

    def layer(self, number: int) -> tuple[Draft, ...]:
        """The generations of one layer, by index."""
        return tuple(draft for draft in self.drafts if draft.layer == number)

    def to_json(self) -> str:
        """One line of JSON; ``from_json`` reads it back to an equal trace."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Trace:
        """Read a line written by ``to_json``.

        Raises:
            KeyError, TypeError, ValueError: If the line is not such a trace; callers name the file.
        """
        row = json.loads(line)
        return cls(
            question=_question(row["question"]),
            drafts=tuple(_draft(draft) for draft in row["drafts"]),
            cut_tokens=tuple(tuple(layer) for layer in row["cut_tokens"]),
            answer=row["answer"],
            usage=Usage(**row["usage"]),
            spent=Usage(**row["spent"]),
            settings=row["settings"],
            scores=tuple(row.get("scores", ())),
        )


def _sampling(row: dict[str, Any]) -> Sampling:
    return Sampling(**{**row, "until": tuple(row["until"])})


def _question(row: dict[str, Any]) -> Question:
    chat = row["chat"]
    messages = tuple(Message(**message) for message in chat["messages"])
    parts = {"chat": Chat(messages, chat["prefill"], chat["wrapped"]), "until": tuple(row.get("until", ()))}
    return Question(**{**row, **parts, "drafts": _sampling(row["drafts"]), "final": _sampling(row["final"])})


def _draft(row: dict[str, Any]) -> Draft:
    completion = {**row["completion"], "token_ids": tuple(row["completion"]["token_ids"])}
    return Draft(**{**row, "completion": Completion(**completion)})
