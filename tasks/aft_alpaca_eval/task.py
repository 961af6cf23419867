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

log = logging.getLogger("lm_eval.aft")
LENGTH, PREDICTED = "avg_length", "bypass"


def instructions(docs: Any) -> Any:
    """The instructions in eval-set order, with their places; the reference answers beside them are left out."""
    docs = docs.add_column("place", list(range(len(docs))))
    return docs.select_columns(["place", "instruction", "dataset"])


class AlpacaEval(ConfigurableTask):
    """Answers, their length, and win rates if ``--metadata`` names a judge."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    @property
    def settings(self) -> dict[str, Any]:
        """Model arguments and ``--metadata`` of the run."""
        return self.config.metadata or {}

    def process_results(self, doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """The answer's length under each metric; the answer itself travels in it."""
        output = Output(doc["instruction"], results[0].strip(), generator_name(self.settings), doc["dataset"])
        return dict.fromkeys(self.aggregation(), Length.of(doc["place"], output))

    def aggregation(self) -> dict[str, Callable[[Sequence[Length]], Any]]:
        """What becomes of all answers: under --predict_only nothing but the file."""
        if PREDICTED in self._metric_fn_list:
            return {PREDICTED: self._predicted}
        return {LENGTH: self._length}

    def higher_is_better(self) -> dict[str, bool | None]:
        """Longer is neither better nor worse."""
        return dict.fromkeys(self.aggregation())

    def _predicted(self, lengths: Sequence[Length]) -> int:
        self._write(lengths)
        return 999  # lm-eval's own value for answers that were not scored

    def _length(self, lengths: Sequence[Length]) -> float:
        self._write(lengths)
        return sum(lengths) / len(lengths)

    def _write(self, lengths: Sequence[Length]) -> tuple[Output, ...]:
        """Write model_outputs.json; only the process that gathers all answers comes here."""
        outputs = tuple(output for _, output in sorted((length.row for length in lengths), key=lambda row: row[0]))
        folder = self.settings.get("record")
        if folder:
            file = Path(folder, OUTPUTS)
            write_rows(file, outputs)
            log.info("%s: %d answers. Judge later with: aft judge alpaca_eval %s", file, len(outputs), file)
        else:
            log.info("Judge later with: aft judge alpaca_eval RUN, RUN being the folder --output_path names here; it")
        return outputs
