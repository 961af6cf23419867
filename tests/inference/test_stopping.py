"""A signal ends a run in order, wherever it arrives."""

from __future__ import annotations

import signal

import pytest

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import RunStopped
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message, Question, Sampling
from lm_eval_aft.core.stops import stoppable
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import SQLiteStore, kept_in

SAMPLING = Sampling(0.7, 0.95, 0, 64)


class Deleted:
    """Sends a signal to its process while it is deleted. Python drops the handler's exception there."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_lost_still_ends_the_run(tmp_path):
    store = SQLiteStore(tmp_path / "s.sqlite")

    class Engine(ScriptedEngine):
        def generate(self, requests):
            for number, step in enumerate(super().generate(requests)):
                if number == 2:
                    Deleted()
                yield step

    questions = [Question(Chat((Message("user", f"{n}?"),)), SAMPLING, SAMPLING, "t", n, "h", 0) for n in range(4)]
    with (
        pytest.raises(RunStopped, match="stopped by SIGINT; 3 finished generations"),
        stoppable(lambda: kept_in(store)),
    ):
        propose_and_aggregate(questions, Engine(), Template.load(None), AFTConfig(k=3, layers=1), store, quiet=True)
    assert store.info().generations == 3
    # The signal does not end the next run.
    with stoppable(lambda: kept_in(store)):
        traces = propose_and_aggregate(
            questions, ScriptedEngine(), Template.load(None), AFTConfig(k=3, layers=1), store, quiet=True
        )
    assert len(traces) == 4
