"""What the tasks aft_mt_bench and aft_alpaca_eval share: lm-eval's special values, and what they log."""

from __future__ import annotations

import shlex
from pathlib import Path

from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.log import log
from lm_eval_aft.judging.metadata import RunJudge

# lm-eval's metric of answers that are not scored, and its value
BYPASS, BYPASS_VALUE = "bypass", 999
# what lm-eval prints if there is no number
NO_SCORE = "N/A"
JUDGE_MISSING = "judge_missing"


def log_how_to_judge(benchmark: str, run: Path | None) -> None:
    """Log the command that judges a run's answers.

    Args:
        benchmark: Name of the command under ``aft judge``.
        run: Where the answers are kept; None if the run keeps them in its samples only.
    """
    answers = "OUT (OUT is --output_path, and --log_samples must be on)" if run is None else shlex.quote(str(run))
    log.info("Judge later with: aft judge %s %s --judge-model NAME --judge-base-url URL", benchmark, answers)


def log_failure(task: str, error: AFTError, judge: RunJudge, run: Path) -> None:
    """Log why a run has no scores, and the command that judges the rest.

    The error is not raised, since lm-eval saves nothing if scoring raises.
    """
    log.error("%s has no scores: %s", task, error)
    log.error("Its answers are kept; judge the rest with: %s", judge.command(run))
