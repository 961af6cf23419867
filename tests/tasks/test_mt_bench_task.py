"""aft_mt_bench inside lm-eval: turns, temperatures, files, scores of a judge in the run, and refusals."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path

import pytest

from helpers.fake_judge import KEY, FakeJudge, quick_judge
from helpers.lm_eval_runs import run_lm_eval
from helpers.lm_eval_version import IS_0_5, in_group
from helpers.mt_bench_suite import write_suite
from lm_eval_aft import cli, tasks_path
from lm_eval_aft.analysis.every_eval_ever import Publisher, write_every_eval_ever
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.judging.mt_bench.data import CATEGORIES, MT_BENCH_TASK, TEMPERATURES, find_answers
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore
from lm_eval_aft.storage.traces import read_traces

pytestmark = pytest.mark.usefixtures("quick_lm_eval")


@pytest.fixture
def server(monkeypatch):
    with quick_judge(monkeypatch) as fake:
        yield fake


def model(record: Path | None, **settings) -> AFTLM:
    config = AFTConfig(k=2, layers=1, engine="scripted", record=str(record) if record else None, **settings)
    return AFTLM.around(ScriptedEngine(), config, Template.load(None), NoStore(), "org/tiny")


def evaluate(lm, tmp_path: Path, metadata: dict | None = None, hub: bool = False, **options) -> dict:
    import lm_eval
    from lm_eval.tasks import TaskManager

    paths = [str(tasks_path()), str(write_suite(tmp_path, hub))]
    manager = TaskManager(include_defaults=False, include_path=paths, metadata=metadata or {})
    settings = {"apply_chat_template": True, "bootstrap_iters": 0, **options}
    return lm_eval.simple_evaluate(model=lm, tasks=["offline_suite"], task_manager=manager, **settings)


LISTED = in_group(MT_BENCH_TASK, "offline_suite")


def table(results: dict) -> dict:
    return {name.removesuffix(",none"): value for name, value in results["results"][LISTED].items()}


def judge_of(server: FakeJudge, **more) -> dict:
    return {"judge_model": "m", "judge_base_url": server.url, **more}


def test_each_category_has_its_temperature_on_the_last_layer_only(tmp_path):
    evaluate(model(tmp_path / "r"), tmp_path)
    traces = list(read_traces(tmp_path / "r"))
    assert [trace.question.turn for trace in traces] == [0, 1] * 8
    for trace in traces:
        category = CATEGORIES[trace.question.doc_id]
        assert trace.question.final.temperature == TEMPERATURES[category]
        assert (trace.question.drafts.temperature, trace.question.drafts.max_tokens) == (0.7, 1024)
        assert trace.question.chat.messages[-1].content == f"{('first', 'second')[trace.question.turn]} of {category}"


def test_gen_kwargs_and_final_temperature_beat_the_category(tmp_path):
    evaluate(model(tmp_path / "a"), tmp_path, gen_kwargs="temperature=0.3,do_sample=True")
    assert {t.question.final.temperature for t in read_traces(tmp_path / "a")} == {0.3}
    evaluate(model(tmp_path / "b", final_temperature=0.9), tmp_path)
    assert {t.question.final.temperature for t in read_traces(tmp_path / "b")} == {0.9}


@pytest.mark.parametrize("hub", [False, True])
def test_without_a_judge_answers_are_kept_and_the_command_is_said(tmp_path, caplog, hub):
    caplog.set_level(logging.INFO)
    results = evaluate(model(tmp_path / "my r"), tmp_path, hub=hub)
    assert set(table(results)) >= {"words_per_turn"}
    assert not [name for name in table(results) if "aft-v1" in name]
    assert f"aft judge mt_bench {shlex.quote(str(tmp_path / 'my r'))} --judge-model NAME" in caplog.text
    answer_set = find_answers(tmp_path / "my r", None)
    assert (answer_set.model, answer_set.folder) == ("tiny-k2-l1", tmp_path / "my r" / "mt_bench")
    assert [d.question_id for d in answer_set.questions] == [81 + (1 if hub else 10) * n for n in range(8)]
    by_doc = {(t.question.doc_id, t.question.turn): t.answer for t in read_traces(tmp_path / "my r")}
    assert [a.turns for a in answer_set.answers] == [(by_doc[n, 0], by_doc[n, 1]) for n in range(8)]


def test_scores_in_lm_evals_table(server, tmp_path):
    server.say = lambda body: "[[8]]" if "second of" in body["messages"][-1]["content"] else "[[6]]"
    results = evaluate(model(tmp_path / "r"), tmp_path, judge_of(server))
    scores = table(results)
    assert (scores["aft-v1_score"], scores["aft-v1_turn_1"], scores["aft-v1_turn_2"]) == (7.0, 6.0, 8.0)
    assert {scores[f"aft-v1_{category}"] for category in CATEGORIES} == {7.0}
    assert scores["judge_missing"] == 0
    # one judging serves all metrics
    assert len(server.calls) == 16
    assert results["higher_is_better"][LISTED]["aft-v1_score"]
    json.dumps(results["samples"], default=str)
    assert [sample["words_per_turn"] for sample in results["samples"][LISTED]] == [12.0] * 8
    assert evaluate(model(tmp_path / "r"), tmp_path, judge_of(server))["results"] == results["results"]
    # the judgements are kept beside the answers
    assert len(server.calls) == 16


def test_metadata_settings(server, tmp_path):
    more = {"mt_bench_repeats": 2, "max_judge_calls": 32, "mt_bench_max_tokens": 77}
    results = evaluate(model(tmp_path / "r"), tmp_path, judge_of(server, **more))
    scores, better = table(results), results["higher_is_better"][LISTED]
    assert [better[name] for name in ("aft-v1_score", "aft-v1_spread", "judge_missing")] == [True, None, False]
    assert (scores["aft-v1_spread"], len(server.calls)) == (0.0, 32)
    assert {call["max_tokens"] for call in server.calls} == {77}


def test_a_judge_that_fails_costs_the_scores_not_the_run(server, tmp_path, caplog):
    server.trouble = lambda number, body: (401, {"error": {"message": "no"}}, {}) if number > 5 else None
    more = {"judge_extra_body": {"top_p": 1}, "mt_bench_repeats": 2}
    scores = table(evaluate(model(tmp_path / "r"), tmp_path, judge_of(server, **more)))
    assert {scores["aft-v1_score"], scores["judge_missing"], scores["aft-v1_math"]} == {"N/A"}
    assert scores["words_per_turn"] == 12
    assert "has no scores: the judge at" in caplog.text
    (line,) = [line for line in caplog.text.splitlines() if "judge the rest with: aft" in line]
    assert KEY not in caplog.text
    done = len(server.calls)
    server.trouble = lambda number, body: None
    # the logged command judges the rest
    with pytest.raises(SystemExit) as ended:
        cli.main(shlex.split(line.partition("judge the rest with: aft ")[2]))
    assert ended.value.code in (0, None)
    assert 32 - 6 <= len(server.calls) - done <= 32 - 5


def test_missing_judgements_are_no_headline_unless_allowed(server, tmp_path, caplog):
    server.say = lambda body: "well" if "first of math" in body["messages"][-1]["content"] else "[[6]]"
    scores = table(evaluate(model(tmp_path / "r"), tmp_path, judge_of(server)))
    assert (scores["aft-v1_score"], scores["judge_missing"]) == ("N/A", 2)
    assert "2 of 16 judgements of tiny-k2-l1 hold no rating" in caplog.text
    scores = table(evaluate(model(tmp_path / "r"), tmp_path, judge_of(server, mt_bench_allow_missing=True)))
    assert (scores["aft-v1_score"], scores["judge_missing"], scores["aft-v1_math"]) == (6.0, 2, "N/A")


def test_predict_only_never_calls_a_judge(server, tmp_path):
    results = evaluate(model(tmp_path / "r"), tmp_path, judge_of(server), predict_only=True)
    assert server.calls == []
    assert table(results)["bypass"] == 999
    assert len(find_answers(tmp_path / "r", None).answers) == 8


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"judge_model": "m"}, "names only a part of a judge"),
        ({"judge_api_key": "sk-zzz"}, "judge_api_key must not be given in --metadata"),
        ({"judge_model": "m", "judge_base_url": "nowhere"}, "is not an address"),
        ({"judge_model": "m", "judge_base_url": "http://h/v1", "mt_bench_repeats": 0}, "mt_bench_repeats=0"),
        ({"judge_model": "m", "judge_base_url": "http://h/v1", "mt_bench_prompts": "no"}, "cannot be read"),
    ],
)
def test_what_a_judge_lacks_is_said_before_anything_is_generated(tmp_path, metadata, message):
    lm = model(tmp_path / "r")
    with pytest.raises(ConfigError, match=message) as refused:
        evaluate(lm, tmp_path, metadata)
    assert lm.usage.generations == 0
    assert "sk-zzz" not in str(refused.value)


def test_a_judged_run_must_keep_its_answers(server, tmp_path):
    with pytest.raises(ConfigError, match="give record=DIR"):
        evaluate(model(None), tmp_path, judge_of(server))


def test_another_backend_gets_our_sentence(tiny, tmp_path):
    from lm_eval.models.huggingface import HFLM

    hf = HFLM(pretrained=tiny, dtype="float32", device="cpu")
    with pytest.raises(ConfigError, match="run the baseline as --model aft with layers=0"):
        evaluate(hf, tmp_path)
    with pytest.raises(ConfigError, match="run it with --model aft and --apply_chat_template"):
        evaluate(hf, tmp_path, apply_chat_template=False)
    with pytest.raises(ConfigError, match="--apply_chat_template"):
        evaluate(model(None), tmp_path, apply_chat_template=False)


@pytest.mark.skipif(IS_0_5, reason="lm-eval 0.5.0.dev1 fails on --samples of a task in a group")
def test_limits_and_chosen_samples(server, tmp_path):
    results = evaluate(model(tmp_path / "r"), tmp_path, judge_of(server), samples={LISTED: [0, 3]})
    assert [d.category for d in find_answers(tmp_path / "r", None).questions] == ["writing", "math"]
    assert (table(results)["aft-v1_score"], table(results)["aft-v1_stem"]) == (7.0, "N/A")
    assert "42" in "".join(server.prompts())


def test_the_judged_questions_are_exported_as_dialogues(server, tmp_path):
    suite, record = write_suite(tmp_path), str(tmp_path / "r")
    settings = {"engine": "scripted", "k": 2, "layers": 1, "record": record}
    run_lm_eval(tmp_path / "out", ["offline_suite"], suite, metadata=judge_of(server), **settings)
    (record_file,) = write_every_eval_ever(tmp_path / "eee", read_entries([tmp_path / "out"]), Publisher(), 1.8e9)
    samples = record_file.with_name(f"{record_file.stem}_samples.jsonl").read_text()
    rows = [json.loads(line) for line in samples.splitlines()]
    answers = {(t.question.doc_id, t.question.turn): t.answer for t in read_traces(record)}
    assert len(rows) == 8
    for number, (row, category) in enumerate(zip(rows, CATEGORIES, strict=True)):
        first, second = f"first of {category}", f"second of {category}"
        assert row["interaction_type"] == "multi_turn"
        assert "output" not in row
        assert [(message["role"], message["content"]) for message in row["messages"]] == [
            ("user", first),
            ("assistant", answers[number, 0]),
            ("user", second),
            ("assistant", answers[number, 1]),
        ]
        assert row["input"]["raw"] == f"{first}\n{second}"
        # A judge's metrics have no number for a question.
        assert row["evaluation_result_id"] == f"{MT_BENCH_TASK}/words_per_turn/none"
        assert row["evaluation"]["score"] == pytest.approx(
            sum(len(answers[number, turn].split()) for turn in (0, 1)) / 2
        )


PROCESSES = """
import json, sys
import lm_eval, lm_eval.evaluator, lm_eval_aft
from lm_eval.tasks import TaskManager

