"""The samples of the page: each question of a run, from its trace if there is one, else from lm-eval's samples file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from lm_eval_aft.analysis.conditions import primary_score
from lm_eval_aft.analysis.diagnosis import Diagnostics, diagnose_traces
from lm_eval_aft.analysis.grading import GradedTrace, nearest_text
from lm_eval_aft.analysis.report.page.data import PageMessage, PageSample, PageText
from lm_eval_aft.analysis.report.page.prompts import Templates, known_templates, layer_prompts
from lm_eval_aft.analysis.runs import RunEntry, by_question
from lm_eval_aft.core.chat import decode
from lm_eval_aft.core.records import Chat, Trace
from lm_eval_aft.inference.dialogue import without_thinking
from lm_eval_aft.storage.results import Sample, Score

# Logged samples by task, doc_id and doc_hash, each with the main score of its task.
Logged = Mapping[tuple[str, int, str], tuple[Sample, Score]]


def run_samples(
    entry: RunEntry, others: Sequence[RunEntry] = ()
) -> tuple[tuple[Diagnostics, ...], tuple[PageSample, ...]]:
    """The diagnostics of one run, and its samples.

    A run that did not aggregate has no diagnostics. A question whose sample was not logged comes from its trace alone,
    and one without a trace from lm-eval's samples file alone.

    Args:
        entry: The run.
        others: Further runs, whose logged samples may hold the gold answers.
    """
    logged = _logged(entry)
    traces = by_question(entry.traces(), lambda trace: trace)
    diagnosed = diagnose_traces(traces.values(), [entry, *others])
    grades = {(grade.task, grade.doc_id, grade.repeat, grade.turn): grade for d in diagnosed for grade in d.traces}
    templates = known_templates() if traces else {}
    traced = [_from_trace(entry, trace, grades[key], logged, templates) for key, trace in traces.items()]
    tasks = {sample.task for sample in traced}
    untraced = [_from_log(entry, *each) for (task, *_), each in logged.items() if task not in tasks]
    aggregated = (d.diagnostics for d in diagnosed if d.diagnostics.layers or d.diagnostics.scored)
    return tuple(aggregated), (*traced, *untraced)


def featured(samples: Sequence[PageSample], run: str) -> int | None:
    """The place of the sample that tells most about a run.

    It is a question that aggregation fixed with the fewest right drafts. Without one, it is a question that the run
    answers rightly and another run wrongly, else the run's first one.

    Args:
        samples: All samples of the page.
        run: Name of the run. If it is on none of the samples, the first of all samples is taken.
    """
    own = [place for place, sample in enumerate(samples) if sample.run == run] or list(range(len(samples)))
    # A question without a right draft may be fixed by chance, so it comes last.
    fixed = {place: samples[place].right_drafts or 1_000_000 for place in own if samples[place].fixed}
    if fixed:
        return min(fixed, key=fixed.__getitem__)
    wrong = {(sample.task, sample.doc_id) for sample in samples if sample.right is False}
    gained = [p for p in own if samples[p].right and (samples[p].task, samples[p].doc_id) in wrong]
    return next(iter(gained or own), None)


def _logged(entry: RunEntry) -> Logged:
    """The logged samples under the filter of each task's main score, in their order."""
    logged = {}
    for task in entry.run.tasks:
        if entry.logged(task):
            score = primary_score(entry.run, task)
            for sample in entry.samples(task):
                if sample.key.filter == score.filter:
                    logged[task, sample.key.doc_id, sample.key.doc_hash] = (sample, score)
    return logged


def _from_trace(entry: RunEntry, trace: Trace, grade: GradedTrace, logged: Logged, templates: Templates) -> PageSample:
    question = trace.question
    spoken = [without_thinking(question, draft) for draft in trace.drafts]
    sample, score = logged.get((question.task, question.doc_id, question.doc_hash), (None, None))
    right = grade.right
    if right is None and sample and score:
        right = _right(sample, score)
    return PageSample(
        run=entry.label,
        task=question.task,
        doc_id=question.doc_id,
        question=(sample.question if sample else "") or question.chat.messages[-1].content,
        messages=_messages(question.chat),
        texts=tuple(_texts(trace, grade, spoken)),
        answer=trace.answer,
        gold=_gold(grade, sample),
        right=right,
        fixed=grade.fixed,
        broken=grade.broken,
        score=_score(sample, score),
        repeat=question.repeat,
        turn=question.turn,
        category=_category(entry, question.task, sample),
        right_drafts=_right_drafts(grade),
        changed=_changed(grade),
        rendered=sample.rendered if sample and not question.turn else "",
        prompts=layer_prompts(trace, spoken, templates),
        choice=without_thinking(question, trace.choice) if trace.choice else "",
    )


