"""Comparisons of AlpacaEval by the alpaca_eval package, with our client in the place of its own.

The package makes the prompts, shuffles which answer comes first, reads the replies and turns them into preferences;
its own client would drop a failed judgement silently and remember it. Knows prompts and replies; nothing of addresses,
retries or files. Called by ``alpaca``.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval_aft.core.errors import JudgeError
from lm_eval_aft.core.records import Message
from lm_eval_aft.judging.alpaca_eval.data import Annotation, Pairs
from lm_eval_aft.judging.alpaca_eval.methods import Method
from lm_eval_aft.judging.alpaca_eval.package import package
from lm_eval_aft.judging.judge import Estimate, Judge, JudgeCall, JudgeReply

Chat = tuple[Message, ...]
Ask = Callable[[Sequence[Chat]], Sequence[JudgeReply]]

PROMPT = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
PROBES = 5
# The package's prompt is written as ChatML. Answers stand in its user turn and may hold such marks themselves, so the
# first turn ends at its first mark and the second at the very last one.
TURNS = re.compile(r"\s*<\|im_start\|>system\n(.*?)<\|im_end\|>\s*<\|im_start\|>user\n(.*)<\|im_end\|>\s*", re.DOTALL)


def annotate(pairs: Pairs, method: Method, name: str, ask: Ask) -> tuple[Annotation, ...]:
    """Have every pair judged once; a pair without a usable reply gets no preference, equal answers are a draw.

    Args:
        pairs: Reference and model, row by row.
        method: How a reply is read.
        name: The annotator's name in the annotations.
        ask: Answers a list of chats.
    """
    said: dict[str, str] = {}

    def completions(prompts: Sequence[str], **_: Any) -> dict[str, list[Any]]:
        replies = ask([chat(prompt) for prompt in prompts])
        said.update((prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True))
        return {"completions": [reply.text for reply in replies], "completions_all": list(map(_choice, replies))}

    with package() as alpaca_eval, tempfile.TemporaryDirectory() as folder:
        prompt = Path(alpaca_eval.constants.EVALUATORS_CONFIG_DIR, PROMPT)
        annotator = alpaca_eval.annotators.PairwiseAnnotator(
            annotators_config=str(_write_config(Path(folder, "annotator"), name, prompt)),
            fn_completions=completions,
            caching_path=None,  # its default is a file in site-packages
            is_avoid_reannotations=False,
            **copy.deepcopy(dict(method.config)),  # it compiles patterns in place
        )
        with patch.object(alpaca_eval.utils.tqdm, "tqdm", lambda chunks, **_: chunks):  # a bar of one step
            rows = annotator.annotate_head2head(
                outputs_1=_records(pairs.references), outputs_2=_records(pairs.outputs), is_ordered=True, chunksize=None
            )
    return tuple(_annotation(row, name, said) for row in rows)


def ask_with(judge: Judge, method: Method, say: Callable[[Estimate], None]) -> Ask:
    """A function that puts prompts to a judge: the estimate first, then the probe, then the rest.

    Args:
        judge: The client.
        method: What a request asks for.
        say: Gets the estimate before anything is sent.
    """

    def ask(chats: Sequence[Chat]) -> Sequence[JudgeReply]:
        calls = [JudgeCall(chat, method.temperature, method.max_tokens, method.top_logprobs) for chat in chats]
        estimate = judge.estimate(calls)
        say(estimate)
        if method.top_logprobs and (judge.max_calls is None or estimate.to_send <= judge.max_calls):
            probe(judge, calls[:PROBES])
        replies = dict(judge.ask(calls))
        return [replies[position] for position in range(len(calls))]

    return ask


def probe(judge: Judge, calls: Sequence[JudgeCall]) -> None:
    """Ask the first before all others, so that a judge that gives no probabilities of m and M is found at once.

    Raises:
        JudgeError: If the replies hold no log-probabilities, or none of m and M.
    """
    quiet, judge.quiet = judge.quiet, True
    tokens: list[str] = []
    try:
        for _, reply in (found for call in calls for found in judge.ask([call])):
            if reply.top_logprobs is None and not reply.refused:
                raise JudgeError(
                    f"the replies of {judge.model} hold no log-probabilities: serve it with them, or use --regex, "
                    "whose scores have names of their own."
                )
            tokens = list(reply.top_logprobs or tokens)
            if {"m", "M"} & set(tokens):
                return
    finally:
        judge.quiet = quiet
    if tokens:
        raise JudgeError(
            f"none of the first {len(calls)} replies has m or M among its {len(tokens)} likeliest tokens (the last: "
            f"{', '.join(map(repr, tokens))}): raise --top-logprobs, take another judge, or use --regex."
        )


def chat(prompt: str) -> Chat:
    """The two turns of the package's prompt."""
    match = TURNS.fullmatch(prompt)
    if match is None:
        raise JudgeError("the judge prompt of the installed alpaca_eval is not a system and a user turn: use 0.6.6.")
    return Message("system", match[1].strip()), Message("user", match[2].strip())


def _write_config(folder: Path, name: str, prompt: Path) -> Path:
    """An annotator directory as the package wants it, without what is handed in: a key given twice is an error."""
    folder.mkdir()
    config = {name: {"prompt_template": str(prompt), "batch_size": 1}}
    (folder / "configs.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return folder


def _records(rows: Sequence[Any]) -> Any:
    import pandas

    return pandas.DataFrame.from_records([asdict(row) for row in rows])


def _annotation(row: Mapping[str, Any], name: str, said: Mapping[str, str]) -> Annotation:
    texts = {text: str(row[text]) for text in ("instruction", "output_1", "output_2", "generator_1", "generator_2")}
    preference = row.get("preference")
    if isinstance(preference, int | float) and 1 <= preference <= 2:
        raw = row.get("preference_raw_completion", row.get("raw_completion"))
        return Annotation(**texts, annotator=name, preference=float(preference), raw_completion=_known(raw))
    return Annotation(**texts, annotator=name, preference=None, raw_completion=_unread(texts, said))


def _known(raw: Any) -> Any:
    return None if isinstance(raw, float) else raw  # pandas writes nan where a draw was never asked about


def _unread(texts: Mapping[str, str], said: Mapping[str, str]) -> str | None:
    """The words that became no preference: the package drops them, so they are found again by their prompt."""
    quoted = [f'"""{texts[name]}"""' for name in ("instruction", "output_1", "output_2")]
    return next((words for prompt, words in said.items() if all(text in prompt for text in quoted)), None) or None


def _choice(reply: JudgeReply) -> dict[str, Any] | str:
    """A reply as OpenAI's servers put it, which is what the package reads; an empty text is a failed judgement."""
    if reply.top_logprobs is None:
        return ""
    top = [{"token": token, "logprob": logprob} for token, logprob in reply.top_logprobs.items()]
    content = [{"token": reply.text, "top_logprobs": top}]
    return {"message": {"role": "assistant", "content": reply.text}, "logprobs": {"content": content}}
