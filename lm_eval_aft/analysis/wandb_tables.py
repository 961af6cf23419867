"""Frames of runs as tables of Weights & Biases."""

from __future__ import annotations

from lm_eval_aft.analysis.frame_files import plain_tables
from lm_eval_aft.analysis.frames import Frames
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.loading import reason_of


def log_tables(project: str, frames: Frames) -> tuple[str, ...]:
    """Log the tables of runs, samples and drafts as one run of W&B. ``WANDB_MODE=offline`` keeps it on the disk.

    Args:
        project: W&B's project.
        frames: The frames.

    Returns:
        The names of the tables.

    Raises:
        ConfigError: wandb is missing, or cannot log.
        RecordError: A file of a run cannot be read.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"--wandb needs the package wandb ({error}): pip install wandb.") from error
    tables = plain_tables(frames)
    try:
        with wandb.init(project=project, job_type="aft export") as run:
            run.log({name: wandb.Table(dataframe=frame) for name, frame in tables.items()})
    # wandb raises errors of many kinds: no key, no network, no such project.
    except Exception as error:
        raise ConfigError(
            f"wandb cannot log to --wandb {project} ({reason_of(error)}): correct it, or set WANDB_MODE=offline."
        ) from error
    return tuple(tables)
