"""AlpacaEval's instructions as a chat task, its answers as model_outputs.json, and its judge where one is configured.

A class, since only a class sees ``--metadata`` and the model arguments, which say where answers go and who judges them.
``aft_alpaca_eval.yaml`` names it. Judging itself is in ``lm_eval_aft.judging.alpaca_eval``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval.api.task import ConfigurableTask

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.names import display_name
from lm_eval_aft.judging.alpaca_eval.data import Length, Output, Unjudged
from lm_eval_aft.judging.alpaca_eval.files import OUTPUTS, write_rows
from lm_eval_aft.judging.alpaca_eval.in_run import RunJudge
from lm_eval_aft.judging.alpaca_eval.summary import AlpacaSummary, show

LENGTH, MISSING, PREDICTED = "avg_length", "judge_missing", "bypass"
JUDGED = ("length_controlled_winrate", "win_rate", "discrete_win_rate", "lc_standard_error", "standard_error")
NO_SCORE = "N/A"  # what lm-eval itself prints where there is no number
PREDICTED_VALUE = 999  # lm-eval's own value for answers that were not scored


def instructions(docs: Any) -> Any:
    """The instructions in eval-set order, with their places; the reference answers beside them are left out."""
    docs = docs.add_column("place", list(range(len(docs))))
    return docs.select_columns(["place", "instruction", "dataset"])


class AlpacaEval(ConfigurableTask):
    """Answers, their length, and win rates if ``--metadata`` names a judge."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.generator, self.record = "model", ""
        self.run_judge: RunJudge | None = None
        self.verdict: AlpacaSummary | None = None

    def build_all_requests(
        self, *, limit: int | None = None, samples: Any = None, chat_template: Any = None, **options: Any
    ) -> None:
        """Learn where answers go, and find what the judge needs, before anything is generated."""
        self._learn(self.config.metadata or {}, getattr(chat_template, "__self__", None))
        if PREDICTED not in self._metric_fn_list:
            whole = limit is None and samples is None
            self.run_judge = RunJudge.of(self.config.metadata or {}, whole, self.record, self.generator)
        super().build_all_requests(limit=limit, samples=samples, chat_template=chat_template, **options)

    def _learn(self, settings: dict[str, Any], model: Any) -> None:
        """The answers' author and folder: our own model knows best; any other's arguments say it."""
        name, k, layers = settings.get("pretrained") or settings.get("model") or "model", None, None
        self.record = settings.get("record", "")
        config = getattr(model, "config", None)
        if isinstance(config, AFTConfig):
            name, k, layers, self.record = model.name, config.k, config.layers, config.record
        self.generator = str(settings.get("generator") or display_name(str(name), k, layers))

    def process_results(self, doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """The answer's length, and nothing yet for what only the judge can know; the answer travels in the first."""
        row = doc["place"], Output(doc["instruction"], results[0].strip(), self.generator, doc["dataset"])
        names = list(self.aggregation())
        if self.run_judge is None:
            return {names[0]: Length.of(*row)}
        return dict.fromkeys(names) | {names[0]: Unjudged.of(*row), LENGTH: len(row[1].output)}

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], Any]]:
        """The first one gets the answers, writes them and has them judged; the others look up what came of it."""
        if PREDICTED in self._metric_fn_list:
            return {PREDICTED: self._predicted}
        if self.run_judge is None:
            return {LENGTH: self._answered}
        first, *others = (self.run_judge.plan.method.prefix + name for name in JUDGED)
        rest = {name: lambda _, name=name: self._score(name) for name in (*others, MISSING)}
        return {first: lambda answers: self._judged(answers, first), **rest, LENGTH: fmean}

    def higher_is_better(self) -> dict[str, bool | None]:
        """More wins are better; a longer answer or a larger error is neither better nor worse."""
        return {name: True if "win" in name else None for name in self.aggregation()}

    def _predicted(self, lengths: Sequence[Length]) -> int:
        self._write(lengths)
        return PREDICTED_VALUE

    def _answered(self, lengths: Sequence[Length]) -> float:
        self._write(lengths)
        return fmean(lengths)

    def _judged(self, answers: Sequence[Unjudged], name: str) -> Any:
        """Only the process that gathers all answers comes here, so a run is judged once."""
        assert self.run_judge is not None
        self.verdict = self._judge(self.run_judge, self._write(answers))
        return self._score(name)

    def _score(self, name: str) -> Any:
        if self.verdict is None:
            return NO_SCORE
        return self.verdict.scores.missing if name == MISSING else self.verdict.metrics().get(name, NO_SCORE)

    def _judge(self, judge: RunJudge, outputs: Sequence[Output]) -> AlpacaSummary | None:
        """The verdict; if it fails lm-eval must still save the answers, so that is said, and there is no score."""
        try:
            folder = Path(self.record, "alpaca_eval")
            verdict = judge.judge(outputs, folder, lambda estimate: log.info("%s", estimate.sentence()))
        except AFTError as error:
            log.error("aft_alpaca_eval has no scores: %s", error)
            log.error("Its answers are kept; go on with: %s", judge.command(Path(self.record)))
            return None
        log.info("%s", show(verdict))
        return verdict

    def _write(self, answers: Sequence[Length] | Sequence[Unjudged]) -> tuple[Output, ...]:
        """Write model_outputs.json in eval-set order, and say how it is judged."""
        rows = sorted((answer.row for answer in answers), key=lambda row: row[0])  # processes deliver one after another
        outputs = tuple(output for _, output in rows)
        run = "OUT (OUT is --output_path, and --log_samples must be on)"
        if self.record:
            file = Path(self.record, OUTPUTS)
            write_rows(file, outputs)
            log.info("%d answers are in %s.", len(outputs), file)
            run = shlex.quote(str(file))
        if self.run_judge is None:
            log.info("Judge later with: aft judge alpaca_eval %s --judge-model NAME --judge-base-url URL", run)
        return outputs
