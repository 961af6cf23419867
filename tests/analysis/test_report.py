"""The leaderboard: its columns, the rows that are marked, and every form it is printed in."""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.made_runs import add_task, make_run, two_tasks
from lm_eval_aft.analysis.report.leaderboard import leaderboard
from lm_eval_aft.analysis.report.tables import (
    Cell,
    Column,
    Row,
    Table,
    as_csv,
    as_markdown,
    as_text,
    joined_key,
    render,
)
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import AFTError, ConfigError, RecordError


def table_of(*folders: Path, every: bool = False) -> Table:
    return leaderboard(read_entries(folders), every)


def cells(table: Table, label: str) -> list[str]:
    place = [column.label for column in table.columns].index(label)
    return [row.cells[place].text for row in table.rows]


def test_the_cost_of_a_task_without_traces_is_what_the_others_leave(tmp_path: Path):
    (entry,) = read_entries([two_tasks(tmp_path)])
    assert {task: (cost.generated_tokens, cost.own) for task, cost in entry.costs.items()} == {
        "t": (200, True),
        "u": (100, True),
    }
    assert cells(leaderboard([entry]), "tokens") == ["150"]
    assert cells(leaderboard([entry]), "truncated %") == ["0.0"]


def test_a_row_a_run_with_score_and_cost(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0, 1, 1], k=5, layers=2)
    make_run(tmp_path / "b", [1, 0, 0, 0], k=None)
    table = table_of(tmp_path)
    assert cells(table, "model") == ["m (5, 2)", "m, --model hf"]
    assert cells(table, "t acc %") == ["75.0 ± 10.0", "25.0 ± 10.0"]
    assert cells(table, "generations") == ["11", "-"]
    assert cells(table, "tokens") == ["300", "-"]
    assert cells(table, "engine") == ["hf, aft 0.1.0", "hf, lm_eval 0.4.13"]
    assert all(not row.notes for row in table.rows)


def test_a_score_of_another_unit_is_no_percentage(tmp_path: Path):
    make_run(tmp_path, [7.5, 8.5], metric="rating")
    assert cells(table_of(tmp_path), "t rating") == ["8.00 ± 0.10"]


def test_a_length_does_not_stand_for_a_task(tmp_path: Path):
    path = make_run(tmp_path, [1, 0])
    data = json.loads(path.read_text())
    data["results"]["t"] = {"alias": "t", "avg_length,none": 120.0, **data["results"]["t"]}
    data["higher_is_better"]["t"] = {"avg_length": None, "acc": True}
    path.write_text(json.dumps(data))
    heads = [column.label for column in table_of(tmp_path).columns]
    assert "t acc %" in heads
    assert "t avg_length" not in heads
    assert "t avg_length" in [column.label for column in table_of(tmp_path, every=True).columns]


def test_files_beside_the_folder_are_not_read(tmp_path: Path):
    make_run(tmp_path / "run", [1, 0])
    (tmp_path / "data.jsonl").write_text('"no trace"\n')
    (entry,) = read_entries([tmp_path / "run"])
    assert entry.trace_folder is None


def test_a_single_answer_has_k_1_in_its_label(tmp_path: Path):
    make_run(tmp_path, [1, 0], k=5, layers=0)
    assert cells(table_of(tmp_path), "model") == ["m (1, 0)"]


def test_a_folder_given_twice_counts_once(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0])
    assert len(table_of(tmp_path, tmp_path / "a").rows) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"versions": {"t": 2.0}}, "task version 2.0 instead of 1.0"),
        ({"n-shot": {"t": 5}}, "5 shots instead of 0 shots"),
        ({"chat_template": None}, "a bare prompt instead of a chat prompt"),
        ({"system_instruction_sha": "ff"}, "another system instruction"),
        ({"configs": {"t": {"metadata": {"judge_model": "j"}}}}, "judged by j instead of nobody"),
        ({"configs": {"t": {"generation_kwargs": {"max_gen_toks": 9}}}}, "max_gen_toks 9 instead of None"),
    ],
)
def test_a_row_that_was_another_test_says_why(tmp_path: Path, changes: dict, reason: str):
    for name in ("a", "b"):
        make_run(tmp_path / name, [1, 0], model=name)
    make_run(tmp_path / "c", [1, 0], model="c", **changes)
    notes = [row.notes for row in table_of(tmp_path).rows]
    assert notes[:2] == [(), ()]
    assert notes[2] == (f"t: do not compare this row with the others: {reason}.",)


