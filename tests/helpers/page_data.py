"""Pages for tests: a small tidy one, a hostile one, and one as large as a whole benchmark."""

from __future__ import annotations

import random
from dataclasses import fields, is_dataclass, replace
from typing import Any

from lm_eval_aft.analysis.report.diagnosis_tables import DiagnosticsPanel
from lm_eval_aft.analysis.report.page.data import (
    Aggregation,
    Axis,
    Chart,
    ChartPoint,
    Curve,
    Effect,
    EffectGroup,
    Effects,
    Fact,
    Headline,
    PageData,
    PageMessage,
    PageSample,
    PageText,
    PositionCopies,
    RightDrafts,
    RunFacts,
    Strip,
    StripRow,
    Tick,
)
from lm_eval_aft.analysis.report.tables import Cell, Column, Row, Table

HOSTILE = (
    "<script>window.hacked=1</script>",
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "--></style></title><script>window.hacked=1</script>",
    '<img src=x onerror="window.hacked=1">',
    '"><svg onload=window.hacked=1>',
    "' onmouseover='window.hacked=1",
    '<img src="http://127.0.0.1:9/beacon">',
    '<iframe src="data:text/html,<script>parent.hacked=1</script>"></iframe>',
    '<link rel=stylesheet href="http://127.0.0.1:9/x.css"><style>body{background:url(http://127.0.0.1:9/y)}</style>',
    '<a href="javascript:window.hacked=1">click</a>',
    '<meta http-equiv=refresh content="0;url=http://127.0.0.1:9/">',
    "[x](javascript:window.hacked=1) ![y](http://127.0.0.1:9/z)",
    "&lt;b&gt; \\u003c/script\\u003e ${window.hacked=1} {{hacked}}",
    "NUL\x00 ESC\x1b[31m bell\x07 CR\r RTL\u202egnp.exe ZW\u200b tag\U000e0041 half\ud800 line\u2028",
)


def leaderboard() -> Table:
    columns = (
        Column("model", "model"),
        Column("k", "k", True, "drafts, and texts per hidden layer"),
        Column("gsm8k/acc/none", "gsm8k %", True),
    )
    rows = (
        Row((Cell("beta"), Cell("5", 5), Cell("24.5 ± 1.2", 0.245))),
        Row((Cell("alpha 10"), Cell("-"), Cell("28.0 ± 1.2", 0.28)), ("4 questions instead of 12.",)),
        Row((Cell("alpha 9"), Cell("1", 1), Cell("9.0 ± 1.2", 0.09, "12 questions"))),
    )
    return Table("Scores and cost", columns, rows, ("Cost is per question.",))


def sample(doc: int = 0, run: str = "run A", texts: tuple[PageText, ...] | None = None, **more: Any) -> PageSample:
    made = texts or (
        PageText(0, 0, f"draft one of {doc}: 7", "7", True, "4611686018427387905", 12, "stop"),
        PageText(0, 1, f"draft two of {doc}: 8", "8", False, "2", 34, "length"),
        PageText(1, 0, f"draft two of {doc}: 8", "8", False, "3", 34, "stop", copies=(1,), nearest=1),
    )
    asked = (PageMessage("system", "be brief"), PageMessage("user", f"question {doc}?"))
    chosen = {"gold": "7", "right": False, **more}
    return PageSample(run, "gsm8k", doc, f"question {doc}?", asked, made, made[-1].text, **chosen)


