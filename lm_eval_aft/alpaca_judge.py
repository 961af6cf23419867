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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval_aft.alpaca_data import Annotation, Pairs
from lm_eval_aft.alpaca_package import package
from lm_eval_aft.errors import JudgeError
from lm_eval_aft.judge import Estimate, Judge, JudgeCall, JudgeReply
from lm_eval_aft.records import Message

Chat = tuple[Message, ...]
Ask = Callable[[Sequence[Chat]], Sequence[JudgeReply]]

PROMPT = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
PUBLIC_ANNOTATOR, PUBLIC_JUDGE = "weighted_alpaca_eval_gpt4_turbo", "gpt-4-1106-preview"
PROBES = 5
# The package's prompt is written as ChatML. Answers stand in its user turn and may hold such marks themselves, so the
# first turn ends at its first mark and the second at the very last one.
TURNS = re.compile(r"\s*<\|im_start\|>system\n(.*?)<\|im_end\|>\s*<\|im_start\|>user\n(.*)<\|im_end\|>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Method:
    """How a reply becomes a preference.

    Attributes:
        name: "weighted" reads the probabilities of m and M, "regex" the letter written.
        prefix: Set before each metric's name, so that another method's scores are never taken for AlpacaEval's.
        config: The package's settings for reading a reply.
        temperature: Of a request, as are the next two.
        max_tokens: Of a reply.
        top_logprobs: Likely first tokens to ask for; 0 is none.
    """

    name: str
    prefix: str
    config: Mapping[str, Any]
    temperature: float
    max_tokens: int
    top_logprobs: int


def weighted(top_logprobs: int = 5) -> Method:
    """AlpacaEval 2's own way: the probability of m against that of M as the first token."""
    config = {
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False},
        "completion_key": "completions_all",
    }
    return Method("weighted", "", config, temperature=1.0, max_tokens=1, top_logprobs=top_logprobs)


def regex() -> Method:
    """For a server without probabilities: the reply must be m or M and nothing else but punctuation."""
    config = {
        "fn_completion_parser": "regex_parser",
        "completion_parser_kwargs": {"outputs_to_match": {1: r"^\W*m\W*$", 2: r"^\W*M\W*$"}},
        "completion_key": "completions",
    }
    return Method("regex", "regex_", config, temperature=0.0, max_tokens=8, top_logprobs=0)


def annotator_name(method: Method, judge: str) -> str:
    """The public annotator's name for the public judge, another for every other."""
    if method.name == "weighted" and judge == PUBLIC_JUDGE:
        return PUBLIC_ANNOTATOR
    return f"{method.name}_{judge}"


def annotate(pairs: Pairs, method: Method, name: str, ask: Ask) -> tuple[Annotation, ...]:
    """Have every pair judged once; a pair without a usable reply gets no preference, equal answers are a draw.

    Args:
        pairs: Reference and model, row by row.
        method: How a reply is read.
        name: The annotator's name in the annotations.
        ask: Answers a list of chats.
    """

    def completions(prompts: Sequence[str], **_: Any) -> dict[str, list[Any]]:
        replies = ask([chat(prompt) for prompt in prompts])
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
    return tuple(_annotation(row, name) for row in rows)


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


def _annotation(row: Mapping[str, Any], name: str) -> Annotation:
    preference = row.get("preference")
    known = isinstance(preference, int | float) and 1 <= preference <= 2
    texts = ("instruction", "output_1", "output_2", "generator_1", "generator_2")
    return Annotation(
        **{text: str(row[text]) for text in texts},
        annotator=name,
        preference=float(preference) if known and preference is not None else None,
        raw_completion=row.get("preference_raw_completion", row.get("raw_completion")),
    )


def _choice(reply: JudgeReply) -> dict[str, Any] | str:
    """A reply as OpenAI's servers put it, which is what the package reads; an empty text is a failed judgement."""
    if reply.top_logprobs is None:
        return ""
    top = [{"token": token, "logprob": logprob} for token, logprob in reply.top_logprobs.items()]
    content = [{"token": reply.text, "top_logprobs": top}]
    return {"message": {"role": "assistant", "content": reply.text}, "logprobs": {"content": content}}
