"""What the page shows of each question of a run: from its traces where there are some, else from lm-eval's log.

Joins traces, verdicts and logged scores; knows nothing of HTML. Called by ``report``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lm_eval_aft.analysis.conditions import primary
from lm_eval_aft.analysis.diagnosis import diagnose_traces
from lm_eval_aft.analysis.grading import GradedTrace
from lm_eval_aft.analysis.report.diagnosis_tables import DiagnosticsPanel, diagnostics_panel
from lm_eval_aft.analysis.report.page.data import PageMessage, PageSample, PageText
from lm_eval_aft.analysis.runs import RunEntry, by_question
from lm_eval_aft.core.chat import decode
from lm_eval_aft.core.records import Draft, Trace
from lm_eval_aft.storage.results import Sample, Score

Asked = tuple[str, int, str]  # task, document, its hash


def run_samples(
    entry: RunEntry, others: Sequence[RunEntry] = ()
) -> tuple[tuple[DiagnosticsPanel, ...], tuple[PageSample, ...]]:
    """The diagnostics panels of one run (none where nothing was aggregated) and its samples.

    Args:
        entry: The run. Questions whose samples were not logged are shown from the traces alone; without traces, what
            lm-eval logged is shown.
        others: Further runs whose logged samples may hold the gold answers.
    """
    label, logged = entry.label, _logged(entry)
    kept = by_question(entry.traces(), lambda trace: trace)
    found = diagnose_traces(kept.values(), [entry, *others])
    verdicts = {(v.task, v.doc_id, v.repeat, v.turn): v for each in found for v in each.verdicts}
    traced = [_from_trace(label, trace, verdicts[key], logged) for key, trace in kept.items()]
    shown = {sample.task for sample in traced}
    plain = [_from_log(label, *each) for asked, each in logged.items() if asked[0] not in shown]
    read = (each.diagnostics for each in found if each.diagnostics.layers or each.diagnostics.scored)
    panels = tuple(diagnostics_panel(numbers, label) for numbers in read)
    return panels, (*traced, *plain)


def _logged(entry: RunEntry) -> dict[Asked, tuple[Sample, Score]]:
    """The logged samples under each task's main score, in their order."""
    found = {}
    for task in entry.run.tasks:
        if entry.logged(task):
            score = primary(entry.run, task)
            for sample in entry.samples(task):
                if sample.key.filter == score.filter:
                    found[task, sample.key.doc_id, sample.key.doc_hash] = (sample, score)
    return found


def _from_trace(
    label: str, trace: Trace, verdict: GradedTrace, logged: Mapping[Asked, tuple[Sample, Score]]
) -> PageSample:
    asked = trace.question
    sample, score = logged.get((asked.task, asked.doc_id, asked.doc_hash), (None, None))
    messages = tuple(PageMessage(message.role, message.content) for message in asked.chat.messages)
    right = verdict.right
    if right is None and sample and score:
        right = _right(sample, score)
    return PageSample(
        run=label,
        task=asked.task,
        doc_id=asked.doc_id,
        question=(sample.question if sample else "") or messages[-1].text,
        messages=messages,
        texts=tuple(_texts(trace.drafts, verdict)),
        answer=trace.answer,
        gold=verdict.gold if verdict.gold is not None else _target(sample),
        right=right,
        fixed=verdict.fixed,
        broken=verdict.broken,
        score=_score(sample, score),
        repeat=asked.repeat,
        turn=asked.turn,
    )


def _texts(drafts: Iterable[Draft], verdict: GradedTrace) -> Iterator[PageText]:
    for draft, judged in zip(drafts, verdict.texts, strict=True):
        yield PageText(
            layer=draft.layer,
            index=draft.index,
            text=draft.completion.text,
            answer=judged.answer,
            right=judged.right,
            seed=str(draft.seed),
            generated_tokens=draft.completion.generated_tokens,
            finish_reason=draft.completion.finish_reason,
            copies=verdict.copies(judged, draft.layer - 1),
        )


def _from_log(label: str, sample: Sample, score: Score) -> PageSample:
    """What lm-eval logged of another model: the prompt, the first response, the score."""
    chat = decode(sample.prompt)
    text = str(sample.resps[0]) if sample.resps else ""
    right = _right(sample, score)
    return PageSample(
        run=label,
        task=sample.key.task,
        doc_id=sample.key.doc_id,
        question=sample.question or chat.messages[-1].content,
        messages=tuple(PageMessage(message.role, message.content) for message in chat.messages),
        texts=(PageText(0, 0, text),),
        answer=text,
        gold=_target(sample),
        right=right,
        score=_score(sample, score),
    )


def _right(sample: Sample, score: Score) -> bool | None:
    """Whether a 0/1 metric says right; None for graded ones."""
    value = sample.metrics.get(score.metric)
    return bool(value) == score.higher_is_better if value in (0, 1) else None


def _target(sample: Sample | None) -> str:
    return "" if sample is None or sample.target in ("None", "") else sample.target


def _score(sample: Sample | None, score: Score | None) -> str:
    """The task's own metric for this question, in words."""
    if sample is None or score is None or sample.metrics.get(score.metric) is None:
        return ""
    under = "" if score.filter == "none" else f" ({score.filter})"
    value = sample.metrics[score.metric]
    return f"{score.metric}{under}: {value:g}" if isinstance(value, int | float) else f"{score.metric}{under}: {value}"
