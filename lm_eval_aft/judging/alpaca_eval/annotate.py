"""Comparisons of AlpacaEval by the alpaca_eval package, with our judge client in place of its own.

The package makes the prompts, shuffles which answer comes first, reads the replies and turns them into preferences. Its
own client drops a failed judgement and caches it as -1.
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

from lm_eval_aft.core.errors import JudgeError
from lm_eval_aft.core.records import Message
from lm_eval_aft.core.thinking import without_thoughts
from lm_eval_aft.judging.alpaca_eval.data import Annotation, OutputPairs
from lm_eval_aft.judging.alpaca_eval.package import package
from lm_eval_aft.judging.judge import Estimate, Judge, JudgeCall, JudgeReply

Messages = tuple[Message, ...]

PUBLIC_ANNOTATOR, PUBLIC_JUDGE, PUBLIC_TOP_LOGPROBS = "weighted_alpaca_eval_gpt4_turbo", "gpt-4-1106-preview", 5
PROMPT_FILE = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
PROBE_CALLS = 5
# The package's prompt is written as ChatML. Answers stand in its user turn and may hold such marks themselves. So the
# first turn ends at its first mark, and the second turn ends at the last mark of the prompt.
_CHATML = re.compile(r"\s*<\|im_start\|>system\n(.*?)<\|im_end\|>\s*<\|im_start\|>user\n(.*)<\|im_end\|>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class AnnotationMethod:
    """How a judge's reply becomes a preference.

    Attributes:
        name: "weighted" reads the probabilities of m and M; "regex" reads the letter in the reply.
        prefix: Stands before each metric's name, so that scores of another method are not taken for AlpacaEval's.
        config: The package's settings for reading a reply.
        temperature: Temperature of a call.
        max_tokens: Upper bound of the tokens of a reply.
        top_logprobs: Number of likely first tokens to request; 0 requests none.
    """

    name: str
    prefix: str
    config: Mapping[str, Any]
    temperature: float
    max_tokens: int
    top_logprobs: int


def weighted_method(top_logprobs: int = PUBLIC_TOP_LOGPROBS) -> AnnotationMethod:
    """AlpacaEval 2's own method: the probability of m against that of M as the first token."""
    config = {
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False},
        "completion_key": "completions_all",
    }
    return AnnotationMethod("weighted", "", config, temperature=1.0, max_tokens=1, top_logprobs=top_logprobs)


def regex_method() -> AnnotationMethod:
    """The method for a server without probabilities: the reply must be m or M, apart from punctuation."""
    config = {
        "fn_completion_parser": "regex_parser",
        "completion_parser_kwargs": {"outputs_to_match": {1: r"^\W*m\W*$", 2: r"^\W*M\W*$"}},
        "completion_key": "completions",
    }
    return AnnotationMethod("regex", "regex_", config, temperature=0.0, max_tokens=8, top_logprobs=0)


def annotator_name(method: AnnotationMethod, judge: str) -> str:
    """The public annotator's name if judge and method are the public ones, else another name.

    The number of likely tokens is part of the name: a letter that is not among them counts as impossible.
    """
    if method.name == "weighted" and judge == PUBLIC_JUDGE and method.top_logprobs == PUBLIC_TOP_LOGPROBS:
        return PUBLIC_ANNOTATOR
    top = f"_top{method.top_logprobs}" if method.top_logprobs not in (0, PUBLIC_TOP_LOGPROBS) else ""
    return f"{method.name}_{judge}{top}"


def annotate(
    pairs: OutputPairs, method: AnnotationMethod, name: str, ask: Callable[[Sequence[Messages]], Sequence[JudgeReply]]
) -> tuple[Annotation, ...]:
    """Have every pair judged once. A pair without a usable reply gets no preference; equal answers are a draw.

    Args:
        pairs: The answers of reference and model.
        method: How a reply is read.
        name: The annotator's name in the annotations.
        ask: Returns the judge's reply to each prompt, in order.
    """
    replied: dict[str, str] = {}

    def completions(prompts: Sequence[str], **_: Any) -> dict[str, list[Any]]:
        replies = ask([split_prompt(prompt) for prompt in prompts])
        replied.update((prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True))
        answers = [without_thoughts(reply.text) for reply in replies]
        return {"completions": answers, "completions_all": list(map(_choice, replies))}

    with package() as alpaca_eval, tempfile.TemporaryDirectory() as folder:
        prompt = Path(alpaca_eval.constants.EVALUATORS_CONFIG_DIR, PROMPT_FILE)
        annotator = alpaca_eval.annotators.PairwiseAnnotator(
            annotators_config=str(_write_config(Path(folder, "annotator"), name, prompt)),
            fn_completions=completions,
            # its default is a file in site-packages
            caching_path=None,
            is_avoid_reannotations=False,
            # the package replaces the patterns in this mapping with compiled ones
            **copy.deepcopy(dict(method.config)),
        )
        # the package would show a bar of one step
        with patch.object(alpaca_eval.utils.tqdm, "tqdm", lambda chunks, **_: chunks):
            rows = annotator.annotate_head2head(
                outputs_1=_frame(pairs.references), outputs_2=_frame(pairs.outputs), is_ordered=True, chunksize=None
            )
    return tuple(_annotation(row, name, replied) for row in rows)


