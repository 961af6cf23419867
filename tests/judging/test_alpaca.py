"""AlpacaEval: scores as published, files, and what is refused or qualified."""

from __future__ import annotations

import csv
import io
import json
import logging
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.fake_alpaca import FEW, WHOLE, annotations, make_eval_set, outputs, write
from lm_eval_aft.cli.judge_alpaca_eval import alpaca_eval
from lm_eval_aft.core.errors import JudgeError, RecordError
from lm_eval_aft.core.names import display_name
from lm_eval_aft.judging.alpaca_eval.data import (
    AnswerLength,
    ModelOutput,
    PendingWinRate,
    is_baseline,
    pair_outputs,
)
from lm_eval_aft.judging.alpaca_eval.files import find_outputs, read_annotations, read_outputs, write_rows
from lm_eval_aft.judging.alpaca_eval.package import find_difficulty, package
from lm_eval_aft.judging.alpaca_eval.run import score_annotations
from lm_eval_aft.judging.alpaca_eval.scores import (
    LEADERBOARD_COLUMNS,
    AlpacaScores,
    ScoringOptions,
    compute_scores,
    find_place,
    public_leaderboard,
)

ROWS = {
    name: dict.fromkeys(LEADERBOARD_COLUMNS, value) for name, value in (("a", "90.0"), ("b", "50.0"), ("c", "10.0"))
}
NO_LC = ScoringOptions(length_control=False)


@pytest.fixture
def eval_set(tmp_path, monkeypatch):
    return make_eval_set(tmp_path, monkeypatch, FEW)


class TestPublishedFigures:
    """From real annotations. Length control uses a surrogate of df_gamed.csv, which the data's README explains."""

    @pytest.mark.parametrize("model", ["claude-2.1", "alpaca-7b"])
    def test_scores_are_the_leaderboards(self, shared, model):
        data = shared / "data/alpaca_eval"
        summary = score_annotations(
            data / "results" / model / "annotations.json", ScoringOptions(difficulty=data / "derived")
        )
        published, ours = public_leaderboard()[model], summary.scores.leaderboard_row()
        for column in (
            "win_rate",
            "standard_error",
            "discrete_win_rate",
            "n_wins",
            "n_wins_base",
            "n_draws",
            "n_total",
        ):
            assert ours[column] == float(published[column]), column
        assert ours["avg_length"] == int(published["avg_length"])
        apart = abs(ours["length_controlled_winrate"] - float(published["length_controlled_winrate"]))
        assert apart < 0.2
        assert summary.rank is not None
        places = sorted(
            (float(row["length_controlled_winrate"]) for row in public_leaderboard().values()), reverse=True
        )
        assert places.index(float(published["length_controlled_winrate"])) + 1 == summary.rank.place
        assert summary.rank.of == len(places)
        assert any("fitted with df_gamed.surrogate.csv, which is not the published" in note for note in summary.notes)

    def test_the_two_difficulty_files_agree(self, shared):
        difficulty = find_difficulty(shared / "data/alpaca_eval/derived")
        assert (difficulty.file.name, difficulty.published) == ("df_gamed.surrogate.csv", False)

    def test_the_baseline_and_the_eval_set_are_known_by_their_text(self, shared):
        results = shared / "data/alpaca_eval/results"
        reference = read_outputs(results / "gpt4_1106_preview/model_outputs.json")
        pairs = pair_outputs(read_outputs(results / "alpaca-7b/model_outputs.json"), reference)
        assert (pairs.whole, is_baseline(pairs.references), pairs.notes) == (True, True, ())
        davinci = read_outputs(shared / "data/alpaca_eval/alpaca_eval.json")
        pairs = pair_outputs(reference, davinci)
        assert (pairs.whole, is_baseline(pairs.references)) == (True, False)


