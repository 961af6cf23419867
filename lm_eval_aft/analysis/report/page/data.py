"""The values that the HTML page shows.

Every text may come from a model, and the page shows it as text. Numbers are unrounded, beside the text that shows them,
so that tables sort by value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lm_eval_aft.analysis.report.diagnosis_tables import DiagnosticsPanel
    from lm_eval_aft.analysis.report.tables import Table


EffectKind = Literal["run", "part", "vote", "bound"]


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """One point of a curve.

    Attributes:
        x: Its place on the x axis.
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
class Tick:
    """A place on an axis, and the text beside it."""

    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis in the shown unit, from ``low`` to ``high``."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """A number as a text, with the words that say what it is."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Headline:
    """What the comparisons with the baseline show on one task or group.

    Attributes:
        name: Name of the task or the group.
        run: Name of the best run.
        verdict: The verdict on it; empty if nothing was compared.
        sentences: The sentence of ``aft compare`` on that run. Then, as far as they are known, how many runs have each
            verdict, and what aggregation did.
        facts: The numbers of the first sentence one by one.
    """

    name: str
    run: str
    verdict: str
    sentences: tuple[str, ...]
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True)
class StripRow:
    """One run in a strip chart.

    Attributes:
        name: Name of the run.
        value: The score in the shown unit.
        low: Lower end of its interval; None if there is none.
        high: Upper end.
        score: The score with its interval, as a text.
        tokens: Generated tokens a question, as a text; empty if they are not known.
        ratio: These tokens divided by the baseline's, as a text; empty if one is not known.
        baseline: Whether this is the baseline.
        verdict: The verdict on this run; empty for the baseline and for a run that was not compared.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    score: str
    tokens: str
    ratio: str
    baseline: bool
    verdict: str


@dataclass(frozen=True, slots=True)
class Strip:
    """The scores of all runs on one task or group, on one axis."""

    title: str
    axis: Axis
    rows: tuple[StripRow, ...]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """How one run was made: its settings in a sentence, when it ended, and the command that makes it again."""

    name: str
    settings: str
    date: str
    command: str


@dataclass(frozen=True, slots=True)
class Effect:
    """A run against the baseline, against a part of it, or against a vote of equal cost.

    The numbers are for the drawing alone. ``texts`` are the same as in the tables of ``aft compare``.

    Attributes:
        run: Name of the run.
        name: What this row compares: the task, the group, a part of them, or the vote.
        kind: "run" for a task or a group, "part" for a category or a member, "vote" for the majority vote of as many
            drafts as cost the same, "bound" for the best of these drafts, which needs the gold answer.
        verdict: "better", "worse", "no difference shown" or "neither better nor worse"; empty for votes, which are not
            judged.
        texts: Every number as a text, by the key of its column.
        difference: The run minus what it is compared with, in the shown unit.
        low: Lower end of its interval; None if there is none.
        high: Upper end.
        outcomes: Numbers of questions that the run wins, ties and loses, each with "better", "level" or "worse". Empty
            for votes.
        notes: Remarks, a sentence each.
    """

    run: str
    name: str
    kind: EffectKind
    verdict: str
    texts: Mapping[str, str]
    difference: float
    low: float | None
    high: float | None
    outcomes: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EffectGroup:
    """All effects on one task or group, on one axis. Groups of equal units have equal axes."""

    title: str
    axis: Axis
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True)
class Effects:
    """Every comparison of the page.

    Attributes:
        columns: Key, head and meaning of the columns after the picture. A column that is empty in all rows is left out.
        groups: One for each task or group.
        notes: Shown below the table, a sentence each.
    """

    columns: tuple[tuple[str, str, str], ...]
    groups: tuple[EffectGroup, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RightDrafts:
    """Questions with the same number of right drafts.

    Attributes:
        drafts: How many of the drafts are right.
        questions: How many such questions there are, as a text.
        answer: Share of them that the answer gets right.
        vote: Share of them that the majority vote gets right; None if there is no vote.
        answer_text: ``answer`` in percent.
        vote_text: ``vote`` in percent.
    """

    drafts: int
    questions: str
    answer: float
    vote: float | None
    answer_text: str
    vote_text: str


@dataclass(frozen=True, slots=True)
class PositionCopies:
    """Answers that repeat the draft at one position, as a share of all answers, and as a text."""

    position: int
    share: float
    text: str


@dataclass(frozen=True, slots=True)
class Aggregation:
    """What aggregation did in one run on one task.

    Attributes:
        panel: Its sentences and tables.
        k: Drafts a question.
        by_right_drafts: From no right draft to k; empty if nothing is right or wrong.
        copies: By position; empty if no answer repeats a draft.
    """

    panel: DiagnosticsPanel
    k: int
    by_right_drafts: tuple[RightDrafts, ...] = ()
    copies: tuple[PositionCopies, ...] = ()


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
        nearest: Position, from 0, of the draft that a text of a later layer resembles most; None for drafts.
        spoken: The text without its thoughts; None if it has none.
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
    nearest: int | None = None
    spoken: str | None = None


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
        category: The document's category, else the group of its task; empty if there is neither.
        right_drafts: How many of several drafts are right; None if they were not graded.
        changed: The first layer whose most frequent answer is none of the drafts'; 0 if there is none, and None if no
            answer can be found or no layer wrote one.
        rendered: The prompt of a draft as the model got it; empty if it was not logged.
        prompts: The system message of each aggregation layer, with the texts that it read; empty if they are not known.
        choice: With ``strategy=select``, what the model wrote to name the best text; else empty.
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
    category: str = ""
    right_drafts: int | None = None
    changed: int | None = None
    rendered: str = ""
    prompts: tuple[str, ...] = ()
    choice: str = ""


@dataclass(frozen=True, slots=True)
class PageData:
    """Everything on one page; a part without data is left out.

    Attributes:
        title: Its heading: the runs and the tasks.
        made: The version, the number of runs and when they ended. The time at which the page was written is no part of
            it, so that equal runs give equal pages.
        headlines: What the comparisons show, for each task or group.
        strips: The scores of all runs, for each task or group.
        leaderboard: One row a run, without the columns that are equal in all rows.
        models: The cost of each model of the runs with several.
        drafts: What the drafts of each run score alone.
        charts: Score against cost, k and layers.
        effects: Comparisons with a baseline.
        diagnostics: What aggregation did, for each run and task with traces.
        samples: All questions of all runs.
        featured: The place of the sample that is open at first; None opens none.
        runs: How each run was made.
        shared: The columns of the leaderboard that are equal in all rows.
        notes: Shown under the headlines, a sentence each.
    """

    title: str
    made: str = ""
    headlines: tuple[Headline, ...] = ()
    strips: tuple[Strip, ...] = ()
    leaderboard: Table | None = None
    models: Table | None = None
    drafts: Table | None = None
    charts: tuple[Chart, ...] = ()
    effects: Effects | None = None
    diagnostics: tuple[Aggregation, ...] = ()
    samples: tuple[PageSample, ...] = ()
    featured: int | None = None
    runs: tuple[RunFacts, ...] = ()
    shared: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()
