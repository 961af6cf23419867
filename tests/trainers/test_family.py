"""The recipe of the bundled family, run small: a base of a few steps, its rows, the four trainings, and what ships."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from helpers.paths import ROOT
from lm_eval_aft import bundled
from lm_eval_aft.bundled import arith
from lm_eval_aft.bundled.arith import Problem
from lm_eval_aft.core.errors import ConfigError
from trainers.family import __main__ as commands
from trainers.family import pretrain
from trainers.family import rows as family_rows
from trainers.family.documents import ANSWER_TOKENS, QUESTION_TOKENS, document, make_tokenizer
from trainers.family.pretrain import answer_losses, make_model, stages_of, train_base, write_curve
from trainers.family.rows import rows_of
from trainers.family.settings import FamilyConfig, Stage, training_settings
from trainers.settings import make_config

FILES = {"data": "train.jsonl", "output": "out"}
SMALL = FamilyConfig(
    width=16,
    depth=1,
    heads=2,
    stages=(Stage(2, 1e-3), Stage(2, 1e-3, 0.3, 0.7)),
    extra_stage=Stage(1, 1e-3),
    rounds=2,
    documents=2,
    queries=40,
    drafts=5,
    train_epochs=1.0,
)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the commands of the whole recipe write."""
    out = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "FamilyConfig", lambda **settings: replace(SMALL, **settings))
        for command in ("base", "rows", "train"):
            CliRunner().invoke(commands.main, [command, str(out)], catch_exceptions=False, standalone_mode=False)
    return out


class TestDocuments:
    def texts(self, stage: Stage, count: int = 40) -> list[list[tuple[Problem, str]]]:
        rng, stream = random.Random(0), arith.problems("train", 0)
        documents = [document(SMALL, stage, stream, rng) for _ in range(count)]
        parts = [[part.strip().split(" <answer> ") for part in text.split("<ask>")[1:]] for text in documents]
        return [[(Problem.read(q), a.removesuffix(" <end>")) for q, a in document] for document in parts]

    def test_all_are_equally_long_in_tokens(self):
        ids = make_tokenizer()
        rng, stream = random.Random(0), arith.problems("train", 0)
        text = document(SMALL, SMALL.stages[1], stream, rng)
        parts = SMALL.problems + SMALL.repeats
        assert len(ids(text, add_special_tokens=False).input_ids) == parts * (QUESTION_TOKENS + ANSWER_TOKENS)

    def test_without_mismatches_every_answer_is_right_and_the_last_ones_repeat(self):
        for parts in self.texts(Stage(1, 1e-3)):
            assert all(arith.is_right(problem, answer) for problem, answer in parts)
            assert set(parts[SMALL.problems :]) <= set(parts[: SMALL.problems])

    def test_a_mismatch_follows_the_rules_but_for_its_end_and_is_never_repeated(self):
        parts = [part for text in self.texts(Stage(1, 1e-3, mismatched_share=0.5)) for part in text[: SMALL.problems]]
        missed = [(problem, answer) for problem, answer in parts if not arith.is_right(problem, answer)]
        assert 0.2 < len(missed) / len(parts) < 0.5
        assert all(arith.follows_rules(problem, arith.parse(answer) or ()) for problem, answer in missed)
        repeated = [p for text in self.texts(Stage(1, 1e-3, mismatched_share=0.5)) for p in text[SMALL.problems :]]
        assert all(arith.is_right(problem, answer) for problem, answer in repeated)

    def test_problems_of_a_document_can_share_their_numbers_and_differ_in_their_targets(self):
        for parts in self.texts(Stage(1, 1e-3, shared_numbers_share=1.0), 10):
            first = [problem for problem, _ in parts[: SMALL.problems]]
            together = [problem.target for problem in first if problem.numbers == first[0].numbers]
            assert len(together) > 1
            assert len(set(together)) == len(together)


class TestLosses:
    def test_they_are_the_models_own_on_answer_tokens_of_first_and_repeated_answers(self):
        tokenizer = make_tokenizer()
        model, known = make_model(SMALL, tokenizer), tokenizer.get_vocab()
        rng, stream = random.Random(0), arith.problems("train", 0)
        texts = [document(SMALL, SMALL.stages[1], stream, rng) for _ in range(3)]
        first, repeated = answer_losses(model, known, texts, SMALL)
        assert first.shape == (3, SMALL.problems, ANSWER_TOKENS)
        assert repeated.shape == (3, SMALL.repeats, ANSWER_TOKENS)
        ids = torch.tensor([[known[word] for word in text.split()] for text in texts])
        part = torch.arange(ids.shape[1]) // (QUESTION_TOKENS + ANSWER_TOKENS)
        answer = torch.arange(ids.shape[1]) % (QUESTION_TOKENS + ANSWER_TOKENS) >= QUESTION_TOKENS
        for losses, wanted in ((first, part < SMALL.problems), (repeated, part >= SMALL.problems)):
            labels = ids.masked_fill(~(answer & wanted), -100)
            assert losses.mean().item() == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)


