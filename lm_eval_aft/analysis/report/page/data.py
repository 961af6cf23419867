"""The values that the HTML page shows.

Every text may come from a model, and the page shows it as text. Numbers are unrounded, beside the text that shows them,
so that tables sort by value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval_aft.analysis.report.diagnosis_tables import DiagnosticsPanel
    from lm_eval_aft.analysis.report.tables import Table


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """One point of a curve.

    Attributes:
        x: Where it stands.
        y: The score.
        low: Lower end of the interval of y; None if there is none.
        high: Upper end.
        label: What the point is.
        x_text: x as it is shown.
        y_text: y with its interval, as they are shown.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    x_text: str = ""
    y_text: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points that a line joins in their order. A dashed one is a reference, such as the majority vote."""

    name: str
    points: tuple[ChartPoint, ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over one pair of axes; ``log_x`` needs x above 0."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False


@dataclass(frozen=True, slots=True)
class Effect:
    """Another run against the baseline on one metric of one task or group, or on a part of it.

    The numbers are for the drawing alone. ``texts`` are the same as in the table of ``aft compare``.

    Attributes:
        baseline: Name of the baseline run.
        other: Name of the other run.
        name: Name of the task, the group or the category.
        metric: Name of the metric, with its filter.
        verdict: "better", "worse", "no difference shown" or "neither better nor worse".
        texts: Every number as a text, by the key of its column.
        difference: Other minus baseline, in the shown unit.
        low: Lower end of its interval; None if there is none.
        high: Upper end.
        outcomes: Numbers of questions on which the other run scored above, level with and below the baseline, each with
            "better", "level" or "worse".
        unit: Equal for differences that can be drawn on one scale.
        part: Whether this is a part of the comparison above it.
        level: Confidence of the interval, as a text such as 95%.
        notes: Remarks, a sentence each.
    """

    baseline: str
    other: str
    name: str
    metric: str
    verdict: str
    texts: Mapping[str, str]
    difference: float
    low: float | None
    high: float | None
    outcomes: tuple[tuple[str, int], ...]
    unit: str = ""
    part: bool = False
    level: str = "95%"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PageMessage:
    """One message of a prompt."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class PageText:
    """One generation and its place among the layers.

    Attributes:
        layer: 0 for the drafts.
        index: Position in the layer, from 0.
        text: The whole text.
        answer: The answer found in it; None if there is none, or none was looked for.
        right: Whether that is the gold answer; None if the text was not graded.
        seed: As a decimal string, because a browser's numbers end at 2**53.
        generated_tokens: None if unknown.
        finish_reason: "stop" or "length"; empty if unknown.
        copies: Positions, from 0, of the texts in its prompt that it repeats word for word.
    """

    layer: int
    index: int
    text: str
    answer: str | None = None
    right: bool | None = None
    seed: str = ""
    generated_tokens: int | None = None
    finish_reason: str = ""
    copies: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PageSample:
    """One question of one run, with every generation for it.

    Attributes:
        run: Name of the run.
        task: Name of the task.
        doc_id: Row of the document in its split.
        question: The last user turn, shown in the list and searched.
        messages: All turns of the prompt.
        texts: Drafts, layers and the last text, in order; one text for a single answer.
        answer: What lm-eval scored: the last text, cut at the task's stop strings.
        gold: The gold answer; empty if there is none.
        right: Whether the answer is right; None if it was not graded.
        fixed: Right, and the majority vote of its drafts is wrong.
        broken: Wrong, and the majority vote of its drafts is right.
        score: The task's own metric for this question, with its name; empty if unknown.
        repeat: Which of the task's repeats this is.
        turn: Which turn of a dialogue was answered.
    """

    run: str
    task: str
    doc_id: int
    question: str
    messages: tuple[PageMessage, ...]
    texts: tuple[PageText, ...]
    answer: str
    gold: str = ""
    right: bool | None = None
    fixed: bool = False
    broken: bool = False
    score: str = ""
    repeat: int = 0
    turn: int = 0


@dataclass(frozen=True, slots=True)
class PageData:
    """Everything on one page; a part without data is left out.

    Attributes:
        title: Its heading.
        made: The version and the runs, in one line. It holds no time, so that equal runs give equal pages.
        leaderboard: One row a run.
        charts: Score against cost, k and layers.
        effects: Comparisons with a baseline.
        diagnostics: One panel for each run and task with traces.
        samples: All questions of all runs.
        notes: Shown under the heading, a sentence each.
    """

    title: str
    made: str = ""
    leaderboard: Table | None = None
    charts: tuple[Chart, ...] = ()
    effects: tuple[Effect, ...] = ()
    diagnostics: tuple[DiagnosticsPanel, ...] = ()
    samples: tuple[PageSample, ...] = ()
    notes: tuple[str, ...] = ()