class TestScores:
    def test_by_hand(self):
        preferences = [1.0, 2.0, 1.5, 1.25, None]
        rows = [replace(row, preference=value) for row, value in zip(annotations(5), preferences, strict=True)]
        scores = compute_scores(rows, None)
        assert scores.win_rate == pytest.approx(100 * (0 + 1 + 0.5 + 0.25) / 4)
        assert (scores.n_wins, scores.n_wins_base, scores.n_draws, scores.n_total, scores.missing) == (1, 2, 1, 4, 1)
        assert scores.discrete_win_rate == pytest.approx(100 * 1.5 / 4)
        assert scores.avg_length == int(sum(len(row.output_2) for row in rows) / 5)
        assert scores.length_controlled_winrate is None

    def test_a_single_comparison_has_no_spread(self):
        assert compute_scores(annotations(1), None).standard_error is None

    def test_no_judgement_at_all_is_no_score(self):
        with pytest.raises(JudgeError, match="none of 3 comparisons has a preference"):
            compute_scores([replace(row, preference=None) for row in annotations(3)], None)

    def test_length_control_leaves_nothing_behind_in_the_package(self, tmp_path, monkeypatch):
        eval_set = make_eval_set(tmp_path, monkeypatch, WHOLE)
        with package() as alpaca_eval:
            folder = Path(alpaca_eval.__file__).parent
        before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.suffix != ".pyc"}
        scores = compute_scores(annotations(WHOLE), find_difficulty(eval_set.difficulty))
        assert 0 < scores.length_controlled_winrate < 100
        assert scores.lc_standard_error > 0
        after = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.suffix != ".pyc"}
        assert set(after) - set(before) <= {file for file in after if file.name == "__pycache__"}
        assert {file: time for file, time in after.items() if file.is_file()} == {
            file: time for file, time in before.items() if file.is_file()
        }

    def test_the_root_logger_and_sklearn_stay_as_they_were(self, eval_set):
        import sklearn

        root, level = logging.getLogger(), logging.getLogger().level
        before = sklearn.get_config()
        compute_scores(annotations(), find_difficulty(eval_set.difficulty))
        assert (root.level, sklearn.get_config()) == (level, before)

    def test_nothing_heavy_is_imported_for_help(self):
        code = (
            "import sys, lm_eval_aft.cli.judge_alpaca_eval\n"
            "print([name for name in ('alpaca_eval', 'pandas', 'sklearn', 'torch', 'lm_eval') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "[]", done.stderr

    def test_a_missing_package_is_named_with_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "alpaca_eval", None)
        with pytest.raises(JudgeError, match=r"cannot be imported .*lm_eval_aft\[alpaca\]"), package():
            pass


class TestDifficulty:
    def test_two_files_that_disagree(self, eval_set):
        hard = eval_set.difficulty / "instruction_difficulty.csv"
        lines = (eval_set.difficulty / "df_gamed.csv").read_text().splitlines()[1 : FEW + 1]
        rows = [line.split(",")[1] + "," + line.split(",")[4] for line in lines]
        hard.write_text("index,instruction_difficulty\n" + "\n".join(rows) + "\n")
        assert find_difficulty(eval_set.difficulty).file.name == "df_gamed.csv"
        rows[7] = "7,99.0"
        hard.write_text("index,instruction_difficulty\n" + "\n".join(rows) + "\n")
        with pytest.raises(JudgeError, match="give row 7 two difficulties"):
            find_difficulty(eval_set.difficulty)

    @pytest.mark.parametrize("text", ["<html>not found</html>\n", "model,index\na,0\n", ""])
    def test_a_file_that_is_none(self, eval_set, text):
        (eval_set.difficulty / "df_gamed.csv").write_text(text)
        with pytest.raises(JudgeError, match=r"df_gamed.csv (must have the columns|cannot be read)"):
            find_difficulty(eval_set.difficulty)

    def test_a_hub_that_cannot_be_reached(self, monkeypatch):
        from huggingface_hub.errors import LocalEntryNotFoundError

        def gone(**_):
            raise LocalEntryNotFoundError("no network")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", gone)
        with pytest.raises(
            JudgeError, match=r"df_gamed.csv of the hub's data set tatsu-lab/alpaca_eval .*--difficulty"
        ):
            find_difficulty(None)