def small_page() -> PageData:
    """Every part of a page, with a sample of each grade."""
    curve = Curve(
        "K=5",
        tuple(
            ChartPoint(x, y, y - 2, y + 2, f"L={i}", str(x), f"{y} [{y - 2}, {y + 2}]")
            for i, (x, y) in enumerate([(100, 20), (900, 25)])
        ),
    )
    vote = Curve("majority vote", (ChartPoint(100, 20), ChartPoint(500, 26.5)), dashed=True)
    findings = ("2 fixed, 1 broken.", "Drafts disagree on 3 questions.", "81.0% of the answers repeat a draft.")
    panel = DiagnosticsPanel("run A", "gsm8k", ("5 questions.",), findings, (leaderboard(), leaderboard()))
    right_drafts = (
        RightDrafts(0, "2", 0.0, 0.0, "0%", "0%"),
        RightDrafts(1, "1.5", 0.75, 0.25, "75%", "25%"),
        RightDrafts(2, "1", 1.0, None, "100%", ""),
    )
    copies = (PositionCopies(1, 0.2, "20.0% (1)"), PositionCopies(2, 0.4, "40.0% (2)"))
    thought = PageText(0, 0, "<think>hard</think>it is 6", "6", False, spoken="it is 6")
    answer = PageText(1, 0, "draft one of 1 is 7", "7", True, nearest=0)
    samples = (
        sample(0, right=True, right_drafts=1, changed=0, category="sums"),
        sample(1, texts=(*sample(1).texts[:2], answer), right=True, fixed=True, right_drafts=1, changed=1),
        sample(2, broken=True, right_drafts=2, changed=1, rendered="<user>question 2?", prompts=("2 drafts:",)),
        sample(3, category="sums"),
        sample(0, "run B", texts=(thought,), right=None),
    )
    charts = (Chart("Accuracy against tokens", "tokens", "accuracy, %", (curve, vote), log_x=True),)
    return PageData(
        title="A small page",
        made="made by hand",
        headlines=(small_headline(),),
        strips=(small_strip(),),
        leaderboard=leaderboard(),
        charts=charts,
        effects=small_effects(),
        diagnostics=(Aggregation(panel, 2, right_drafts, copies),),
        samples=samples,
        runs=(RunFacts("sft", "engine hf, seed 1", "2026-11-30 12:00", "lm_eval --model aft"),),
        shared=(Fact("engine", "hf"),),
        notes=("mt_bench is left out.",),
    )


def small_effects() -> Effects:
    """A run against the baseline and against a vote on one task, and against the baseline on another."""
    texts = {
        "n": "1,319", "baseline": "28.0", "score": "24.4", "difference": "-3.6 [-6.1, -1.1]", "p": "0.005",
        "p_holm": "0.010", "above_level_below": "118/1,035/166", "detectable": "3.6", "token_ratio": "x 9.6",
        "gap_closed": "-12.0 [-20.0, -3.0]",
    }  # fmt: skip
    outcomes = (("better", 118), ("level", 1035), ("worse", 166))
    effect = Effect("aft", "gsm8k", "run", "worse", texts, -3.6, -6.1, -1.1, outcomes, ("Another seed.",))
    vote = {
        "baseline": "30.0",
        "score": "24.4",
        "difference": "-5.6 [-8.0, -3.0]",
        "p": "0.001",
        "token_ratio": "x 1.2",
    }
    against = Effect("aft", "majority vote of 9, sft", "vote", "", vote, -5.6, -8.0, -3.0)
    open_end = {**dict.fromkeys(texts, "-"), "difference": "+1.10", "above_level_below": "50/20/10"}
    graded = Effect("aft", "mt_bench", "run", "no difference shown", open_end, 1.1, None, None, outcomes)
    points = Axis(-10, 10, (Tick(-5, "-5"), Tick(0, "0"), Tick(5, "+5")), "difference, points")
    ratings = Axis(-2, 2, (Tick(0, "0"),), "difference")
    columns = tuple(
        (key, key, f"the {key}") for key in ("p", "p_holm", "above_level_below", "token_ratio", "gap_closed")
    )
    groups = (
        EffectGroup("gsm8k exact_match, %", points, (effect, against)),
        EffectGroup("mt_bench", ratings, (graded,)),
    )
    return Effects(columns, groups, ("Baseline: sft.",))


