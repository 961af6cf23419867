"""AlpacaEval's instructions as a chat task, its answers as model_outputs.json, and its judge where one is configured.

A class, since only a class sees ``--metadata`` and the model arguments, which say where answers go and who judges them.
Knows lm-eval's task interface; judging is ``lm_eval_aft.alpaca``'s. Instantiated by lm-eval from aft_alpaca_eval.yaml.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask

from lm_eval_aft.alpaca_data import Length, Output
from lm_eval_aft.alpaca_files import OUTPUTS, generator_name, write_rows
from lm_eval_aft.alpaca_run import RunJudge
from lm_eval_aft.alpaca_verdict import Verdict, show
from lm_eval_aft.errors import AFTError

log = logging.getLogger("lm_eval.aft")
LENGTH, PREDICTED = "avg_length", "bypass"
JUDGED = ("win_rate", "standard_error", "length_controlled_winrate", "lc_standard_error", "discrete_win_rate")
NO_SCORE = "N/A"  # what lm-eval itself prints where there is no number


def instructions(docs: Any) -> Any:
    """The instructions in eval-set order, with their places; the reference answers beside them are left out."""
    docs = docs.add_column("place", list(range(len(docs))))
    return docs.select_columns(["place", "instruction", "dataset"])


class AlpacaEval(ConfigurableTask):
    """Answers, their length, and win rates if ``--metadata`` names a judge."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.run_judge: RunJudge | None = None
        self.verdict: Verdict | None = None
        self.judged = False

    @property
    def settings(self) -> dict[str, Any]:
        """Model arguments and ``--metadata`` of the run."""
        return self.config.metadata or {}

    def build_all_requests(self, *, limit: int | None = None, samples: Any = None, **options: Any) -> None:
        """Find what the judge needs before anything is generated."""
        if PREDICTED not in self._metric_fn_list:
            self.run_judge = RunJudge.of(self.settings, whole=limit is None and samples is None)
        super().build_all_requests(limit=limit, samples=samples, **options)

    def process_results(self, doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """The answer's length under each metric; the answer itself travels in it."""
        output = Output(doc["instruction"], results[0].strip(), generator_name(self.settings), doc["dataset"])
        return dict.fromkeys(self.aggregation(), Length.of(doc["place"], output))

    def aggregation(self) -> dict[str, Callable[[Sequence[Length]], Any]]:
        """What becomes of all answers: under --predict_only nothing but the file."""
        if PREDICTED in self._metric_fn_list:
            return {PREDICTED: self._predicted}
        prefix = self.run_judge.plan.method.prefix if self.run_judge else ""
        judged = [prefix + name for name in JUDGED] if self.run_judge else []
        return {LENGTH: self._length} | {name: lambda lengths, name=name: self._score(lengths, name) for name in judged}

    def higher_is_better(self) -> dict[str, bool | None]:
        """More wins are better; a longer answer or a larger error is neither better nor worse."""
        return {name: True if "win" in name else None for name in self.aggregation()}

    def _predicted(self, lengths: Sequence[Length]) -> int:
        self._write(_answers(lengths))
        return 999  # lm-eval's own value for answers that were not scored

    def _length(self, lengths: Sequence[Length]) -> float:
        self._write(_answers(lengths))
        return sum(lengths) / len(lengths)

    def _score(self, lengths: Sequence[Length], name: str) -> Any:
        """One metric of the judge, who is asked once; only the process that gathers all answers comes here."""
        if not self.judged:
            self.judged = True
            self.verdict = self._judge(_answers(lengths))
        metrics = self.verdict.metrics() if self.verdict else {}
        return metrics.get(name, NO_SCORE)

    def _judge(self, outputs: Sequence[Output]) -> Verdict | None:
        """The verdict; if it fails lm-eval must still save the answers, so that is said, and there is no score."""
        assert self.run_judge is not None
        folder = self._folder / "alpaca_eval" if self._folder else None
        try:
            verdict = self.run_judge.judge(outputs, folder, lambda estimate: log.info("%s", estimate.sentence()))
        except AFTError as error:
            log.error("aft_alpaca_eval has no scores: %s", error)
            return None
        log.info("%s", show(verdict))
        return verdict

    @property
    def _folder(self) -> Path | None:
        record = self.settings.get("record")
        return Path(record) if record else None

    def _write(self, outputs: Sequence[Output]) -> None:
        """Write model_outputs.json, and say how it is judged."""
        if self._folder is None:
            file, run = None, "OUT (OUT is --output_path, and --log_samples must be on)"
        else:
            file = self._folder / OUTPUTS
            write_rows(file, outputs)
            run = str(file)
            log.info("%d answers are in %s.", len(outputs), file)
        if self.run_judge is None:
            log.info("Judge later with: aft judge alpaca_eval %s --judge-model NAME --judge-base-url URL", run)


def _answers(lengths: Sequence[Length]) -> tuple[Output, ...]:
    """The answers in eval-set order; several processes deliver theirs one after the other."""
    return tuple(output for _, output in sorted((length.row for length in lengths), key=lambda row: row[0]))