def test_another_limit_is_a_remark(tmp_path: Path):
    for name, scores in (("a", [1, 0]), ("b", [1, 1]), ("c", [1])):
        make_run(tmp_path / name, scores, model=name)
    assert "1 questions instead of 2" in table_of(tmp_path).rows[2].notes[0]


def test_runs_of_one_name_are_told_apart_by_what_differs(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0])
    data = json.loads(make_run(tmp_path / "b", [1, 0]).read_text())
    data["config"]["aft"]["temperature"] = 1.0
    (tmp_path / "b" / "results_2026-01-02T03-04-05.000006.json").write_text(json.dumps(data))
    make_run(tmp_path / "c", [1, 0])
    labels = cells(table_of(tmp_path), "model")
    assert labels[1] == "m (5, 2) temperature=1.0"
    assert len(set(labels)) == 3


def test_a_score_that_is_not_a_number_is_named_and_changes_no_unit(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0])
    make_run(tmp_path / "b", [float("nan"), 0], model="n")
    table = table_of(tmp_path)
    assert cells(table, "t acc %") == ["50.0 ± 10.0", "nan ± 10.0"]
    assert [row.notes for row in table.rows] == [(), ("t: acc,none is not a finite number.",)]


def test_questions_of_tasks_are_not_added_up(tmp_path: Path):
    for name, sizes in (("a", (2, 2)), ("b", (2, 1500))):
        make_run(tmp_path / name, [1] * sizes[0])
        add_task(tmp_path / name, "u", [0] * sizes[1])
    assert cells(table_of(tmp_path), "n") == ["2", "2 to 1,500"]


def test_a_single_answer_has_one_text_whatever_k_was_set(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0], k=5, layers=0)
    data = json.loads(make_run(tmp_path / "b", [1, 0], k=5, layers=0).read_text())
    data["config"]["aft"]["strategy"] = "beam"
    (tmp_path / "b" / "results_2026-01-02T03-04-05.000006.json").write_text(json.dumps(data))
    assert cells(table_of(tmp_path), "k") == ["1", "5"]


@pytest.mark.parametrize(
    ("layers", "generation", "shown"),
    [
        (0, {"do_sample": False, "max_gen_toks": 99}, "answers with temperature 0 max_tokens 99, seed 1,"),
        (0, {"temperature": 0.5, "max_gen_toks": 99}, "answers with temperature 0.5 top_p 0.95 max_tokens 99, seed 1,"),
        (
            2,
            {"do_sample": False, "max_gen_toks": 99},
            "drafts with temperature 0.7, answers with temperature 0 max_tokens 99, seed 1,",
        ),
    ],
)
def test_a_model_card_says_how_answers_were_sampled(tmp_path: Path, layers: int, generation: dict, shown: str):
    make_run(tmp_path, [1, 0], layers=layers, configs={"t": {"generation_kwargs": generation}})
    done = CliRunner().invoke(aft, ["report", str(tmp_path), "--model-card"])
    assert f"engine hf, {shown}" in done.output
    assert ("temperature 0.7" in done.output) == (layers > 0)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"results": 1}', "null", '{"config": {}}', "\x00"])
def test_a_broken_or_foreign_file_is_named(tmp_path: Path, content: str):
    (tmp_path / "results_x.json").write_text(content)
    with pytest.raises(RecordError, match=r"results_x\.json"):
        table_of(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path):
    with pytest.raises(RecordError, match=str(tmp_path)):
        table_of(tmp_path)