class TestDevice:
    @pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 has no autocast for this device")
    def test_the_losses_are_computed_where_the_model_is(self):
        tokenizer = make_tokenizer()
        # A model on this device refuses token ids of another device.
        model = make_model(SMALL, tokenizer).to("meta")
        text = document(SMALL, SMALL.stages[0], arith.problems("train", 0), random.Random(0))
        first, repeated = answer_losses(model, tokenizer.get_vocab(), [text], SMALL)
        assert {first.device.type, repeated.device.type} == {"meta"}

    def test_drafts_are_made_there_too_and_the_trainings_choose_for_themselves(self, tmp_path, monkeypatch):
        hosts = []

        def stop(name, arguments, host):
            hosts.append(host)
            raise KeyboardInterrupt

        monkeypatch.setattr(family_rows, "device", lambda: torch.device("cuda:0"))
        monkeypatch.setattr(family_rows, "load_engine", stop)
        with pytest.raises(KeyboardInterrupt):
            family_rows.sample_drafts(SMALL, tmp_path, [])
        assert hosts[0].device == "cuda:0"
        assert make_config(training_settings(SMALL, tmp_path, "aft", 0) | FILES, "here").device == "auto"

    @pytest.mark.gpu
    def test_the_whole_recipe_runs_on_a_gpu(self, family: Path):
        assert pretrain.device().type == "cuda"
        assert (family / "aft-0" / "model.safetensors").is_file()


class TestStages:
    """The extra stage is repeated until copies are exact, and a killed training resumes after its last stage."""

    def test_rounds_end_as_soon_as_repeats_are_exact(self):
        config = replace(SMALL, rounds=3, copy_accuracy_goal=0.9)
        curve: list[dict] = []
        stages = []
        for exactness, stage in zip((0.1, 0.2, 0.85, 0.93), stages_of(config, curve), strict=False):
            stages.append(stage)
            curve.append({"word_for_word": exactness})
        assert stages == [*config.stages, config.extra_stage, config.extra_stage]

    @pytest.mark.long
    def test_they_end_after_the_rounds_allowed_too_and_the_base_says_what_is_missing(self, tmp_path, capsys):
        train_base(SMALL, tmp_path)
        assert len(list((tmp_path / "stages").iterdir())) == len(SMALL.stages) + SMALL.rounds
        assert "copies 0% of the answers in its context word for word; the goal is 95%" in capsys.readouterr().err

    @pytest.mark.long
    def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(self, tmp_path, monkeypatch):
        train_base(SMALL, tmp_path / "whole")
        real, calls = pretrain.train_stage, []

        def killed(*args):
            calls.append(args[-1])
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(pretrain, "train_stage", killed)
        with pytest.raises(KeyboardInterrupt):
            train_base(SMALL, tmp_path / "killed")
        train_base(SMALL, tmp_path / "killed")
        assert calls == [1, 2, 3, 3, 4]
        whole, resumed = (tmp_path / name / "base" / "model.safetensors" for name in ("whole", "killed"))
        assert whole.read_bytes() == resumed.read_bytes()

    @pytest.mark.long
    def test_stages_of_other_settings_are_refused(self, tmp_path):
        train_base(SMALL, tmp_path)
        with pytest.raises(ConfigError, match=r"stages/1 was trained with other settings: remove it"):
            train_base(replace(SMALL, seed=1), tmp_path)


def test_what_was_not_trained_is_not_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "package")
    with pytest.raises(ConfigError, match=r"/config.json is not there: run trainers.family base, rows and train"):
        CliRunner().invoke(commands.main, ["ship", str(tmp_path)], catch_exceptions=False, standalone_mode=False)
    assert not (tmp_path / "package").exists()


