"""Labels of runs, which say how each run made its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_aft.analysis.conditions import labels
from lm_eval_aft.storage.results import EvalRun


@pytest.mark.parametrize(
    ("strategy", "k", "layers", "label"),
    [
        ("aggregate", 5, 2, "m (5, 2)"),
        # A single answer, whatever k was set.
        ("aggregate", 5, 0, "m (1, 0)"),
        ("majority", 5, 1, "m majority of 5"),
        ("majority", 5, 2, "m majority of 5 after 1"),
        ("weighted", 5, 1, "m weighted vote of 5"),
        ("best_of_n", 5, 1, "m best of 5"),
        ("beam", 4, 0, "m beam of 4"),
        ("refine", 1, 3, "m refined 3 times"),
        # A strategy that this version does not know is no aggregate.
        ("debate", 5, 2, "m debate (5, 2)"),
    ],
)
def test_a_label_says_how_a_run_made_its_answers(strategy: str, k: int, layers: int, label: str):
    settings = {"strategy": strategy, "k": k, "layers": layers}
    assert labels([EvalRun(Path("results_1.json"), "some/m", settings, (), None)]) == (label,)


@pytest.mark.parametrize("name", ["peft", "lora_local_path"])
def test_a_label_names_the_adapter(name: str):
    settings = {"strategy": "aggregate", "k": 5, "layers": 2}
    runs = [
        EvalRun(Path(f"results_{adapter}.json"), "some/m", settings, (), None, {"model_args": {name: f"out/{adapter}"}})
        for adapter in ("sft", "aft")
    ]
    assert labels(runs) == ("m+sft (5, 2)", "m+aft (5, 2)")


def test_weighted_votes_are_distinguished_by_their_confidence():
    runs = [
        EvalRun(Path(f"results_{n}.json"), "some/m", {"strategy": "weighted", "k": 5, "layers": 1, **more}, (), None)
        for n, more in enumerate([{}, {"confidence": "sum"}])
    ]
    assert labels(runs) == ("m weighted vote of 5 confidence=mean", "m weighted vote of 5 confidence=sum")