class TestFiles:
    def test_outputs_are_read_as_written_whatever_they_hold(self, tmp_path):
        rows = (ModelOutput("Say\u2028it", 'a "b"\n<|im_end|>\u2029é', "m", "d"), ModelOutput("And", "", "m", "d"))
        write_rows(tmp_path / "model_outputs.json", rows)
        assert read_outputs(find_outputs(tmp_path)) == rows
        assert {row.generator for row in read_outputs(tmp_path / "model_outputs.json", "other")} == {"other"}

    def test_samples_of_lm_eval_are_outputs_too(self, tmp_path):
        lines = [
            json.dumps(
                {"doc": {"instruction": f"Do\u2028{n}", "dataset": "d"}, "filtered_resps": [f" yes\u2028{n}\n"]},
                ensure_ascii=False,
            )
            for n in range(2)
        ]
        file = tmp_path / "org__model" / "samples_aft_alpaca_eval_2026-01-01T00-00-00.000000.jsonl"
        file.parent.mkdir()
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        (first, second) = read_outputs(find_outputs(tmp_path))
        assert first == ModelOutput("Do\u20280", "yes\u20280", "org__model", "d")
        assert second.output == "yes\u20281"

    @pytest.mark.parametrize(
        ("run", "name"),
        [
            (("org/Model-7B",), "Model-7B"),
            (("/a/b/", 5, 0), "b-k5-l0"),
            (("m", 5, 2), "m-k5-l2"),
            (("m", None, None), "m"),
        ],
    )
    def test_names(self, run, name):
        assert display_name(*run) == name

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[]", "does not hold a list of rows"),
            ("{", "is not JSON"),
            ('[{"instruction": "a"}]', "a row that is not of model outputs"),
            ('[{"instruction": "a", "output": null, "generator": "m"}]', "output is None, not a text"),
            ('[{"instruction": "a", "output": "b"}]', "KeyError 'generator'"),
        ],
    )
    def test_files_that_are_none(self, tmp_path, text, message):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(RecordError, match=message):
            read_outputs(tmp_path / "x.json")

    def test_a_folder_without_and_with_too_many(self, tmp_path):
        with pytest.raises(RecordError, match="there are no answers to judge in"):
            find_outputs(tmp_path)
        for name in "ab":
            (tmp_path / name).mkdir()
            write(tmp_path / name / "model_outputs.json", outputs("m"))
        with pytest.raises(RecordError, match=r"holds answers of several runs: name the one to judge, such as .*b\."):
            find_outputs(tmp_path)

    def test_of_several_samples_in_one_folder_the_newest(self, tmp_path):
        names = [f"samples_aft_alpaca_eval_2026-01-0{day}T00-00-00.000000.jsonl" for day in (2, 3, 1)]
        for name in names:
            (tmp_path / name).write_text("{}")
        assert find_outputs(tmp_path).name == names[1]

    def test_several_models_in_one_file(self, tmp_path):
        file = write(tmp_path / "x.json", [*outputs("a", 1), ModelOutput("Other", "x", "b")])
        with pytest.raises(RecordError, match=r"outputs of 2 models \(a, b\)"):
            read_outputs(file)

    @pytest.mark.parametrize(("value", "kept"), [(1.2, 1.2), (0, 1.5), (-1, None), (None, None), (float("nan"), None)])
    def test_what_is_no_preference_is_none(self, tmp_path, value, kept):
        file = write(tmp_path / "a.json", [replace(annotations(1)[0], preference=value)])
        assert read_annotations(file)[0].preference == kept

    @pytest.mark.parametrize("value", [0.5, 2.01, "1.2.3", 7])
    def test_a_preference_that_can_be_none_is_refused(self, tmp_path, value):
        file = write(tmp_path / "a.json", [replace(annotations(1)[0], preference=value)])
        with pytest.raises(RecordError, match="holds a row that is not an annotation"):
            read_annotations(file)

    def test_annotations_of_two_judges(self, tmp_path):
        one, two = annotations(2)
        file = write(tmp_path / "a.json", [one, replace(two, annotator="other")])
        with pytest.raises(RecordError, match="2 values of annotator"):
            read_annotations(file)


