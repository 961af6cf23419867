"""``aft sweep``: the plan, reuse, continuation, and the files that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lm_eval_aft.analysis.curves import curves
from lm_eval_aft.analysis.runs import RunEntry, read_entries
from lm_eval_aft.cli import aft
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import BudgetReached, ConfigError, RecordError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message, Question, Sampling
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.inference.sweep_plan import grid, plan_of, widths_of
from lm_eval_aft.storage.draft_store import SQLiteStore

pytestmark = pytest.mark.usefixtures("quick_lm_eval")
SAMPLED, GREEDY = Sampling(0.7, 0.95, 0, 64), Sampling(0.0, 0.95, 0, 64)
# The grid of the paper, for the plan.
KS, LAYERS = [1, 3, 5], [0, 1, 2, 3]
# The grid of the runs below, which take seconds each.
SMALL = [(1, 0), (1, 2), (3, 2)]


@pytest.mark.parametrize(("final", "distinct"), [(SAMPLED, 26), (GREEDY, 33), (Sampling(0.7, 1.0, 0, 64), 33)])
def test_the_plan_of_the_papers_grid(final, distinct):
    plan = plan_of(KS, LAYERS, SAMPLED, final)
    assert (plan.distinct, plan.separate) == (distinct, 66)


@pytest.mark.parametrize(("final", "distinct"), [(SAMPLED, 26), (GREEDY, 32)])
def test_without_the_plain_answer_only_an_answer_of_its_own_kind_is_saved(final, distinct):
    # A single answer that is sampled like the drafts is the first of them.
    plan = plan_of(KS, LAYERS[1:], SAMPLED, final)
    assert (plan.distinct, plan.separate) == (distinct, 63)


@pytest.mark.parametrize("layers", [LAYERS, LAYERS[1:]])
@pytest.mark.parametrize("final", [SAMPLED, GREEDY, Sampling(0.7, 0.95, 0, 32)])
@pytest.mark.parametrize("drafts", [SAMPLED, GREEDY])
def test_the_plan_is_what_a_store_holds_in_the_end(tmp_path, drafts, final, layers):
    store = SQLiteStore(tmp_path / "s.sqlite")
    questions = [Question(Chat((Message("user", text),)), drafts, final) for text in ("a", "b", "c")]
    for k, depth in grid(KS, layers):
        config = AFTConfig(k=k, layers=depth)
        propose_and_aggregate(questions, ScriptedEngine(), Template.load(None), config, store, quiet=True)
    assert store.info().generations == 3 * plan_of(KS, layers, drafts, final).distinct


def test_greedy_drafts_are_one_text():
    assert plan_of([5], [1], GREEDY, GREEDY).distinct == 2


def test_greedy_texts_that_differ_in_the_nucleus_alone_are_one():
    assert plan_of(KS, LAYERS, GREEDY, Sampling(0.0, 1.0, 5, 64)).distinct == 10


def test_points_run_from_the_cheapest_and_layers_0_once():
    assert grid(KS, LAYERS)[:5] == [(1, 0), (1, 1), (1, 2), (3, 1), (1, 3)]
    assert len(grid(KS, LAYERS)) == 10


def test_a_point_has_as_many_widths_as_its_layers_need():
    assert grid([(32, 4)], [0, 1, 2, 3]) == [(1, 0), (32, 1), ((32, 4), 2), ((32, 4), 3)]
    assert grid([5, (5, 5)], [2]) == [(5, 2)]
    assert widths_of((32, 4), 4) == (32, 4, 4, 4)
    # 32 drafts, 4 texts of layer 1, and two answers: that of (32, 1) is text 0 of layer 1.
    assert plan_of([(32, 4)], [1, 2], SAMPLED, SAMPLED).distinct == 32 + 4 + 1
    assert plan_of([(32, 4)], [1, 2], SAMPLED, GREEDY).separate == 33 + 37


def run(tmp_path: Path, *more: str):
    """Sweep the small grid; ``more`` replaces options."""
    usual = {"--tasks": "aft_demo", "--limit": "4", "--k": "1,3", "--layers": "0,2", "--model_args": "engine=scripted"}
    options = [part for name, value in usual.items() if name not in more for part in (name, value)]
    arguments = ["sweep", "--output_path", str(tmp_path / "out"), "--apply_chat_template", *options, *more]
    return CliRunner().invoke(aft, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory, quick_lm_eval):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, run(folder).stdout


def test_it_generates_what_the_plan_says(done):
    folder, output = done
    assert "aft_demo: 10 generations a question instead of 12" in output
    assert SQLiteStore(folder / "out" / "drafts.sqlite").info().generations == 4 * 10


def test_every_point_is_an_lm_eval_results_folder(done):
    folder, _ = done
    for k, layers in SMALL:
        point = folder / "out" / f"k{k}_l{layers}"
        (results,) = point.rglob("results_*.json")
        config = json.loads(results.read_text())["config"]
        assert (config["model"], config["aft"]["k"], config["aft"]["layers"]) == ("aft", k, layers)
        assert config["aft"]["usage"]["generations"] == 4 * (k * layers + 1)
        assert len(list(point.rglob("samples_aft_demo_*.jsonl"))) == 1
        assert len(list((point / "traces").glob("*.jsonl"))) == 1


def entries(folder: Path) -> dict[tuple[int | None, int | None], RunEntry]:
    """The runs of a sweep, by k and layers."""
    return {(entry.run.k, entry.run.layers): entry for entry in read_entries([folder / "out"])}


def test_it_ends_with_the_table_of_aft_report(done):
    folder, output = done
    runs = entries(folder)
    assert set(runs) == set(SMALL)
    for (k, layers), entry in runs.items():
        cost = entry.costs["aft_demo"]
        assert (cost.own, cost.questions, cost.generations) == (True, 4, k * layers + 1)
        assert {score.n for score in entry.run.scores} == {4}
    points = [str(folder / "out" / f"k{k}_l{layers}") for k, layers in SMALL]
    printed = CliRunner().invoke(aft, ["report", *points, "--format", "markdown"], catch_exceptions=False).output
    scores, _, drafts = printed.partition("\n\n**The drafts alone**")
    assert drafts
    assert output.endswith(f"{scores}\n")
    (plan,) = json.loads((folder / "out" / "summary.json").read_text())["plans"].values()
    assert (plan["distinct"], plan["separate"]) == (10, 12)


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("|")]


def test_again_it_skips_and_a_lost_point_is_made_from_the_store(done):
    folder, first = done
    assert run(folder).output.count("done before, skipped") == 3
    (folder / "out" / "k3_l2" / "point.json").unlink()
    output = run(folder).output
    assert output.count("done before, skipped") == 2
    assert "0 new generations" in output
    assert table(output) == table(first)


def test_a_damaged_point_is_named(tmp_path: Path):
    one = ("--k", "1", "--layers", "0")
    point = tmp_path / "out" / "k1_l0" / "point.json"
    point.parent.mkdir(parents=True)
    point.write_text("[]")
    with pytest.raises(RecordError, match=r"point\.json cannot be read \(it is no JSON object\): remove it"):
        run(tmp_path, *one)


@pytest.mark.long
def test_a_point_that_an_earlier_version_finished_is_skipped(tmp_path: Path):
    one = ("--k", "1", "--layers", "0")
    run(tmp_path, *one)
    point = tmp_path / "out" / "k1_l0" / "point.json"
    point.write_text(json.dumps({**json.loads(point.read_text()), "rows": []}))
    assert "layers=0 (a single answer): done before, skipped" in run(tmp_path, *one).output


def test_every_point_is_a_point_of_the_figure(done):
    folder, _ = done
    figures = curves(list(entries(folder).values()))
    assert [[(point.k, point.layers) for point in figure.points] for figure in figures] == [
        [(1, 0), (1, 2), (3, 2)]
    ] * 2
    for figure in figures:
        assert all(point.score.low <= point.score.estimate <= point.score.high for point in figure.points)


def test_what_the_engine_does_not_know_is_not_printed_as_nothing(done):
    folder, output = done
    # The scripted engine has no FLOPs.
    assert {entry.costs["aft_demo"].flops for entry in entries(folder).values()} == {None}
    heads, _, *rows = [[cell.strip() for cell in line.split("|")] for line in table(output)]
    assert [row[heads.index("FLOPs")] for row in rows] == ["-"] * 3


@pytest.mark.long
def test_gen_kwargs_count_in_the_plan(tmp_path):
    # The task itself is greedy.
    sampled = ("--gen_kwargs", "do_sample=true,temperature=0.7")
    output = run(tmp_path, *sampled, "--k", "1", "--layers", "0,1").output
    assert "aft_demo: 2 generations a question instead of 3" in output
    assert SQLiteStore(tmp_path / "out" / "drafts.sqlite").info().generations == 4 * 2


@pytest.mark.long
def test_traces_of_a_killed_attempt_with_more_questions_are_not_counted(tmp_path):
    one = ("--k", "3", "--layers", "1")
    run(tmp_path, *one, "--limit", "6")
    # The same state as after a kill before the end of the point.
    (tmp_path / "out" / "k3_l1" / "point.json").unlink()
    run(tmp_path, *one, "--limit", "4")
    newest = max(read_entries([tmp_path / "out"]), key=lambda entry: entry.run.path.name)
    cost = newest.costs["aft_demo"]
    assert (cost.questions, cost.generations, cost.generated_tokens) == (4, 4, 48)


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
"""
WRITES = (
    TASK
    + """
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{do_sample: true, temperature: 0.7, top_p: 0.95, max_gen_toks: 32}}
repeats: 2
process_results: !function parts.grade
metric_list: [{{metric: parts, aggregation: !function parts.share}}]
"""
)
CHOOSES = (
    TASK
    + """
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
)
GRADE = """
def grade(doc, results):
    return {"parts": [True, False]}

def share(items):
    parts = [part for item in items for part in item]
    return sum(parts) / len(parts)
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> str:
    """Two tasks of three questions. One repeats each question and grades parts, the other generates nothing."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"q": f"What is {n}?", "a": str(n)}) + "\n" for n in range(3)))
    (folder / "parts.py").write_text(GRADE)
    (folder / "writes.yaml").write_text(WRITES.format(name="writes", data=data, kind="generate_until"))
    (folder / "chooses.yaml").write_text(CHOOSES.format(name="chooses", data=data, kind="multiple_choice"))
    return str(folder)


@pytest.mark.long
def test_repeats_are_part_of_a_questions_cost_and_no_further_questions(tmp_path, tasks):
    output = run(tmp_path, "--tasks", "writes", "--include_path", tasks, "--k", "3", "--layers", "1").output
    (entry,) = read_entries([tmp_path / "out"])
    (score,), cost = entry.run.scores, entry.costs["writes"]
    assert (cost.questions, cost.generations, score.value) == (3, 8, 0.5)
    # lm-eval has no standard error for a share of parts.
    assert score.stderr is None
    assert "| 50.0 | 3 | 8 |" in output


@pytest.mark.long
def test_a_sweep_of_tasks_without_text_is_refused(tmp_path, tasks):
    with pytest.raises(ConfigError, match="--tasks chooses generates no text"):
        run(tmp_path, "--tasks", "chooses", "--include_path", tasks)


@pytest.mark.long
def test_without_a_store_it_says_that_nothing_is_reused(tmp_path):
    more = ("--model_args", "engine=scripted,cache=none", "--k", "1", "--layers", "1")
    assert "cache=none keeps no generation" in run(tmp_path, *more).output
    assert not (tmp_path / "out" / "drafts.sqlite").exists()


def test_a_sweep_that_reaches_its_budget_resumes_with_a_higher_one(tmp_path):
    one = ("--k", "1", "--layers", "0,1")
    with pytest.raises(BudgetReached, match="max_generated_tokens=60 is reached"):
        run(tmp_path, *one, "--model_args", "engine=scripted,max_generated_tokens=60")
    generations = SQLiteStore(tmp_path / "out" / "drafts.sqlite").info().generations
    assert 4 <= generations < 12
    output = run(tmp_path, *one, "--model_args", "engine=scripted,max_generated_tokens=9999").output
    # The point that was finished is skipped, and what the other had generated is reused.
    assert output.count("done before, skipped") == 1
    assert f" {8 - (generations - 4)} new generations" in output


def test_other_settings_in_the_same_folder_are_refused(done):
    folder, _ = done
    with pytest.raises(ConfigError, match="other settings"):
        run(folder, "--model_args", "engine=scripted,temperature=0.9")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model_args", "engine=scripted,k=3"), "k=3 contradicts the sweep: use --k"),
        (("--k", "0"), "--k=0 is not allowed"),
        (("--layers", "1,x"), "--layers=x is not allowed"),
        (("--model_args", "engine=scripted,layers=2"), "layers=2 contradicts the sweep: use --layers"),
        (("--model_args", "engine=scripted,shard=1/2"), "shard=1/2 does not fit a sweep of k and layers"),
        (("--model_args", 'engine=scripted,aggregator={"pretrained":"x"}'), "does not fit a sweep of k and layers"),
        (
            ("--model_args", 'engine=scripted,proposers=[{"api_key":"s3cr3tvalue"}]'),
            "proposers=[{'api_key': ***}] does not fit a sweep",
        ),
        (("--model_args", "scripted"), "--model_args cannot be read ('scripted' has no =)"),
        (("--gen_kwargs", '{"a": '), "--gen_kwargs cannot be read"),
        (("--tasks", "aft_dmo"), "--tasks aft_dmo is not known"),
    ],
)
def test_bad_input(tmp_path, more, message):
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, *more)
    assert message in str(caught.value)