def small_headline() -> Headline:
    facts = (Fact("difference in points", "-3.6 [-6.1, -1.1]"), Fact("generated tokens", "x 9.6"))
    sentences = ("gsm8k: aft is 3.6 points worse than sft.", "This is the best of 2 runs against sft: 2 worse.")
    return Headline("gsm8k", "aft", "worse", sentences, facts)


def small_strip() -> Strip:
    axis = Axis(20, 30, (Tick(20, "20"), Tick(25, "25"), Tick(30, "30")), "acc, %")
    rows = (
        StripRow("sft", 28.0, 26.8, 29.2, "28.0 [26.8, 29.2]", "110", "x 1", True, ""),
        StripRow("aft", 24.4, 23.2, 25.6, "24.4 [23.2, 25.6]", "1,056", "x 9.6", False, "worse"),
        StripRow("other", 24.4, None, None, "24.4", "", "", False, ""),
    )
    return Strip("gsm8k, 1,319 questions", axis, rows)


def hostile_page() -> PageData:
    """The small page with a hostile string before every string, and a sample for each hostile string."""
    page = small_page()
    more = tuple(
        sample(number, texts=(PageText(0, 0, text, text, True, text, 1, text),), gold=text, score=text)
        for number, text in enumerate(HOSTILE, 10)
    )
    huge = "<b>" + "x" * 2**20 + " THE END"
    mebibyte = sample(99, texts=(PageText(0, 0, huge, answer=huge),), gold=huge)
    poisoned = {f.name: _poison(getattr(page, f.name), f.name) for f in fields(page)}
    poisoned["samples"] = (*poisoned["samples"], *_poison(more, "samples"), mebibyte)
    return PageData(**poisoned)


def _poison(value: Any, name: str) -> Any:
    if is_dataclass(value):
        return type(value)(**{f.name: _poison(getattr(value, f.name), f.name) for f in fields(value)})
    if isinstance(value, tuple):
        return tuple(_poison(each, name) for each in value)
    if isinstance(value, dict):
        return {key: _poison(each, name) for key, each in value.items()}
    if not isinstance(value, str) or value in HOSTILE:
        return value
    return HOSTILE[sum(map(ord, value + name)) % len(HOSTILE)] + value


def _prompts(texts: tuple[PageText, ...], k: int) -> tuple[str, ...]:
    """What the layers of a large page read: k texts each."""
    layers = (texts[start : start + k] for start in range(0, len(texts) - 1, k))
    return tuple("\n".join(f"[draft]\n{text.text}\n[/draft]" for text in layer) for layer in layers)


def large_page(questions: int = 1319, k: int = 5, layers: int = 2) -> PageData:
    """A benchmark of realistic lengths: few-shot prompts of 2,400 characters, texts of about 500."""
    rng = random.Random(0)
    words = ["".join(rng.choice("aeioubcdlmnrst") for _ in range(rng.randint(2, 9))) for _ in range(4000)]
    write = lambda count: " ".join(rng.choices(words, k=count))  # noqa: E731
    shots = tuple(PageMessage(role, write(40)) for _ in range(5) for role in ("user", "assistant"))
    samples = []
    for doc in range(questions):
        places = [(layer, i) for layer in range(layers) for i in range(k)] + [(layers, 0)]
        texts = tuple(
            PageText(layer, i, write(80), str(i), i == 0, str(rng.getrandbits(62)), 110, "stop") for layer, i in places
        )
        question = write(40)
        asked = (*shots, PageMessage("user", question))
        needle = "the needle" if doc == questions - 1 else ""
        answer = texts[-1].text
        rendered = "".join(f"<{message.role}>{message.text}" for message in asked)
        made = PageSample("run", "gsm8k", doc, question, asked, texts, answer, needle, doc % 3 == 0, doc % 6 == 0)
        samples.append(
            replace(made, right_drafts=doc % 6, changed=doc % 3, rendered=rendered, prompts=_prompts(texts, k))
        )
    return PageData("A large page", leaderboard=leaderboard(), samples=tuple(samples), featured=questions - 10)
