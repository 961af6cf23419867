"""AlpacaEval from answers, or from annotations, to scores.

What can be refused without a judge is refused before the first call. Annotations are written before they are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lm_eval_aft.judging.alpaca_eval.annotate import annotate, annotator_name, ask_judge
from lm_eval_aft.judging.alpaca_eval.data import ModelOutput, is_eval_set, pair_outputs, refuse_equal_names
from lm_eval_aft.judging.alpaca_eval.files import ANNOTATIONS_FILE, read_annotations, read_outputs, write_rows
from lm_eval_aft.judging.alpaca_eval.package import find_difficulty, from_hub
from lm_eval_aft.judging.alpaca_eval.scores import AlpacaSummary, ScoringOptions, summarize, write_summary
from lm_eval_aft.judging.judge import Estimate, Judge

BASELINE_FILE = "alpaca_eval_gpt4_baseline.json"


def read_reference(file: Path | None) -> tuple[ModelOutput, ...]:
    """The reference answers, from a file or, if None, AlpacaEval 2's own from the hub.

    Raises:
        JudgeError: If the hub's file cannot be downloaded.
        RecordError: If the file does not hold model outputs.
    """
    return read_outputs(file or from_hub(BASELINE_FILE, "give a file of model outputs with --reference FILE"))


def judge_outputs(
    outputs: Sequence[ModelOutput],
    references: Sequence[ModelOutput],
    judge: Judge,
    options: ScoringOptions,
    folder: Path | None,
    show_estimate: Callable[[Estimate], None],
) -> AlpacaSummary:
    """Have answers judged, write the annotations, and score them.

    Args:
        outputs: The model's answers.
        references: The answers they are compared with.
        judge: Who compares.
        options: How to score.
        folder: Where annotations, scores and the leaderboard row are written; None writes nothing.
        show_estimate: Receives the estimate before the first call.

    Raises:
        AFTError: If the inputs do not match, the judge fails, or judgements are missing.
    """
    pairs = pair_outputs(outputs, references)
    difficulty = find_difficulty(options.difficulty) if options.length_control and pairs.whole else None
    method = options.method
    ask = partial(ask_judge, judge=judge, method=method, show_estimate=show_estimate)
    annotations = annotate(pairs, method, annotator_name(method, judge.model), ask)
    if folder:
        write_rows(folder / ANNOTATIONS_FILE, annotations)
    summary = summarize(annotations, difficulty, options, method.prefix, pairs)
    if folder:
        write_summary(folder, summary, judge.model)
    return summary


def score_annotations(file: Path, options: ScoringOptions) -> AlpacaSummary:
    """Score existing comparisons, by any judge.

    Raises:
        AFTError: If the file does not hold annotations, or judgements are missing.
    """
    annotations = read_annotations(file)
    if any(row.output_1 != row.output_2 for row in annotations):
        refuse_equal_names(annotations[0].generator_2, annotations[0].generator_1)
    whole = is_eval_set([row.instruction for row in annotations])
    difficulty = find_difficulty(options.difficulty) if options.length_control and whole else None
    return summarize(annotations, difficulty, options)
