"""Figures from a folder of runs: their points and intervals, and the files."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from helpers.made_runs import make_run, two_tasks
from lm_eval_aft.analysis.conditions import votable
from lm_eval_aft.analysis.curves import curves, votes_of
from lm_eval_aft.analysis.frontier import Frontier, FrontierPoint, frontiers, make_frontier, rising
from lm_eval_aft.analysis.losses import LossCurve, read_losses
from lm_eval_aft.analysis.report.figures import PALETTE, draw_costs, draw_frontier
from lm_eval_aft.analysis.report.frontier_tables import frontier_table
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.analysis.scores import score_interval
from lm_eval_aft.analysis.stats import Interval, mean_interval
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.records import Chat, Completion, Draft, Message, Question, Sampling, Trace
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.storage.results import Score
from lm_eval_aft.storage.traces import read_traces, write_traces

PLAIN = Sampling(0.7, 0.95, 0, 64)
SHAPE = {"parameters": 100_000_000, "layers": 30, "attention_width": 576}
COMMON = {"model": "some/model", "seed": 1, "fingerprint": "f"}
FILTERS = ("strict-match", "flexible-extract")


def chance(k: int, layers: int) -> float:
    """An accuracy that grows with width and depth."""
    return 0.3 if layers == 0 else 0.3 + 0.04 * layers + 0.05 * k * (1 - 0.5**layers)


def run(out: Path, k: int, layers: int, n: int = 60, task: str = "gsm8k", **settings: Any) -> Path:
    """Write the results and samples of one point of a grid, as lm-eval does. Returns their folder."""
    folder = out / f"k{k}_l{layers}" / "some__model"
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{k} {layers}")
    right = [rng.random() < chance(k, layers) for _ in range(n)]
    each = 100 * (k * layers + 1)
    usage = {
        "generations": n * (k * layers + 1),
        "prompt_tokens": 9,
        "computed_prompt_tokens": 9,
        "generated_tokens": n * each,
        "flops": n * each * 2 * 10**8,
    }
    row = {f"exact_match,{name}": sum(right) / n for name in FILTERS} | {
        f"exact_match_stderr,{name}": 0.05 for name in FILTERS
    }
    ours = {**COMMON, "k": k, "layers": layers, "generations_per_question": k * layers + 1, "usage": usage}
    config = {"model": "aft", "aft": {**ours, "model_shape": SHAPE, **settings}}
    data = {"results": {task: row}, "n-samples": {task: {"effective": n}}, "config": config}
    (folder / "results_1.json").write_text(json.dumps(data))
    rows = [
        {"doc_id": doc, "doc_hash": f"h{doc}", "target": "#### 7", "filter": name, "resps": [["?"]]}
        | {"filtered_resps": ["?"], "metrics": ["exact_match"], "exact_match": float(right[doc])}
        for name in FILTERS
        for doc in range(n)
    ]
    (folder / f"samples_{task}_1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    return folder


def record(folder: Path, k: int, layers: int, n: int = 60, task: str = "gsm8k", **settings: Any) -> None:
    """Write traces of such a run. Three drafts in ten are right, and wrong answers differ."""
    rng = random.Random(0)
    values = {**COMMON, "k": k, "layers": layers, **settings}
    each = 100 * (k * layers + 1)
    usage = Usage(k * layers + 1, 9, 9, each, each * 2 * 10**8)
    traces = []
    for doc in range(n):
        ease = rng.betavariate(1, 2)
        texts = ["is 7" if rng.random() < ease else f"is {rng.randint(10, 14)}" for _ in range(k)]
        drafts = [
            Draft(0, i, i, Completion(text, (), "stop", 80, 0 if i else 80, 100), reused=False, elapsed_s=0.0)
            for i, text in enumerate(texts)
        ]
        question = Question(Chat((Message("user", f"q{doc}"),)), PLAIN, PLAIN, task, doc, f"h{doc}")
        traces.append(Trace(question, tuple(drafts), (), "is 7", usage, Usage(), values))
    write_traces(str(folder), values, traces)


def grid(out: Path, n: int = 60) -> Path:
    for k, layers in ((1, 0), *((k, layers) for k in (1, 3, 5) for layers in (1, 2, 3))):
        run(out, k, layers, n)
        record(out / "traces", k, layers, n)
    return out


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's grid, with traces."""
    return grid(tmp_path_factory.mktemp("grid"))