HOSTILE = Table(
    "A | table",
    (Column("model", "model"), Column("t/acc/none", "score", True, parts=("stderr",))),
    (
        Row((Cell("=cmd|'x'\x1b[2J\n"), Cell("1.0", 0.0123456, parts=(0.5,))), ("not alike.",)),
        Row((Cell("<b>*a* `b` _c_ a_b</b>"), Cell("-"))),
    ),
    ("A note.",),
)


def test_markdown_shows_a_name_as_it_is():
    lines = as_markdown(HOSTILE).splitlines()
    assert lines[0] == r"**A \| table**"
    assert lines[4] == r"| =cmd\|'x'<U+001B>".replace("<", "&lt;") + r"\[2J  a) | 1.0 |"
    assert lines[5] == r"| &lt;b>\*a\* \`b\` \_c\_ a_b&lt;/b> | - |"
    assert lines[-2:] == ["- a) not alike.", "- A note."]


def test_csv_keeps_values_whole_and_no_formula():
    rows = list(csv.reader(io.StringIO(as_csv(HOSTILE))))
    assert rows[0] == ["model", "t/acc/none", "t/acc/none/stderr", "remarks"]
    assert rows[1] == ["'=cmd|'x'<U+001B>[2J ", "0.0123456", "0.5", "not alike."]
    assert rows[2][1:] == ["", "", ""]


def test_the_terminal_gets_no_control_characters():
    text = as_text(HOSTILE)
    assert "\x1b" not in text
    assert "<U+001B>" in text
    assert "a) not alike." in text


def test_json_holds_text_and_value():
    (table,) = json.loads(render([HOSTILE], "json"))
    assert table["rows"][0]["t/acc/none"] == {"text": "1.0", "value": 0.0123456, "stderr": 0.5}
    assert table["columns"][1] == {"key": "t/acc/none", "label": "score", "title": ""}


def run_with_filters(folder: Path) -> None:
    """A run of task t whose metric lm-eval reports under three filters."""
    path = make_run(folder, [1, 0])
    data = json.loads(path.read_text())
    scores = {"strict-match": 0.25, "flexible-extract": 0.5, "none": 0.75}
    row = {f"acc,{name}": value for name, value in scores.items()}
    data["results"]["t"] = row | {"acc_stderr,strict-match": 0.125, "acc_stderr,none": "N/A"}
    path.write_text(json.dumps(data))


def test_each_filter_has_a_column_of_its_own(tmp_path: Path):
    run_with_filters(tmp_path)
    table = table_of(tmp_path, every=True)
    scores = {
        column.key: (column.label, cell.text) for column, cell in zip(table.columns, table.rows[0].cells, strict=True)
    }
    assert {key: shown for key, shown in scores.items() if key.startswith("t/")} == {
        "t/acc/strict-match": ("t acc, strict-match %", "25.0 ± 12.5"),
        "t/acc/flexible-extract": ("t acc, flexible-extract %", "50.0"),
        "t/acc/none": ("t acc, none %", "75.0"),
    }


def test_keys_of_json_and_csv_name_task_metric_and_filter(tmp_path: Path):
    run_with_filters(tmp_path)
    printed = [
        CliRunner().invoke(aft, ["report", str(tmp_path), "--every", "--format", form]).output
        for form in ("json", "csv")
    ]
    (table,) = json.loads(printed[0], parse_constant=pytest.fail)
    (row,) = table["rows"]
    assert list(row) == [*(column["key"] for column in table["columns"]), "remarks"]
    assert row["t/acc/strict-match"] == {"text": "25.0 ± 12.5", "value": 0.25, "stderr": 0.125}
    assert row["t/acc/none"] == {"text": "75.0", "value": 0.75, "stderr": None}
    (line,) = csv.DictReader(io.StringIO(printed[1]))
    assert (line["t/acc/flexible-extract"], line["t/acc/none"]) == ("0.5", "0.75")
    assert (line["t/acc/strict-match/stderr"], line["t/acc/none/stderr"]) == ("0.125", "")
    assert (line["model"], line["generations"], line["generated_tokens"]) == ("m (5, 2)", "11.0", "300.0")