lm_eval.evaluator.add_env_info = lambda storage: None
lm_eval_aft.register()
tiny, suite, url, out = sys.argv[1:]
metadata = dict(judge_model="m", judge_base_url=url)
manager = TaskManager(include_defaults=False, include_path=[str(lm_eval_aft.tasks_path()), suite], metadata=metadata)
results = lm_eval.simple_evaluate(
    model="aft", tasks=["offline_suite"], task_manager=manager, bootstrap_iters=0, device="cpu", batch_size="auto",
    model_args=dict(pretrained=tiny, dtype="float32", k=2, layers=1, max_gen_toks=8, record=out, final_max_tokens=8,
                    draft_max_tokens=8),
    apply_chat_template=True, limit=5)
if results is not None:
    (row,) = [row for name, row in results["results"].items() if name.endswith("aft_mt_bench")]
    print("TABLE " + json.dumps(row))
"""


@pytest.mark.long
def test_several_processes_judge_once(server, warm, tiny, tmp_path):
    (tmp_path / "script.py").write_text(PROCESSES)
    done = warm.ranks([str(tmp_path / "script.py"), tiny, str(write_suite(tmp_path)), server.url, str(tmp_path / "r")])
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TABLE ")]
    assert json.loads(line[6:])["aft-v1_score,none"] == 7.0
    # five dialogues of two turns, all judged by one process
    assert len(server.calls) == 10
    assert [d.question_id for d in find_answers(tmp_path / "r", None).questions] == [81, 91, 101, 111, 121]
    assert KEY not in done.stdout + done.stderr