def ask_judge(
    prompts: Sequence[Messages], judge: Judge, method: AnnotationMethod, show_estimate: Callable[[Estimate], None]
) -> list[JudgeReply]:
    """The judge's reply to each prompt, in order.

    Args:
        prompts: The judge prompts.
        judge: The client.
        method: What a call requests.
        show_estimate: Receives the estimate before the first call.

    Raises:
        JudgeError: If the judge fails, or ``method`` needs log-probabilities that it does not give.
    """
    calls = [JudgeCall(prompt, method.temperature, method.max_tokens, method.top_logprobs) for prompt in prompts]
    estimate = judge.estimate(calls)
    show_estimate(estimate)
    if method.top_logprobs and (judge.max_calls is None or estimate.to_send <= judge.max_calls):
        _check_logprobs(judge, calls[:PROBE_CALLS])
    replies = dict(judge.ask(calls))
    return [replies[position] for position in range(len(calls))]


def _check_logprobs(judge: Judge, calls: Sequence[JudgeCall]) -> None:
    """Make the first calls one by one, so that a judge without usable log-probabilities is refused at once.

    Raises:
        JudgeError: If a reply holds no log-probabilities, or all of them hold none of m and M.
    """
    quiet, judge.quiet = judge.quiet, True
    tokens: list[str] = []
    try:
        for call in calls:
            ((_, reply),) = judge.ask([call])
            if reply.top_logprobs is None and not reply.refused:
                raise JudgeError(
                    f"the replies of {judge.model} hold no log-probabilities: start its server with them, "
                    "or use --regex, whose scores have other names."
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


def split_prompt(prompt: str) -> Messages:
    """The system and the user turn of the package's prompt.

    Raises:
        JudgeError: If it has other turns.
    """
    match = _CHATML.fullmatch(prompt)
    if match is None:
        raise JudgeError("the judge prompt of the installed alpaca_eval is not a system and a user turn: use 0.6.6.")
    return Message("system", match[1].strip()), Message("user", match[2].strip())


def _write_config(folder: Path, name: str, prompt: Path) -> Path:
    """Write an annotator's folder as the package reads it, without the settings that are passed as arguments."""
    folder.mkdir()
    config = {name: {"prompt_template": str(prompt), "batch_size": 1}}
    # JSON is YAML
    (folder / "configs.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _frame(rows: Sequence[Any]) -> Any:
    import pandas

    return pandas.DataFrame.from_records([asdict(row) for row in rows])


def _annotation(row: Mapping[str, Any], name: str, replied: Mapping[str, str]) -> Annotation:
    texts = {text: str(row[text]) for text in ("instruction", "output_1", "output_2", "generator_1", "generator_2")}
    preference = row.get("preference")
    if not isinstance(preference, int | float) or not 1 <= preference <= 2:
        return Annotation(**texts, annotator=name, preference=None, raw_completion=_unread_reply(texts, replied))
    raw = row.get("preference_raw_completion", row.get("raw_completion"))
    # pandas writes nan for a draw, which no judge saw
    raw = None if isinstance(raw, float) else raw
    return Annotation(**texts, annotator=name, preference=float(preference), raw_completion=raw)


def _unread_reply(texts: Mapping[str, str], replied: Mapping[str, str]) -> str | None:
    """The reply that gave no preference. The package drops it, so the prompt that quotes all texts identifies it."""
    quoted = [f'"""{texts[name]}"""' for name in ("instruction", "output_1", "output_2")]
    return next((reply for prompt, reply in replied.items() if all(text in prompt for text in quoted)), None) or None


def _choice(reply: JudgeReply) -> dict[str, Any] | str:
    """A reply in the format of OpenAI's servers, which the package reads. An empty text is a failed judgement."""
    if reply.top_logprobs is None:
        return ""
    top = [{"token": token, "logprob": logprob} for token, logprob in reply.top_logprobs.items()]
    content = [{"token": reply.text, "top_logprobs": top}]
    return {"message": {"role": "assistant", "content": reply.text}, "logprobs": {"content": content}}