def _gold(grade: GradedTrace, sample: Sample | None) -> str:
    """The gold answer; empty if it is the question, which a checker of the task then reads."""
    gold = grade.gold if grade.gold is not None else _target(sample)
    return "" if sample and gold.strip() == sample.question.strip() else gold


def _category(entry: RunEntry, task: str, sample: Sample | None) -> str:
    """The document's category, else the first group that holds its task."""
    groups = (group.name for group in entry.run.groups.values() if task in group.tasks)
    return (sample.category if sample else "") or next(groups, "")


def _right_drafts(grade: GradedTrace) -> int | None:
    drafts = grade.layer(0)
    graded = len(drafts) > 1 and all(draft.right is not None for draft in drafts)
    return sum(draft.right is True for draft in drafts) if graded else None


def _changed(grade: GradedTrace) -> int | None:
    """See ``PageSample.changed``."""
    layers = [_leading(grade, layer) for layer in range(max(text.layer for text in grade.texts) + 1)]
    if len(layers) < 2 or not any(layers):
        return None
    return next((number for number, answers in enumerate(layers) if answers and not answers & layers[0]), 0)


def _leading(grade: GradedTrace, layer: int) -> set[str]:
    """The most frequent answers of a layer."""
    counts = Counter(text.answer for text in grade.layer(layer) if text.answer is not None)
    return {answer for answer, count in counts.items() if count == max(counts.values())}


def _messages(chat: Chat) -> tuple[PageMessage, ...]:
    return tuple(PageMessage(message.role, message.content) for message in chat.messages)


def _texts(trace: Trace, grade: GradedTrace, spoken: Sequence[str]) -> Iterator[PageText]:
    first = [text for draft, text in zip(trace.drafts, spoken, strict=True) if not draft.layer]
    for draft, graded, text in zip(trace.drafts, grade.texts, spoken, strict=True):
        yield PageText(
            layer=draft.layer,
            index=draft.index,
            text=draft.completion.text,
            answer=graded.answer,
            right=graded.right,
            seed=str(draft.seed),
            generated_tokens=draft.completion.generated_tokens,
            finish_reason=draft.completion.finish_reason,
            copies=grade.copies(graded, draft.layer - 1),
            nearest=nearest_text(text, first) if draft.layer and text.strip() else None,
            spoken=None if text == draft.completion.text else text,
        )


def _from_log(entry: RunEntry, sample: Sample, score: Score) -> PageSample:
    """What lm-eval logged: the prompt, the first response and the score."""
    chat = decode(sample.prompt)
    text = str(sample.resps[0]) if sample.resps else ""
    return PageSample(
        run=entry.label,
        task=sample.key.task,
        doc_id=sample.key.doc_id,
        question=sample.question or chat.messages[-1].content,
        messages=_messages(chat),
        texts=(PageText(0, 0, text),),
        answer=text,
        gold=_target(sample),
        right=_right(sample, score),
        score=_score(sample, score),
        category=_category(entry, sample.key.task, sample),
        rendered=sample.rendered,
    )


def _right(sample: Sample, score: Score) -> bool | None:
    """Whether a metric of 0 or 1 says that the answer is right; None for other metrics."""
    value = sample.metrics.get(score.metric)
    return bool(value) == score.higher_is_better if value in (0, 1) else None


def _target(sample: Sample | None) -> str:
    return "" if sample is None or sample.target in ("None", "") else sample.target


def _score(sample: Sample | None, score: Score | None) -> str:
    """The task's own metric for this question, with its name."""
    if sample is None or score is None or sample.metrics.get(score.metric) is None:
        return ""
    filtered = "" if score.filter == "none" else f" ({score.filter})"
    value = sample.metrics[score.metric]
    number = f"{value:g}" if isinstance(value, int | float) else str(value)
    return f"{score.metric}{filtered}: {number}"