@pytest.mark.long
def test_a_folder_of_other_settings_is_one_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "stages" / "1").mkdir(parents=True)
    (tmp_path / "stages" / "1" / "curve.json").write_text('{"settings": {}, "curve": []}')
    command = [sys.executable, "-m", "trainers.family", "base", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "was trained with other settings" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_commands_take_the_seed_of_a_base(tmp_path, monkeypatch):
    configs: list[FamilyConfig] = []
    monkeypatch.setattr(pretrain, "train_base", lambda config, out: configs.append(config))
    monkeypatch.setattr(family_rows, "make_rows", lambda config, out: configs.append(config) or {})
    CliRunner().invoke(commands.main, ["base", str(tmp_path)], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"base/curve.json is not there: train the base first"):
        CliRunner().invoke(commands.main, ["rows", str(tmp_path)], catch_exceptions=False, standalone_mode=False)
    (tmp_path / "base").mkdir()
    write_curve(tmp_path / "base", FamilyConfig(seed=1), [])
    for command in ("base", "rows"):
        CliRunner().invoke(commands.main, [command, str(tmp_path), "--seed", "1"], catch_exceptions=False)
    assert configs == [FamilyConfig(), FamilyConfig(seed=1), FamilyConfig(seed=1)]
    # The default is seed 0.
    with pytest.raises(ConfigError, match="was trained with other settings"):
        CliRunner().invoke(commands.main, ["rows", str(tmp_path)], catch_exceptions=False, standalone_mode=False)


class TestRows:
    problem, way = next(islice(arith.problems("train", 0), 1))
    solution = arith.write(way)

    def rows(self, *texts: str) -> list[dict]:
        config = FamilyConfig(sets=20, mixed=1.0)
        return list(rows_of(self.problem, self.solution, texts, config, random.Random(0)))

    def test_a_right_draft_that_is_shown_is_the_target(self):
        right = " ".join(self.solution.split())
        rows = self.rows(right, *(f"wrong {n}" for n in range(7)))
        assert {row["target"] for row in rows} == {right}
        several = [row for row in rows if len(row["drafts"]) > 1]
        assert several
        # mixed=1 puts right and wrong drafts into every set.
        assert all(right in row["drafts"] for row in several)

    def test_where_none_is_right_it_is_the_solution(self):
        rows = self.rows(*(f"wrong {n}" for n in range(8)))
        assert {row["target"] for row in rows} == {self.solution} == {row["sft_target"] for row in rows}
        assert {len(row["drafts"]) for row in rows} <= {1, 3, 5}


class TestRecipe:
    def test_the_base_keeps_its_settings_and_its_curve(self, family: Path):
        curve = json.loads((family / "base" / "curve.json").read_text())
        assert [row["step"] for row in curve["curve"]] == [2, 2, 1, 1]
        assert curve["settings"]["queries"] == SMALL.queries

    def test_the_rows_ask_problems_of_their_split_and_tell_what_they_hold(self, family: Path):
        counts = json.loads((family / "rows.json").read_text())
        rows = [json.loads(line) for line in (family / "train.jsonl").read_text().splitlines()]
        assert len(rows) == counts["train"]["rows"] == SMALL.queries * SMALL.sets
        assert {Problem.read(row["query"]).split for row in rows} == {"train"}
        assert counts["validation"]["queries"] == SMALL.queries // 20
        plain = [json.loads(line) for line in (family / "train_sft.jsonl").read_text().splitlines()]
        assert all(arith.solves(row["sft_target"], row["query"]) for row in plain)

    def test_each_training_leaves_a_checkpoint_of_its_kind(self, family: Path):
        for kind in ("sft", "aft", "aft-no-drafts", "aft-pseudo"):
            run = json.loads((family / f"{kind}-0" / "run.json").read_text())
            assert run["kind"] == kind
            assert (family / f"{kind}-0" / "model.safetensors").is_file()

    @pytest.mark.parametrize("relative", [False, True])
    def test_what_ships_names_no_folder_of_this_disk(self, family: Path, tmp_path: Path, monkeypatch, relative: bool):
        monkeypatch.setattr(bundled, "FOLDER", tmp_path)
        monkeypatch.chdir(family.parent)
        folder = family.name if relative else str(family)
        CliRunner().invoke(commands.main, ["ship", folder], catch_exceptions=False, standalone_mode=False)
        for name in bundled.NAMES:
            shipped = tmp_path / name
            assert {file.name for file in shipped.iterdir()} == set(commands.SHIPPED)
            texts = [file.read_text() for file in shipped.iterdir() if file.suffix in (".json", ".md")]
            assert not any(str(family.parent) in text for text in texts)
        assert json.loads((tmp_path / "aft" / "aft_config.json").read_text())["base_model"] == "bundled:base"
