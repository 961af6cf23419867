"""What the page shows, as plain values: whoever fills a ``PageData`` needs to know nothing of HTML.

Every text here may come from a model and is shown as text, whatever it holds. Numbers are given unrounded beside the
text that shows them, so that tables sort by value. ``report`` and ``compare`` fill these, ``page`` draws them. Over 200
lines because each field says what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        label: Its head.
        numeric: Aligned to the right, and sorted by value, largest first.
        title: What it means, in a sentence.
    """

    label: str
    numeric: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        text: What is shown.
        value: What it is sorted by; None sorts by the text, and last in a numeric column.
        note: A remark, shown when the cell is pointed at or read aloud.
    """

    text: str
    value: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row; ``notes`` says why it must not be compared with the others, a sentence each."""

    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A sortable table; each row has as many cells as there are columns.

    Attributes:
        title: Its heading.
        columns: Heads, from left to right.
        rows: In the order first shown.
        notes: Shown below it, a sentence each.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve, with the interval of y where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points joined in their order; a dashed one is a reference, such as the majority vote."""

    name: str
    points: tuple[Point, ...]
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
    """Another run against the baseline on one metric of one task, or one category of it.

    Attributes:
        baseline: Name of the baseline run.
        other: Name of the other run.
        task: Name of the task.
        metric: Name of the metric.
        n: Pairs of questions.
        baseline_score: Mean score, in the metric's unit.
        other_score: The other run's.
        difference: Other minus baseline.
        low: Lower end of its interval; None where the data give none.
        high: Upper end.
        p_value: Two-sided; None where no test was made.
        p_holm: Corrected over the tasks; None where there was nothing to correct.
        wins: Questions on which the other run scored above the baseline.
        ties: Questions with equal scores.
        losses: Questions on which it scored below.
        cost_ratio: Cost a question of the other run by the baseline's; None where one is unknown.
        cost_unit: What the ratio counts, such as generated tokens.
        detectable: Least true difference that this many questions would show; None where unknown.
        category: Name of the category; empty for the whole task.
        scale: What scores are multiplied by to be shown: 100 for accuracies in percent.
        higher_is_better: False where less is better, None where neither is.
        level: Confidence of the interval.
        notes: Remarks, a sentence each.
    """

    baseline: str
    other: str
    task: str
    metric: str
    n: int
    baseline_score: float
    other_score: float
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    wins: int
    ties: int
    losses: int
    cost_ratio: float | None = None
    cost_unit: str = "generated tokens"
    detectable: float | None = None
    category: str = ""
    scale: float = 100.0
    higher_is_better: bool | None = True
    level: float = 0.95
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiagnosticsPanel:
    """What aggregation did in one run on one task: a sentence or two, and tables."""

    run: str
    task: str
    findings: tuple[str, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class PageMessage:
    """One turn of what was asked."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class PageText:
    """One generated text in its place.

    Attributes:
        layer: 0 for the drafts.
        index: Position in the layer, from 0.
        text: The whole text.
        answer: The answer found in it; None where none was, or none was looked for.
        right: Whether that is the gold answer; None where nobody judged it.
        seed: As a decimal string, since a browser's numbers end at 2**53.
        generated_tokens: Tokens generated; None where unknown.
        finish_reason: "stop" or "length"; empty where unknown.
        copies: Positions, from 0, of the texts it was shown that it repeats word for word.
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
    """One question of one run, with all that was generated for it.

    Attributes:
        run: Name of the model run.
        task: Name of the task.
        doc_id: Row of the document in its split.
        question: The last user turn, shown in the list and searched.
        messages: All turns of the prompt.
        texts: Drafts, layers and the last text, in order; one text for a plain answer.
        answer: What lm-eval scored: the last text, cut at the task's stop strings.
        gold: The gold answer; empty where there is none.
        right: Whether the answer is right; None where nobody judged it.
        fixed: Right where the majority vote of its drafts is wrong.
        broken: Wrong where the majority vote of its drafts is right.
        score: What the task's own metric gave, in words; empty where unknown.
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
    """Everything on one page; an empty part is left out of it.

    Attributes:
        title: Its heading.
        made: When, from what and by which version, in one line; no time is taken here, so that pages are repeatable.
        leaderboard: One row a run.
        charts: Score against cost, k and layers.
        effects: Comparisons with a baseline.
        diagnostics: One table or more for each run with traces.
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
