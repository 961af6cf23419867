"""Dialogues: the turns of one request, and the part of each text that is its answer.

Most requests have one turn. A task may list what the user says after each answer. Every turn is then drafted and
aggregated, and the next turn continues from the model's own answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from lm_eval_aft.core.chat import Renderer
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.records import Chat, Draft, Message, Question, Trace

# The generation setting that lists the user's later turns, and the key of the answers in the response.
TURNS = "turns"


def without_thinking(question: Question, draft: Draft) -> str:
    """A generated text without its thoughts; empty if it ended inside one."""
    return draft.answer(question.think_end)


def is_empty(question: Question, draft: Draft) -> bool:
    """Whether a generated text holds no answer."""
    return not without_thinking(question, draft).strip()


def answer_of(question: Question, draft: Draft) -> str:
    """The part of a generated text that the task scores: without thoughts, and before the first stop string."""
    text = without_thinking(question, draft)
    for stop in question.until:
        text = text.split(stop)[0]
    return text


def final_answer(trace: Trace) -> str:
    """The part of a trace's answer that the task scores."""
    last = trace.drafts[-1]
    # The answer to a multiple-choice question is a choice, which no generation wrote.
    return answer_of(trace.question, last) if last.completion.text == trace.answer else trace.answer


class Dialogue:
    """One request, turn by turn.

    Attributes:
        opening: The question of the first turn.
        question: The question to answer next, or None if every turn has its answer.
        traces: The trace of each answered turn.
    """

    def __init__(self, opening: Question, later_turns: tuple[str, ...] | None = None) -> None:
        """Begin with the first question.

        Args:
            opening: The question of the first turn.
            later_turns: What the user says after each answer. None if the request is a single question.
        """
        self.opening = opening
        self.question: Question | None = opening
        self.traces: list[Trace] = []
        self._later_turns = later_turns

    def add(self, trace: Trace, renderers: Iterable[Renderer]) -> None:
        """Take the trace of the current turn and move to the next turn.

        The next prompt holds the answer without its thoughts and without the control tokens of any model that reads it.
        """
        turns = self._later_turns or ()
        number = len(self.traces)
        self.traces.append(trace)
        self.question = _next_question(trace, turns[number], renderers) if number < len(turns) else None

    @property
    def turns(self) -> int:
        """Number of turns, the later ones included."""
        return 1 + len(self._later_turns or ())

    @property
    def response(self) -> str:
        """What lm-eval gets: the answer, or the answers of all turns as JSON if the request has a list of turns."""
        answers = [final_answer(trace) for trace in self.traces]
        return answers[0] if self._later_turns is None else json.dumps({TURNS: answers}, ensure_ascii=False)


def answers_in(response: str) -> tuple[str, ...]:
    """The answers of all turns in the response to a request with a list of turns; empty if it holds none."""
    try:
        answers = parse_json(response)[TURNS]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(answers) if isinstance(answers, list) and all(isinstance(text, str) for text in answers) else ()


def _next_question(trace: Trace, turn: str, renderers: Iterable[Renderer]) -> Question:
    """The chat so far, the model's own answer, and what the user says next."""
    question = trace.question
    answer = final_answer(trace)
    for renderer in renderers:
        answer = renderer.clean(answer)
    answer = question.chat.prefill + answer.strip()
    messages = (*question.chat.messages, Message("assistant", answer), Message("user", turn))
    return replace(question, chat=Chat(messages), turn=question.turn + 1)
