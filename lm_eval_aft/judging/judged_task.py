"""The class behind the tasks aft_mt_bench and aft_alpaca_eval, for lm-eval 0.4 and 0.5."""

from __future__ import annotations

from typing import Any

from lm_eval.api import task as lm_eval_task

from lm_eval_aft.judging.tasks import BYPASS

# lm-eval 0.5 has a class for each kind of request. There, ConfigurableTask makes no requests.
GenerationTask: Any = getattr(lm_eval_task, "GenerateTask", lm_eval_task.ConfigurableTask)


class JudgedTask(GenerationTask):
    """A generate_until task that scores its answers itself.

    Attributes:
        predict_only: Whether ``--predict_only`` is given, so that nothing is scored.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Take a task's configuration, which may name the class itself."""
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.predict_only = False

    def override_metric(self, metric_name: str) -> None:
        """Score by another metric. lm-eval chooses "bypass" for ``--predict_only``."""
        # lm-eval 0.5 would aggregate "bypass" itself, and the answers would not be written.
        if GenerationTask is lm_eval_task.ConfigurableTask:
            super().override_metric(metric_name)
        self.predict_only = metric_name == BYPASS