def plot(*arguments: object) -> str:
    result = CliRunner().invoke(aft, ["plot", *map(str, arguments)])
    if result.exception:
        raise result.exception
    return result.output


def test_each_run_is_a_point_with_the_interval_of_its_samples(out: Path):
    strict, flexible = curves(read_entries([out]))
    assert (strict.name, flexible.name) == ("gsm8k_exact_match_strict-match", "gsm8k_exact_match_flexible-extract")
    assert [(point.layers, point.k) for point in strict.points] == [
        (0, 1),
        *((layers, k) for layers in (1, 2, 3) for k in (1, 3, 5)),
    ]
    last = strict.points[-1]
    assert (last.generated_tokens, last.flops) == (1600, 1600 * 2 * 10**8)
    assert last.score.method in ("wilson", "clopper-pearson")
    assert last.score.low < last.score.estimate < last.score.high


def test_without_samples_the_interval_is_lm_evals(tmp_path: Path):
    folder = run(tmp_path, 3, 1)
    (entry,) = read_entries([folder])
    score = entry.run.scores[0]
    values = [1.0] * round(60 * score.value) + [0.0] * (60 - round(60 * score.value))
    assert score_interval(entry, score) == mean_interval(values)
    (folder / "samples_gsm8k_1.jsonl").unlink()
    interval = score_interval(entry, score)
    assert (interval.method, interval.high - interval.estimate) == ("stderr", pytest.approx(1.96 * 0.05, rel=1e-3))


def test_a_score_that_is_no_mean_of_its_samples_keeps_lm_evals_error(tmp_path: Path):
    folder = run(tmp_path, 3, 1)
    data = json.loads((folder / "results_1.json").read_text())
    data["results"]["gsm8k"]["exact_match,strict-match"] = 0.9876
    (folder / "results_1.json").write_text(json.dumps(data))
    (entry,) = read_entries([folder])
    assert score_interval(entry, entry.run.scores[0]).method == "stderr"


def test_curves_are_a_png_and_an_svg_for_each_metric_and_filter(out: Path, tmp_path: Path):
    printed = plot(out, "--curves", "--png", tmp_path / "new" / "folder").split()
    assert [Path(line).name for line in printed] == [
        f"gsm8k_exact_match_{name}.{form}" for name in FILTERS for form in ("png", "svg")
    ]
    for png, svg in (printed[:2], printed[2:]):
        assert Path(png).read_bytes().startswith(b"\x89PNG")
        assert Path(png).stat().st_size > 20_000
        assert Path(svg).read_text(encoding="utf-8").startswith("<?xml")
    texts = written(Path(printed[3]))
    named = {"layers=1", "layers=2", "layers=3", "k=1", "k=3", "k=5", "single answer", "majority vote"}
    assert {"k (drafts)", "layers (aggregation layers)", "majority vote of 5 drafts", *named} < set(texts)
    assert "gsm8k, 60 questions: model; bars are 95% intervals" in texts
    # Neither the paper's letters nor the name of a function.
    assert not any("extract_" in text or "K=" in text or "L=" in text for text in texts)


def written(svg: Path) -> list[str]:
    """The texts of an SVG, in the order in which they were drawn."""
    tree = ElementTree.parse(svg)
    return ["".join(text.itertext()).strip() for text in tree.iter("{http://www.w3.org/2000/svg}text")]


def markers(svg: Path, colour: str) -> list[tuple[float, float]]:
    """Where the points of a colour are, from left to right, without the paler ends of bars and without the legend."""
    root = ElementTree.parse(svg).getroot()
    (legend,) = (group for group in root.iter() if group.get("id") == "legend_1")
    names = "{http://www.w3.org/2000/svg}use"
    uses = [use for use in root.iter(names) if use not in set(legend.iter(names))]
    drawn = [use for use in uses if f"fill: {colour}" in use.get("style", "") and "opacity" not in use.get("style")]
    return sorted((float(use.get("x")), float(use.get("y"))) for use in drawn)


def interval(value: float) -> Interval:
    return Interval(value, value - 0.05, value + 0.05, 0.95, "wilson", 400)


def small_frontier() -> Frontier:
    """Two models: SFT with a vote, and AFT."""
    points = [
        FrontierPoint("sft", "sft (1, 0)", 10, interval(0.4), "single answer"),
        FrontierPoint("sft", "sft vote of 5", 50, interval(0.45), "vote of 5", 5),
        FrontierPoint("sft", "sft vote of 10", 100, interval(0.5), "vote of 10", 10),
        FrontierPoint("aft", "aft (5, 2)", 100, interval(0.7), "k=5, layers=2"),
        FrontierPoint("aft", "aft (1, 1)", 20, interval(0.3), "k=1, layers=1"),
    ]
    return make_frontier("gsm8k", "exact_match", "tokens", True, points)