def test_keys_stay_whatever_the_table_holds(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0])
    make_run(tmp_path / "b", [7.5, 8.5], model="n", metric="rating", k=None)
    fixed = ["model", "k", "layers", "n", "generations", "generated_tokens", "prompt_tokens", "tflops", "cut"]
    keys = [column.key for column in table_of(tmp_path).columns]
    assert [key for key in keys if "/" not in key] == [*fixed, "engine", "judge"]
    assert [key for key in keys if "/" in key] == ["t/acc/none", "t/rating/none"]


def test_no_two_columns_share_a_key():
    with pytest.raises(ValueError, match="have one key"):
        Table("t", (Column("n", "texts"), Column("n", "tokens")), ())
    assert joined_key("a/b", "c", "none") != joined_key("a", "b/c", "none")


def test_infinity_and_nan_are_null_in_json_and_empty_in_csv():
    columns = (Column("difference", "difference", True, parts=("low", "high")), Column("p", "p", True))
    row = Row((Cell("1.0 [-inf, inf]", 1.0, parts=(float("-inf"), float("inf"))), Cell("nan", float("nan"))))
    table = Table("open", columns, (row,))
    (made,) = json.loads(render([table], "json"), parse_constant=pytest.fail)
    assert made["rows"][0]["difference"] == {"text": "1.0 [-inf, inf]", "value": 1.0, "low": None, "high": None}
    assert made["rows"][0]["p"]["value"] is None
    assert as_csv(table).splitlines() == ["difference,difference/low,difference/high,p,remarks", "1.0,,,,"]


def test_half_a_surrogate_pair_can_be_printed_in_every_form(tmp_path: Path):
    make_run(tmp_path, [1, 0], model="m\ud800")
    for form in ("text", "markdown", "csv", "json"):
        done = CliRunner().invoke(aft, ["report", str(tmp_path), "--format", form])
        assert done.exit_code == 0, done.output
        assert "d800" in done.output.lower()


def test_the_command_in_every_form(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0])
    for form in ("text", "markdown", "csv", "json"):
        done = CliRunner().invoke(aft, ["report", str(tmp_path), "--format", form])
        assert done.exit_code == 0, done.output
        assert "m (5, 2)" in done.output


def test_a_model_card_names_settings_and_commands_but_no_folder_and_no_key(tmp_path: Path):
    config = {"model_args": {"pretrained": "/disk/of/me/m", "k": 5, "api_key": "sk-1", "record": "/disk/r"}}
    path = make_run(tmp_path, [1, 0])
    data = json.loads(path.read_text())
    data["config"].update(config)
    path.write_text(json.dumps(data))
    done = CliRunner().invoke(aft, ["report", str(tmp_path), "--model-card"])
    assert "lm_eval --model aft --model_args 'pretrained=m,k=5,api_key=***' --tasks t" in done.output
    assert "temperature 0.7" in done.output
    assert "/disk" not in done.output
    assert "sk-1" not in done.output


@pytest.mark.parametrize(
    ("model_args", "shown"),
    [
        ("pretrained=/disk/of/me/m,token=hf_1", "pretrained=m,token=***"),
        (
            {"pretrained": "m", "model_kwargs": {"token": "hf_1", "cache_dir": "/disk/of/me/x"}},
            '{"pretrained": "m", "model_kwargs": {"token": "***", "cache_dir": "x"}}',
        ),
    ],
)
def test_a_model_card_shows_no_secret_in_any_form_of_the_arguments(tmp_path: Path, model_args: object, shown: str):
    path = make_run(tmp_path, [1, 0])
    data = json.loads(path.read_text())
    data["config"]["model_args"] = model_args
    path.write_text(json.dumps(data))
    done = CliRunner().invoke(aft, ["report", str(tmp_path), "--model-card"])
    (line,) = (line for line in done.output.splitlines() if line.startswith("lm_eval --model"))
    assert shlex.split(line)[4] == shown