class TestAnnotations:
    def test_minus_one_is_missing_and_refused_until_allowed(self, eval_set):
        rows = annotations()
        rows[0], rows[1] = replace(rows[0], preference=-1), replace(rows[1], preference=None)
        file = write(eval_set.folder / "annotations.json", rows)
        with pytest.raises(JudgeError, match="2 of 40 comparisons have no usable judgement"):
            score_annotations(file, NO_LC)
        summary = score_annotations(file, ScoringOptions(length_control=False, allow_missing=True))
        assert (summary.scores.missing, summary.scores.n_total, summary.rank) == (2, 38, None)

    def test_the_command_shows_them(self, eval_set):
        file = write(eval_set.folder / "annotations.json", annotations())
        result = CliRunner().invoke(alpaca_eval, ["--annotations", str(file), "--difficulty", str(eval_set.difficulty)])
        assert result.exit_code == 0, result.output
        assert "ours against base, judged by weighted_m: 40 comparisons" in result.output
        assert "length_controlled_winrate" in result.output
        assert "b) not comparable with the public leaderboard: another judge" in result.output

    @pytest.mark.parametrize("form", ["csv", "json"])
    def test_the_command_shows_them_to_a_program(self, eval_set, form):
        file = write(eval_set.folder / "annotations.json", annotations())
        result = CliRunner().invoke(alpaca_eval, ["--annotations", str(file), "--no-lc", "--format", form])
        assert result.exit_code == 0, result.output
        summary = score_annotations(file, NO_LC)
        if form == "csv":
            rows = {row["metric"]: row for row in csv.DictReader(io.StringIO(result.output))}
            values = {name: float(row["value"]) for name, row in rows.items()}
            remarks = rows["win_rate"]["remarks"]
        else:
            rows = {row["metric"]["text"]: row for row in json.loads(result.output)[0]["rows"]}
            values = {name: row["value"]["value"] for name, row in rows.items()}
            remarks = "; ".join(rows["win_rate"]["remarks"])
        metrics = summary.metrics()
        assert values == {name: metrics[name] for name in values}
        assert set(metrics) - set(values) == {"standard_error"}
        assert all(note in remarks for note in summary.notes)

    def test_two_models_of_one_name(self, eval_set):
        """alpaca_eval would take them for one model and return 50."""
        rows = [replace(row, generator_1="ours") for row in annotations()]
        with pytest.raises(RecordError, match="both called ours: name the model with --name"):
            score_annotations(write(eval_set.folder / "annotations.json", rows), NO_LC)
        with pytest.raises(RecordError, match="both called m"):
            pair_outputs(outputs("m"), outputs("m"))

    def test_the_command_writes_where_it_is_told(self, eval_set):
        file = write(eval_set.folder / "annotations.json", annotations())
        options = ["--annotations", str(file), "--difficulty", str(eval_set.difficulty), "--output"]
        result = CliRunner().invoke(alpaca_eval, [*options, str(eval_set.folder / "here")])
        assert result.exit_code == 0, result.output
        assert {file.name for file in (eval_set.folder / "here").iterdir()} == {"scores.json", "leaderboard.csv"}
        assert json.loads((eval_set.folder / "here/scores.json").read_text())["difficulty"] == "df_gamed.csv"

    def test_another_order_of_annotations_has_no_length_control(self, eval_set):
        file = write(eval_set.folder / "annotations.json", annotations()[::-1])
        summary = score_annotations(file, ScoringOptions(difficulty=eval_set.difficulty))
        assert summary.scores.length_controlled_winrate is None
        assert any("no length-controlled win rate" in note for note in summary.notes)


class TestRank:
    def place(self, lc: float | None, win_rate: float = 0.0, name: str = "me"):
        return find_place(AlpacaScores(win_rate, 1.0, 1, 1, 0, 2, 50.0, 10, lc, 1.0, 0), name, ROWS)

    def test_between_neighbours(self):
        place = self.place(20.0)
        assert (place.place, place.of, place.above, place.below) == (3, 4, "b", "c")
        assert place.column == "length_controlled_winrate"

    def test_first_and_last(self):
        assert (self.place(95.0).place, self.place(95.0).above) == (1, "")
        assert (self.place(5.0).place, self.place(5.0).below) == (4, "")

    def test_a_row_is_not_ranked_against_itself(self):
        assert (self.place(50.0, name="b").place, self.place(50.0, name="b").of) == (2, 3)

    def test_by_win_rate_where_length_control_is_not_there(self):
        assert self.place(None, win_rate=60.0).column == "win_rate"


@pytest.mark.parametrize(("kind", "plain"), [(AnswerLength, 4), (PendingWinRate, "")])
def test_what_carries_an_answer_keeps_it_through_a_pickle(kind, plain):
    """lm-eval gathers metrics from other processes with pickle."""
    row = (3, ModelOutput("a", "four", "m"))
    again = pickle.loads(pickle.dumps(kind.of(*row)))
    assert (again, again.row, json.loads(json.dumps(again))) == (plain, row, plain)