@pytest.mark.filterwarnings("error")
def test_the_figure_of_costs_names_each_point_beside_it(tmp_path: Path):
    png, svg = draw_costs(small_frontier(), tmp_path / "f.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    texts = written(svg)
    names = ["single answer", "vote of 5", "vote of 10", "k=1, layers=1", "k=5, layers=2"]
    assert all(texts.count(name) == 1 for name in names), texts
    assert {"sft", "aft", "majority vote of its drafts", "generated tokens a question (log scale)"} < set(texts)
    assert "gsm8k, 400 questions: score and cost of each run; bars are 95% intervals" in texts
    assert {"exact_match", "40%", "50%", "60%", "70%"} < set(texts)


def test_the_figure_of_costs_places_points_by_the_logarithm_of_cost_and_by_score(tmp_path: Path):
    _, svg = draw_costs(small_frontier(), tmp_path / "f.png")
    # The first model is moved aside by less than a hundredth, the second one as far to the other side.
    (x10, y40), (x50, y45), (x100, y50) = markers(svg, PALETTE[0])
    assert (x50 - x10) / (x100 - x10) == pytest.approx(math.log(5) / math.log(10), abs=1e-3)
    assert (y45 - y40) / (y50 - y40) == pytest.approx(0.5, abs=1e-3)
    (x20, y30), (x100b, y70) = markers(svg, PALETTE[1])
    assert (y30 - y70) / (y40 - y50) == pytest.approx(4, abs=1e-3)
    assert (x100b - x20) / (x100 - x10) == pytest.approx(math.log(5) / math.log(10), abs=1e-3)


def test_equal_figures_are_equal_files(tmp_path: Path):
    first, second = (draw_costs(small_frontier(), tmp_path / name / "f.png") for name in "ab")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_a_figure_of_many_points_names_the_best_ones(tmp_path: Path):
    points = [FrontierPoint("m", "", 10.0 * n, interval(0.5), f"k={n}, layers=1") for n in range(1, 40)]
    best = FrontierPoint("m", "", 500, interval(0.9), "k=50, layers=1")
    _, svg = draw_costs(make_frontier("t", "acc", "tokens", True, [*points, best]), tmp_path / "f.png")
    assert {text for text in written(svg) if text.startswith("k=")} == {"k=1, layers=1", "k=50, layers=1"}


def test_the_frontier_names_its_points_and_who_is_ahead(tmp_path: Path):
    _, svg = draw_frontier(small_frontier(), tmp_path / "f.png")
    texts = written(svg)
    assert {"single answer", "vote of 10", "k=5, layers=2", "aft is ahead"} < set(texts)
    assert "majority vote of its drafts" not in texts


@pytest.mark.filterwarnings("error")
def test_the_default_is_the_figure_of_tokens(out: Path, tmp_path: Path):
    printed = plot(out, "--png", tmp_path)
    assert [Path(line).name for line in printed.split()] == ["gsm8k_tokens.png", "gsm8k_tokens.svg"]
    texts = written(tmp_path / "gsm8k_tokens.svg")
    settings = [f"k={k}, layers={layers}" for k in (1, 3, 5) for layers in (1, 2, 3)]
    assert {"single answer", "vote of 5", "exact_match, flexible-extract", *settings} < set(texts)
    assert any(text.startswith("gsm8k, 60 questions: ") for text in texts)


@pytest.mark.filterwarnings("error")
def test_a_single_run_makes_no_figure_and_two_runs_make_one(tmp_path: Path):
    run(tmp_path / "runs" / "a", 5, 1)
    with pytest.raises(RecordError, match="gsm8k: one point makes no figure: give a second run, or use aft report"):
        plot(tmp_path / "runs", "--png", tmp_path / "png")
    assert not (tmp_path / "png").exists()
    run(tmp_path / "runs" / "b", 1, 0, model="some/other", fingerprint="g")
    assert "gsm8k_tokens.svg" in plot(tmp_path / "runs", "--png", tmp_path / "png")


def test_a_run_of_other_questions_is_named_as_such(tmp_path: Path):
    for name, layers, n in (("a", 1, 60), ("b", 2, 60), ("c", 3, 20)):
        run(tmp_path / name, 3, layers, n=n)
    plot(tmp_path)
    texts = written(tmp_path / "gsm8k_tokens.svg")
    assert "k=3, layers=3, 20 questions instead of 60" in texts
    assert "gsm8k: score and cost of each run; bars are 95% intervals" in texts


def test_the_vote_is_that_of_the_most_drafts_and_only_beside_free_answers(out: Path):
    from lm_eval_aft.analysis.votes import count_votes
    from lm_eval_aft.storage.traces import read_traces

    votes = count_votes(read_traces(out), read_entries([out]))
    strict, flexible = curves(read_entries([out]), votes)
    assert strict.voted == ()
    assert [point.n for point in flexible.voted] == [1, 2, 3, 4, 5]
    assert all(point.flops for point in flexible.voted)
    # The metric of aft_arith.
    exact = Score("gsm8k", "exact", "none", 0.5, None, 2)
    assert votable(exact)
    assert not votable(replace(exact, metric="f1"))


def test_settings_that_differ_in_more_than_k_and_layers_get_figures_of_their_own(tmp_path: Path):
    run(tmp_path / "a", 3, 1)
    run(tmp_path / "b", 3, 1, seed=2)
    figures = curves(read_entries([tmp_path]))
    assert [figure.name.rsplit("_", 1)[1] for figure in figures] == ["1", "1", "2", "2"]
    assert len({figure.name for figure in figures}) == 4
    assert {figure.title.rsplit(", ", 1)[1] for figure in figures} == {"seed 1 (settings 1)", "seed 2 (settings 2)"}


def test_runs_that_were_asked_other_questions_get_figures_of_their_own(tmp_path: Path):
    for name, n in (("all", 60), ("some", 20)):
        run(tmp_path / name, 3, 1, n=n)
        record(tmp_path / name, 3, 1, n=n)
    entries = read_entries([tmp_path])
    figures = curves(entries, votes_of(entries, read_traces(tmp_path)))
    assert {figure.title for figure in figures} == {
        "gsm8k, 60 questions: model",
        "gsm8k, 20 questions: model, 20 questions instead of 60",
    }
    assert len({figure.name for figure in figures}) == len(figures) == 4
    assert all(len(figure.points) == 1 and not figure.voted for figure in figures)


@pytest.mark.long
def test_runs_without_traces_and_flops_are_drawn_too(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run(tmp_path, 1, 1)
    folder = run(tmp_path, 3, 1)
    data = json.loads((folder / "results_1.json").read_text())
    data["config"]["aft"]["usage"]["flops"] = None
    data["config"]["aft"]["model_shape"] = None
    (folder / "results_1.json").write_text(json.dumps(data))
    plot(tmp_path, "--curves")
    assert "No line for the majority vote: there are no traces" in caplog.text
    with pytest.raises(ConfigError, match="use --cost tokens"):
        plot(tmp_path, "--curves", "--cost", "flops")


def test_tasks_without_extraction_have_no_vote_unless_a_regex_is_given(tmp_path: Path):
    run(tmp_path, 3, 1, task="arc")
    record(tmp_path / "traces", 3, 1, task="arc")
    assert votes_of(read_entries([tmp_path]), read_traces(tmp_path)) == ()
    (votes,) = votes_of(read_entries([tmp_path]), read_traces(tmp_path), r"(\d+)")
    assert votes.points[2].majority.estimate > 0


def test_the_cost_of_a_run_of_several_tasks_is_that_of_the_task_as_for_votes(tmp_path: Path):
    entries = read_entries([two_tasks(tmp_path)])
    tokens = {figure.title[0]: figure.points[0].generated_tokens for figure in curves(entries)}
    assert tokens == {"t": 200, "u": 100}
    scored = [(entries[0], {task: mean_interval([0.0, 1.0]) for task in "tu"})]
    assert [frontier.points[0].cost for frontier in frontiers(scored, (), "tokens")] == [200, 100]


def test_a_metric_outside_0_and_1_and_of_less_is_better(tmp_path: Path):
    for k in (1, 3):
        folder = run(tmp_path, k, 1)
        data = json.loads((folder / "results_1.json").read_text())
        data["results"]["gsm8k"] = {"ppl,none": 12.5, "ppl_stderr,none": "N/A"}
        data["higher_is_better"] = {"gsm8k": {"ppl": False}}
        (folder / "results_1.json").write_text(json.dumps(data))
    (figure,) = curves(read_entries([tmp_path]))
    assert (figure.higher_is_better, figure.measure, figure.points[0].score.method) == (False, "ppl", "none")
    assert plot(tmp_path, "--curves").splitlines()[-1].endswith("gsm8k_ppl_none.svg")
    plot(tmp_path)
    assert "ppl (lower is better)" in written(tmp_path / "gsm8k_tokens.svg")


def test_other_models_alone_are_refused_and_so_is_an_empty_folder(tmp_path: Path):
    with pytest.raises(RecordError, match="no results_"):
        plot(tmp_path)
    folder = run(tmp_path, 3, 1)
    data = json.loads((folder / "results_1.json").read_text())
    del data["config"]["aft"]
    (folder / "results_1.json").write_text(json.dumps(data))
    with pytest.raises(RecordError, match="no finished run of --model aft; aft sweep"):
        plot(tmp_path)


def test_without_matplotlib_one_sentence_names_the_extra(out: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install lm_eval_aft\[report\]"):
        plot(out)


@pytest.mark.long
def test_a_folder_that_cannot_be_written_is_named(out: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"file.*cannot be written .*give another path"):
        plot(out, "--png", tmp_path / "file")


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, lm_eval_aft.analysis.curves, lm_eval_aft.analysis.report.figures; "
        "print(sorted({'numpy', 'torch', 'lm_eval', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.usefixtures("quick_lm_eval")
@pytest.mark.long
def test_a_sweep_by_lm_eval_itself_is_read_voted_and_drawn(tmp_path: Path):
    grid_of = ["--k", "1,3", "--layers", "0,1", "--tasks", "aft_demo", "--limit", "2", "--apply_chat_template"]
    arguments = ["sweep", "--model_args", "engine=scripted", "--output_path", str(tmp_path / "out"), *grid_of]
    assert CliRunner().invoke(aft, arguments, catch_exceptions=False).exit_code == 0
    (strict, flexible) = curves(read_entries([tmp_path / "out"]))
    assert [(point.layers, point.k) for point in flexible.points] == [(0, 1), (1, 1), (1, 3)]
    assert [point.generated_tokens for point in strict.points] == [12, 24, 48]
    voted = CliRunner().invoke(aft, ["votes", str(tmp_path / "out")], catch_exceptions=False).output
    assert "aft_demo, k=3, layers=1: 2 questions" in voted
    assert len(plot(tmp_path / "out", "--curves").split()) == 4


def notes(frontier: Frontier) -> str:
    return " ".join(frontier_table(frontier).notes)


class TestFrontier:
    def point(self, model: str, cost: float, score: float) -> FrontierPoint:
        return FrontierPoint(model, f"{model} at {cost:g}", cost, mean_interval([score, score]))

    def test_what_costs_more_and_scores_less_is_not_on_it(self):
        points = [self.point("a", cost, score) for cost, score in ((1, 0.3), (2, 0.2), (3, 0.5), (4, 0.5), (5, 0.6))]
        assert [point.cost for point in rising(points, higher=True)] == [1, 3, 5]
        assert [point.cost for point in rising(points, higher=False)] == [1, 2]

    def two_models(self, out: Path) -> Path:
        """A small and a large model. A token of the large one costs four times as much."""
        small, large = ({"model": f"some/{name}", "fingerprint": name} for name in ("small", "large"))
        run(out / "small", 1, 0, **small)
        run(out / "small", 5, 3, **small)
        record(out / "small", 5, 3, **small)
        folder = run(out / "large", 5, 2, **large)
        data = json.loads((folder / "results_1.json").read_text())
        data["config"]["aft"]["usage"]["flops"] *= 4
        (folder / "results_1.json").write_text(json.dumps(data))
        return out

    def test_where_the_larger_model_overtakes(self, tmp_path: Path):
        entries = read_entries([self.two_models(tmp_path)])
        scored = [(each, {"gsm8k": score_interval(each, each.run.scores[0])}) for each in entries]
        (frontier,) = frontiers(scored, (), "flops")
        assert [point.label for point in frontier.points] == ["small (1, 0)", "small (5, 3)", "large (5, 2)"]
        assert [(c.before.model if c.before else None, c.after.model) for c in frontier.crossings] == [
            (None, "small"),
            ("small", "large"),
        ]
        assert frontier.points[-1].cost == pytest.approx(8.8e11)
        assert "From 880G FLOPs a question on, large is ahead: large (5, 2)" in notes(frontier)
        (small,) = frontiers([row for row in scored if "small" in row[0].run.model], (), "flops")
        assert "is ahead" not in notes(small)
        worse = [
            (each, {"gsm8k": mean_interval([0.0, 0.0])} if "large" in each.run.model else rest) for each, rest in scored
        ]
        assert "small is ahead at every budget: no crossing." in notes(frontiers(worse, (), "flops")[0])

    def test_two_models_of_one_name_stay_two(self, tmp_path: Path):
        for name, layers in (("a", 1), ("b", 2)):
            run(tmp_path / name, 3, layers, model=f"{name}/final", fingerprint=name)
        scored = [(each, {"gsm8k": mean_interval([0.0, 1.0])}) for each in read_entries([tmp_path])]
        (frontier,) = frontiers(scored, (), "flops")
        assert {name: [point.label for point in best] for name, best in frontier.best.items()} == {
            "a/final": ["final (3, 1)"],
            "b/final": ["final (3, 2)"],
        }

    def test_one_model_on_two_engines_stays_one(self, tmp_path: Path):
        for name, layers in (("hf", 1), ("vllm", 2)):
            run(tmp_path / name, 3, layers, model="a/final", fingerprint=f"{name}|folder:1")
        scored = [(each, {"gsm8k": mean_interval([0.0, 1.0])}) for each in read_entries([tmp_path])]
        (frontier,) = frontiers(scored, (), "flops")
        assert list(frontier.best) == ["final"]
        assert len(frontier.crossings) == 1

    def test_the_command_counts_the_votes_of_the_traces(self, tmp_path: Path):
        printed = plot(self.two_models(tmp_path / "runs"), "--frontier", "--png", tmp_path, "--regex", r"(\d+)")
        assert "gsm8k, exact_match, flexible-extract: the best of 7 points at each budget" in printed
        assert "small vote of 4" in printed
        assert (tmp_path / "gsm8k_frontier.png").read_bytes().startswith(b"\x89PNG")

    def test_csv_and_json_stand_alone_on_stdout(self, tmp_path: Path):
        runs = self.two_models(tmp_path / "runs")
        arguments = ["plot", str(runs), "--frontier", "--png", str(tmp_path), "--format", "json"]
        done = CliRunner().invoke(aft, arguments, catch_exceptions=False)
        (table,) = json.loads(done.stdout)
        assert done.stderr.strip().endswith("gsm8k_frontier.svg")
        assert [row["run"]["text"] for row in table["rows"]][-1] == "large (5, 2)"
        assert table["rows"][0]["flops"]["value"] == 100 * 2 * 10**8
        assert table["rows"][0]["score"]["low"] < table["rows"][0]["score"]["value"]
        with pytest.raises(ConfigError, match="--format json is for the table that --frontier prints"):
            plot(runs, "--format", "json")

    def test_a_vote_is_no_point_of_the_curves_but_one_of_the_frontier(self, tmp_path: Path):
        run(tmp_path / "a", 5, 1)
        run(tmp_path / "b", 7, 1, strategy="majority")
        assert [(p.k, p.layers) for p in curves(read_entries([tmp_path]))[0].points] == [(5, 1)]
        record(tmp_path / "a", 5, 1)
        assert "model majority of 7" in plot(tmp_path, "--frontier")

    def test_runs_without_a_cost_are_refused(self, tmp_path: Path):
        path = run(tmp_path, 5, 1) / "results_1.json"
        data = json.loads(path.read_text())
        data["config"]["aft"]["usage"]["prompt_tokens"] = 0
        path.write_text(json.dumps(data))
        (free,) = read_entries([tmp_path])
        with pytest.raises(RecordError, match="does not say what it cost in flops"):
            frontiers([(free, {"gsm8k": mean_interval([0.0, 1.0])})], (), "flops")

    def test_a_length_has_no_frontier(self, tmp_path: Path):
        path = run(tmp_path / "lengths", 3, 1) / "results_1.json"
        data = json.loads(path.read_text())
        data["higher_is_better"] = {"gsm8k": {"exact_match": None}}
        path.write_text(json.dumps(data))
        with pytest.raises(RecordError, match=r"model \(3, 1\) on gsm8k: no score is better or worse yet"):
            plot(tmp_path, "--frontier")
        run(tmp_path / "scores", 5, 1)
        printed = plot(tmp_path, "--frontier")
        assert "model (3, 1) on gsm8k: no score is better or worse yet" in printed
        assert "gsm8k, exact_match, flexible-extract: the best of 1 points" in printed

    def test_a_probe_is_no_way_to_answer(self, tmp_path: Path):
        run(tmp_path / "a", 5, 1)
        record(tmp_path / "a", 5, 1)
        run(tmp_path / "b", 5, 2, probe="empty")
        printed = plot(tmp_path, "--frontier", "--regex", r"(\d+)")
        assert "1 run with probe= or drafts_from= left out" in printed
        assert "probe=empty" not in printed


class TestLosses:
    def log(self, folder: Path, *rows: str) -> Path:
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text("\n".join(rows) + "\n")
        return folder

    def line(self, step: int, loss: float, key: str = "loss") -> str:
        return json.dumps({key: loss, "step": step, "tokens": 100 * step})

    def test_training_and_validation_by_tokens_and_the_last_word_of_a_step_counts(self, tmp_path: Path):
        rows = [self.line(1, 2.0), self.line(2, 1.5), self.line(2, 1.8, "eval_loss"), self.line(2, 1.4)]
        (curve,) = read_losses([self.log(tmp_path / "aft", *rows)])
        assert curve == LossCurve("aft", ((100, 2.0), (200, 1.4)), ((200, 1.8),))

    def test_one_figure_of_all_runs_and_a_folder_given_twice_counts_once(self, tmp_path: Path):
        for name in ("sft", "aft"):
            self.log(tmp_path / "runs" / name, self.line(1, 2.0), self.line(2, 1.0))
        self.log(tmp_path / "other" / "aft", self.line(1, 2.0))
        both = [tmp_path / "runs", tmp_path / "runs" / "aft", tmp_path / "other"]
        names = [str(tmp_path / "runs" / "aft"), "sft", str(tmp_path / "other" / "aft")]
        assert [curve.name for curve in read_losses(both)] == names
        printed = plot(tmp_path / "runs", "--training").split()
        assert printed == [str(tmp_path / "runs" / f"training.{form}") for form in ("png", "svg")]
        assert {"sft", "aft", "tokens seen", "Training loss"} < set(written(tmp_path / "runs" / "training.svg"))
        rows = [self.line(1, 2.0), self.line(2, 1.5), self.line(2, 1.8, "eval_loss")]
        validated = self.log(tmp_path / "validated", *rows)
        plot(validated, "--training")
        title = "Training loss (lines) and validation loss (dashed, with dots)"
        assert title in written(validated / "training.svg")
        assert (tmp_path / "runs" / "training.png").read_bytes().startswith(b"\x89PNG")

    def test_rewards_and_copies_have_panels_of_their_own(self, tmp_path: Path):
        rows = [
            json.dumps({"loss": 0.0, "reward": step / 4, "copy_rate": 0.5, "length": 9.0, "step": step, "tokens": step})
            for step in (1, 2)
        ]
        folder = self.log(tmp_path / "rl", *rows, json.dumps({"right_where_disputed": 0.25, "step": 2, "tokens": 2}))
        (curve,) = read_losses([folder])
        assert curve.figures == {
            "reward": ((1, 0.25), (2, 0.5)),
            "length": ((1, 9.0), (2, 9.0)),
            "copy_rate": ((1, 0.5), (2, 0.5)),
            "right_where_disputed": ((2, 0.25),),
        }
        plot(folder, "--training")
        labels = {"mean reward", "mean tokens of a text", "share of copies of a draft", "right where drafts disagree"}
        texts = set(written(folder / "training.svg"))
        assert labels | {"loss", "Training loss, and rewards"} < texts
        assert not [text for text in texts if "nats" in text]

    @pytest.mark.parametrize(
        "line", ["{", "7", '{"loss": 1.0}', '{"loss": NaN, "step": 1, "tokens": 1}', '{"loss": "x", "step": 1}']
    )
    def test_a_damaged_line_is_named(self, tmp_path: Path, line: str):
        folder = self.log(tmp_path / "aft", self.line(1, 2.0), line)
        reason = r"(not JSON .*|not a JSON object: write one|damaged: remove the line, or train again)"
        with pytest.raises(RecordError, match=rf"log\.jsonl line 2 is {reason}"):
            read_losses([folder])

    def test_a_folder_without_a_log_and_a_log_without_a_loss(self, tmp_path: Path):
        with pytest.raises(RecordError, match=r"has no log\.jsonl: give the output folder of aft train"):
            read_losses([tmp_path])
        (tmp_path / "run.json").touch()
        with pytest.raises(RecordError, match=r"the run has logged no step yet, or an older version trained fewer"):
            read_losses([tmp_path])
        with pytest.raises(RecordError, match="has no loss yet"):
            read_losses([self.log(tmp_path / "aft", self.line(1, 2.0, "eval_loss"))])

    @pytest.mark.filterwarnings("error")
    def test_one_logged_step_is_one_sentence_and_no_figure(self, tmp_path: Path):
        folder = self.log(tmp_path / "aft", self.line(3, 2.0))
        with pytest.raises(RecordError, match=r"one logged step is no curve \(aft: loss 2\.0000\): train longer"):
            plot("--training", folder)
        assert list(folder.glob("*.png")) == []
        longer = self.log(tmp_path / "longer", self.line(1, 2.0), self.line(2, 1.5))
        assert "training.png" in plot("--training", longer, folder)


@pytest.mark.filterwarnings("error")
def test_one_point_is_one_sentence_and_no_figure(tmp_path: Path):
    for k in (1, 5):
        # Single answers are one point, whatever k was set.
        run(tmp_path, k, 0)
    message = (
        "gsm8k_exact_match_strict-match, gsm8k_exact_match_flexible-extract: one point is no curve: give runs with "
    )
    with pytest.raises(RecordError, match=message):
        plot(tmp_path, "--curves", "--png", tmp_path / "png")
    assert not (tmp_path / "png").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.long
def test_a_task_of_one_point_does_not_stop_the_figures_of_others(tmp_path: Path):
    run(tmp_path / "u", 1, 1, task="u")
    for k in (1, 3):
        run(tmp_path / "t", k, 1)
    arguments = ["plot", str(tmp_path), "--curves", "--png", str(tmp_path / "png")]
    done = CliRunner().invoke(aft, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "u_exact_match_strict-match" in done.stderr
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == [
        f"gsm8k_exact_match_{name}.{form}" for name in sorted(FILTERS) for form in ("png", "svg")
    ]


@pytest.mark.long
def test_a_score_that_is_not_a_number_is_named_and_not_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for k in (1, 3, 5):
        folder = run(tmp_path, k, 1)
    data = json.loads((folder / "results_1.json").read_text())
    for name in FILTERS:
        data["results"]["gsm8k"][f"exact_match,{name}"] = float("nan")
    (folder / "results_1.json").write_text(json.dumps(data))
    strict, flexible = curves(read_entries([tmp_path]))
    assert [point.k for point in strict.points] == [point.k for point in flexible.points] == [1, 3]
    assert "gsm8k: exact_match of model (5, 1) is not a finite number, so it is not drawn." in caplog.messages
    done = CliRunner().invoke(aft, ["plot", "--frontier", str(tmp_path), "--cost", "tokens"], catch_exceptions=False)
    assert "model (5, 1) on gsm8k: the score is not a finite number, so no point." in done.stderr


@pytest.mark.long
def test_a_score_without_a_known_cost_is_drawn_without_it(tmp_path: Path):
    """A task that generated nothing beside one that did: what each read is not known."""
    for k in (1, 3):
        folder = run(tmp_path, k, 1)
        data = json.loads((folder / "results_1.json").read_text())
        data["results"] |= {task: {"acc,none": 0.1 * k, "acc_stderr,none": 0.1} for task in "uv"}
        data["n-samples"] |= {task: {"effective": 60} for task in "uv"}
        data["configs"] = {task: {"output_type": "multiple_choice"} for task in "uv"}
        (folder / "results_1.json").write_text(json.dumps(data))
    figures = {figure.key[0]: figure for figure in curves(read_entries([tmp_path]))}
    assert (figures["gsm8k"].costs("tokens"), figures["u"].costs("tokens"), figures["u"].costs("flops")) == (True, 0, 0)
    assert "u_acc_none.png" in plot(tmp_path, "--curves")
    done = CliRunner().invoke(aft, ["plot", "--frontier", str(tmp_path), "--cost", "tokens"], catch_exceptions=False)
    assert "model (1, 1) on u, model (1, 1) on v, model (3, 1) on u, " in done.stderr
    assert "the cost in tokens is not known, so no point: run with record=DIR." in done.stderr
    assert "gsm8k" in done.stdout


def test_a_run_without_a_score_is_named(tmp_path: Path):
    path = make_run(tmp_path, [1, 0], results={"t": {"alias": "t"}})
    done = CliRunner().invoke(aft, ["plot", str(tmp_path)])
    assert str(done.exception) == f"{path} has no score: run lm_eval again."
