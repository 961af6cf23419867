"""The comparisons of the page: the runs, the votes of equal cost, their axis, columns and notes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from helpers.made_runs import make_run
from helpers.made_traces import trace_of_texts
from lm_eval_aft.analysis.comparison import compare_all
from lm_eval_aft.analysis.report.leaderboard import leaderboard
from lm_eval_aft.analysis.report.page.build import write_report
from lm_eval_aft.analysis.report.page.effects import effects, vote_sentences
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.storage.traces import write_traces


def test_runs_of_one_task_are_a_group_on_one_axis(tmp_path: Path):
    for name, right in {"base": 20, "good": 34, "bad": 6}.items():
        make_run(tmp_path / name, [1] * right + [0] * (40 - right), model=name, categories=["x", "y"] * 20)
    entries = read_entries([tmp_path / name for name in ("base", "good", "bad")])
    gaps = {("good (5, 2)", "t"): Interval(0.5, 0.25, 0.75, 0.95, "bca", 40)}
    shown = effects(compare_all(entries, None), entries, gaps)
    (group,) = shown.groups
    assert group.title == "t acc, %; 40 questions"
    assert [(effect.run, effect.name, effect.kind) for effect in group.effects] == [
        (f"{run} (5, 2)", name, kind)
        for run in ("good", "bad")
        for name, kind in (("t", "run"), ("x", "part"), ("y", "part"))
    ]
    assert group.effects[0].texts["gap_closed"] == "50.0 [25.0, 75.0]"
    assert group.axis.low < min(effect.low for effect in group.effects)
    assert group.axis.high > max(effect.high for effect in group.effects)
    # Nothing is corrected on one task, and the categories have another n.
    assert [key for key, _, _ in shown.columns] == [
        "p", "above_level_below", "token_ratio", "gap_closed", "detectable", "n",
    ]  # fmt: skip
    assert "Nothing is corrected over the 2 runs." in shown.notes[2]


def test_a_vote_of_equal_cost_and_its_oracle_are_on_the_same_axis(tmp_path: Path):
    made = [trace_of_texts(["is 7", "is 7", "is 8"], ["is 7"], doc=doc, model="m") for doc in range(20)]
    traces = [replace(trace, usage=Usage(4, 20, 20, 8)) for trace in made]
    settings = {**traces[0].settings, "k": 3, "layers": 1}
    for name, right in {"base": 5, "ours": 20}.items():
        scores = [1.0] * right + [0.0] * (20 - right)
        path = make_run(tmp_path / name, scores, task="gsm8k", k=3, layers=1, model="m", metric="exact_match", tokens=8)
        file = path.with_name(path.name.replace("results", "samples_gsm8k").replace(".json", ".jsonl"))
        file.write_text(file.read_text().replace('"18"', '"#### 7"'))
    write_traces(str(tmp_path / "ours" / "traces"), settings, traces)
    entries = read_entries([tmp_path / "base", tmp_path / "ours"])
    shown = effects(compare_all(entries, None), entries, {})
    (group,) = shown.groups
    run, vote, bound = group.effects
    assert [each.kind for each in group.effects] == ["run", "vote", "bound"]
    assert vote.name.startswith("majority vote of 3, ")
    assert bound.name.startswith("oracle bound of 3, ")
    assert (vote.verdict, vote.texts["baseline"], vote.texts["score"]) == ("", "100.0", "100.0")
    assert run.difference == 75
    assert vote_sentences(shown) == {
        (run.run, "gsm8k"): f"Against the {vote.name} (x 1.33 its tokens): {vote.texts['difference']} points."
    }
    assert any("it is an upper bound" in note for note in shown.notes)


def test_a_page_of_one_run_compares_nothing(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0])
    entries = read_entries([tmp_path / "a"])
    assert effects(compare_all(entries, None), entries, {}) is None
    assert vote_sentences(None) == {}


def test_a_page_says_which_parts_it_lacks_and_why(tmp_path: Path):
    path = make_run(tmp_path / "a", [1, 0])
    for samples in path.parent.glob("samples_*"):
        samples.unlink()
    entries = read_entries([tmp_path / "a"], keep=True)
    write_report(tmp_path / "page.html", entries, leaderboard(entries), None)
    data = json.loads(re.search(r'id="data">([^<]*)<', (tmp_path / "page.html").read_text())[1])
    traces, logged = data["notes"]
    assert traces.endswith("run with record=DIR.")
    assert logged.endswith("run with --log_samples.")
