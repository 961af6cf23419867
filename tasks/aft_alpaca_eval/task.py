"""AlpacaEval's instructions as a chat task: answers as model_outputs.json, and win rates if the run names a judge.

The task is a class, since lm-eval shows ``--metadata`` and the model arguments to classes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval_aft.core.arguments import refuse_secrets
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.names import display_name
from lm_eval_aft.core.thinking import without_thoughts
from lm_eval_aft.judging.alpaca_eval.data import JUDGED_METRICS, AnswerLength, ModelOutput, PendingWinRate
from lm_eval_aft.judging.alpaca_eval.files import ALPACA_FOLDER, ALPACA_TASK, OUTPUT_FILE, write_rows
from lm_eval_aft.judging.alpaca_eval.in_run import AlpacaRunJudge
from lm_eval_aft.judging.alpaca_eval.scores import AlpacaSummary
from lm_eval_aft.judging.judged_task import JudgedTask
from lm_eval_aft.judging.tasks import (
    BYPASS,
    BYPASS_VALUE,
    JUDGE_MISSING,
    NO_SCORE,
    log_failure,
    log_how_to_judge,
)

LENGTH = "avg_length"


def instructions(docs: Any) -> Any:
    """The instructions in eval-set order, with their places and without reference answers."""
    docs = docs.add_column("place", list(range(len(docs))))
    return docs.select_columns(["place", "instruction", "dataset"])


class AlpacaEval(JudgedTask):
    """Answers, their length, and win rates if ``--metadata`` names a judge."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.generator, self.record = "model", ""
        self.run_judge: AlpacaRunJudge | None = None
        self.summary: AlpacaSummary | None = None

    def build_all_requests(
        self, *, limit: int | None = None, samples: Any = None, chat_template: Any = None, **options: Any
    ) -> None:
        """Find out where answers are kept, and read what the judge needs, before anything is generated."""
        settings = self.config.metadata or {}
        self._set_generator(settings, getattr(chat_template, "__self__", None))
        if not self.predict_only:
            whole = limit is None and samples is None
            self.run_judge = AlpacaRunJudge.from_metadata(settings, whole, self.record, self.generator)
        super().build_all_requests(limit=limit, samples=samples, chat_template=chat_template, **options)

    def _set_generator(self, settings: dict[str, Any], model: Any) -> None:
        """Set the model's name and the folder of its answers, from our own model or another model's arguments."""
        name, k, layers = settings.get("pretrained") or settings.get("model") or "model", None, None
        self.record = settings.get("record", "")
        config = getattr(model, "config", None)
        if isinstance(config, AFTConfig):
            # The settings hold the model arguments too. Those of another model are its own affair.
            refuse_secrets(settings, "--metadata")
            name, k, layers, self.record = model.name, config.k, config.layers, config.record
        self.generator = str(settings.get("generator") or display_name(str(name), k, layers))

    def process_results(self, doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """The answer's length, and None for each score of the judge. The first value carries the answer."""
        answer = without_thoughts(results[0]).strip()
        row = doc["place"], ModelOutput(doc["instruction"], answer, self.generator, doc["dataset"])
        names = list(self.aggregation())
        if self.run_judge is None:
            return {names[0]: AnswerLength.of(*row)}
        return dict.fromkeys(names) | {names[0]: PendingWinRate.of(*row), LENGTH: len(row[1].output)}

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], Any]]:
        """The function of each metric. The first one has the answers judged; the others read its scores."""
        if self.predict_only:
            return {BYPASS: self._predicted}
        if self.run_judge is None:
            return {LENGTH: self._answered}
        first, *others = (self.run_judge.scoring.method.prefix + name for name in JUDGED_METRICS)
        rest = {name: lambda _, name=name: self._score(name) for name in (*others, JUDGE_MISSING)}
        return {first: lambda answers: self._judged(answers, first), **rest, LENGTH: fmean}

    def higher_is_better(self) -> dict[str, bool | None]:
        """True for win rates; None for lengths and errors, of which neither more nor less is better."""
        return {name: True if "win" in name else None for name in self.aggregation()}

    def _predicted(self, lengths: Sequence[AnswerLength]) -> int:
        self._write(lengths)
        return BYPASS_VALUE

    def _answered(self, lengths: Sequence[AnswerLength]) -> float:
        self._write(lengths)
        return fmean(lengths)

    def _judged(self, answers: Sequence[PendingWinRate], name: str) -> Any:
        """Judge the answers. lm-eval aggregates in one process only, so a run is judged once."""
        assert self.run_judge is not None
        self.summary = self._judge(self.run_judge, self._write(answers))
        return self._score(name)

    def _score(self, name: str) -> Any:
        if self.summary is None:
            return NO_SCORE
        return self.summary.scores.missing if name == JUDGE_MISSING else self.summary.metrics().get(name, NO_SCORE)

    def _judge(self, judge: AlpacaRunJudge, outputs: Sequence[ModelOutput]) -> AlpacaSummary | None:
        """The scores; None if judging fails."""
        try:
            folder = Path(self.record, ALPACA_FOLDER)
            summary = judge.judge(outputs, folder, lambda estimate: log.info("%s", estimate.sentence()))
        except AFTError as error:
            log_failure(ALPACA_TASK, error, judge, Path(self.record))
            return None
        log.info("%s", summary.describe())
        return summary

    def _write(self, answers: Sequence[AnswerLength] | Sequence[PendingWinRate]) -> tuple[ModelOutput, ...]:
        """Write model_outputs.json in eval-set order if there is a folder, and log how to judge the answers."""
        # lm-eval concatenates the values of several processes
        rows = sorted((answer.row for answer in answers), key=lambda row: row[0])
        outputs = tuple(output for _, output in rows)
        file = Path(self.record, OUTPUT_FILE) if self.record else None
        if file:
            write_rows(file, outputs)
            log.info("%d answers are in %s.", len(outputs), file)
        if self.run_judge is None:
            log_how_to_judge("alpaca_eval", file)
        return outputs