def test_a_model_cards_command_has_the_conditions_of_the_run(tmp_path: Path):
    conditions = {"chat_template": "x", "system_instruction": "Be brief; say 'no'.", "n-shot": {"t": 5}}
    make_run(tmp_path / "a", [1, 0], **conditions, fewshot_as_multiturn=True)
    make_run(tmp_path / "b", [1, 0])
    done = CliRunner().invoke(aft, ["report", str(tmp_path), "--model-card"])
    five, none = (shlex.split(line) for line in done.output.splitlines() if line.startswith("lm_eval --model"))
    assert five[-7:-2] == ["--num_fewshot", "5", "--system_instruction", "Be brief; say 'no'.", "--apply_chat_template"]
    assert five[-2:] == ["--fewshot_as_multiturn", "true"]
    assert none[-3:] == ["--num_fewshot", "0", "--apply_chat_template"]


def test_a_model_cards_settings_show_no_folder_and_no_mark_up(tmp_path: Path):
    path = make_run(tmp_path / "a", [1, 0], model="m<b>|")
    data = json.loads(path.read_text())
    data["config"]["aft"]["template"]["name"] = "/disk/of/me/prompts.json"
    path.write_text(json.dumps(data))
    make_run(tmp_path / "b", [1, 0], model="m<b>|")
    done = CliRunner().invoke(aft, ["report", str(tmp_path), "--model-card"])
    line, _ = [line for line in done.output.splitlines() if line.startswith("- m&lt;")]
    assert "/disk/of" not in done.output
    assert line.startswith(r"- m&lt;b>\| (5, 2) template=prompts.json: lm_eval_aft 0.1.0, ")
    assert line.endswith("template prompts.json (sha256 abababababab)")


def test_the_page_holds_every_run(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0, 1], k=1, layers=0)
    make_run(tmp_path / "b", [1, 1, 1])
    page = tmp_path / "out.html"
    done = CliRunner().invoke(aft, ["report", str(tmp_path / "a"), str(tmp_path / "b"), "--html", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "m (5, 2)" in text
    assert '"difference"' in text


def test_the_page_takes_no_side_where_neither_is_better(tmp_path: Path):
    for name, lengths in (("a", [9.5, 8]), ("b", [1, 2.5])):
        make_run(
            tmp_path / name, lengths, model=name, metric="avg_length", higher_is_better={"t": {"avg_length": None}}
        )
    page = tmp_path / "out.html"
    done = CliRunner().invoke(aft, ["report", str(tmp_path / "a"), str(tmp_path / "b"), "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert '"verdict":"neither better nor worse"' in page.read_text()


def test_judgements_below_a_run_are_not_taken_for_traces(tmp_path: Path):
    make_run(tmp_path, [1, 0])
    (tmp_path / "mt_bench/model_judgment").mkdir(parents=True)
    (tmp_path / "mt_bench/model_judgment/j.jsonl").write_text("{}\n")
    (entry,) = read_entries([tmp_path])
    assert entry.trace_folder is None


def test_the_page_of_baselines_alone_has_no_curve_and_is_written(tmp_path: Path):
    results = make_run(tmp_path / "run", [1.0, 0.0])
    data = json.loads(results.read_text())
    data["config"]["aft"]["strategy"] = "majority"
    results.write_text(json.dumps(data))
    done = CliRunner().invoke(aft, ["report", str(tmp_path / "run"), "--html", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_a_baseline_that_is_none_of_the_runs(tmp_path: Path):
    make_run(tmp_path / "a", [1, 0])
    done = CliRunner().invoke(
        aft, ["report", str(tmp_path / "a"), "--html", str(tmp_path / "p.html"), "--baseline", str(tmp_path / "x")]
    )
    assert isinstance(done.exception, ConfigError)
    assert "matches 0 of these runs" in str(done.exception)
    with pytest.raises(AFTError, match="--baseline is for --html"):
        CliRunner().invoke(aft, ["report", str(tmp_path / "a"), "--baseline", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize("command", ["report", "compare"])
def test_help_is_quick_and_loads_no_torch(command: str):
    code = (
        "import sys\nfrom lm_eval_aft.cli import aft\n"
        f"try:\n    aft.main(['{command}', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'lm_eval', 'numpy', 'scipy', 'rich') if name in sys.modules])"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    # It takes 0.2 s on an idle machine.
    assert time.perf_counter() - started < 10
