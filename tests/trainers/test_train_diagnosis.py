"""Diagnosis at each validation: copies, and right answers where drafts disagree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.tiny_models import tiny_tokenizer
from helpers.training_runs import log_of
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message
from trainers.fitting import diagnosis
from trainers.fitting.diagnosis import Diagnosis
from trainers.fitting.examples import Encoder
from trainers.rows.samples import Sample
from trainers.train import run_training


class Repeater:
    """A model that writes one text for all prompts, and counts its batches."""

    device, training = torch.device("cpu"), True

    def __init__(self, encoder: Encoder, text: str) -> None:
        tokenizer = encoder.renderer.tokenizer
        self.ids, self.batches = [*tokenizer.encode(text, add_special_tokens=False), encoder.end_id, 7, 7], 0

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode

    def generate(self, input_ids, attention_mask, generation_config):
        assert not self.training
        assert bool((input_ids[:, 0] * (1 - attention_mask[:, 0]) == 0).all())
        self.batches += 1
        return torch.cat([input_ids, torch.tensor([self.ids] * len(input_ids))], dim=1)


def draft_sets() -> list[Sample]:
    """Twelve samples: the right answer is 4. In half of them drafts disagree, and the rest have two right drafts."""
    chat = Chat((Message("user", "2 + 2?"),))
    drafts = [("4", "5", "6"), ("7 4", "4", "4")]
    return [Sample(chat, drafts[n % 2], "it is 4", f"row {n}", {"n": n}) for n in range(12)]


def test_copies_and_right_answers_are_counted():
    encoder = Encoder(tiny_tokenizer(), Template.load(None), 2000)
    checks = Diagnosis(draft_sets(), encoder, 100, lambda text, row: text.strip().endswith("4"), 0, print)
    model = Repeater(encoder, "4")
    assert checks.figures(model) == {
        "diagnosed": 12,
        "copy_rate": 1.0,
        # Six copies of the first draft, and six of the second and third, which are equal.
        "copies_by_position": [6.0, 3.0, 3.0],
        "disputed": 6,
        "right_where_disputed": 1.0,
        "random_where_disputed": pytest.approx(1 / 3),
    }
    assert (model.training, model.batches) == (True, 2)
    found = checks.figures(Repeater(encoder, "it is 9"))
    assert (found["copy_rate"], found["right_where_disputed"]) == (0, 0)


def test_a_diagnosis_ends_in_time_and_without_a_verifier_nothing_is_right(monkeypatch):
    encoder = Encoder(tiny_tokenizer(), Template.load(None), 2000)
    monkeypatch.setattr(diagnosis, "MAX_SECONDS", 0.0)
    found = Diagnosis(draft_sets(), encoder, 100, None, 0, print).figures(Repeater(encoder, "5"))
    assert found == {"diagnosed": 8, "copy_rate": found["copy_rate"], "copies_by_position": found["copies_by_position"]}
    assert len(Diagnosis(draft_sets(), encoder, 3, None, 0, print).sets) == 3


def test_a_verifier_that_fails_is_said_once_and_its_texts_are_wrong():
    def verify(text, row):
        raise KeyError("answer")

    said = []
    encoder = Encoder(tiny_tokenizer(), Template.load(None), 2000)
    checks = Diagnosis(draft_sets(), encoder, 100, verify, 0, said.append)
    assert checks.figures(Repeater(encoder, "4"))["disputed"] == 0
    (line,) = said
    assert "the verifier failed at row " in line
    assert "(KeyError: 'answer'): such texts count as wrong" in line


def test_each_validation_writes_a_line_beside_the_loss(config, capsys):
    run_training("aft", replace(config, validation=config.data, verifier="exact:", gold="target", max_steps=4))
    rows = [row for row in log_of(config) if "copy_rate" in row]
    assert [(row["step"], row["diagnosed"]) for row in rows] == [(2, 8), (4, 8)]
    assert {"copies_by_position", "disputed", "tokens", "epoch"} <= rows[0].keys()
    assert "step 2  8 draft sets: copies " in capsys.readouterr().out


def test_diagnosis_does_not_change_the_weights_and_can_be_off(config, tmp_path):
    from helpers.training_runs import same, weights

    config = replace(config, validation=config.data, lora_dropout=0.1)
    run_training("aft", config)
    off = replace(config, diagnose=0, output=str(tmp_path / "off"))
    run_training("aft", off)
    assert same(weights(config.output), weights(off.output))
    assert not [row for row in log_of(off) if "copy_rate" in row]


def test_a_model_that_cannot_generate_is_said_once_and_trained(config, monkeypatch, capsys):
    def fail(self, model):
        raise RuntimeError("no cache")

    monkeypatch.setattr(Diagnosis, "figures", fail)
    run_training("aft", replace(config, validation=config.data))
    output = capsys.readouterr().out
    assert output.count("cannot answer draft sets while it trains (RuntimeError: no cache): diagnose is off") == 1
    assert "saved in" in output


def test_a_verifier_without_a_right_answer_is_one_sentence(config):
    with pytest.raises(AFTError, match="a row has no 'gold' to compare with"):
        run_training("aft", replace(config, validation=config.data, verifier="exact:"))
    with pytest.raises(AFTError, match="verifier=nothing is not allowed: give exact:REGEX"):
        run_training("aft", replace(config, validation=config.data, verifier="nothing"))
