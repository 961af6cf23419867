"""The card of a checkpoint: README.md with settings, data and loss by step, and aft_config.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_eval_aft import __version__
from lm_eval_aft.core.files import write_text
from lm_eval_aft.core.jsonl import iterate_jsonl
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from trainers.fitting.run import TrainingRun


def write_checkpoint_card(
    folder: Path, run: TrainingRun, aft: CheckpointConfig, facts: Sequence[str], *, merged: bool = False
) -> None:
    """Write README.md and aft_config.json into a checkpoint. A merged one needs no base."""
    settings = [f"| `{name}` | {value} |" for name, value in run.config.to_dict().items() if value not in (None, ())]
    lines = [
        f"# {aft.base_model}, trained with `aft train {run.kind}`",
        "",
        f"lm_eval_aft {__version__}; seed {run.config.seed}; data SHA-256 {aft.data_digest}; prompt template SHA-256 "
        f"{aft.template_sha256}. The loss covers {aft.mask_policy}.",
        "",
        *_evaluation(run, aft, merged),
        "## Data",
        "",
        *(f"    {fact}" for fact in facts),
        "",
        "## Loss",
        "",
        *_curve(run.log),
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *settings,
    ]
    write_text(folder / "README.md", "\n".join(lines) + "\n")
    aft.save(folder)


def _evaluation(run: TrainingRun, aft: CheckpointConfig, merged: bool) -> list[str]:
    k, layers = max(run.most_drafts, 1), 1 if run.kind in ("aft", "aft-pseudo", "rl") else 0
    weights = "pretrained=HERE"
    if run.config.lora_rank and not merged:
        # lm-eval takes the tokenizer from the base, which may lack the chat template.
        weights = f"pretrained={aft.base_model},peft=HERE,tokenizer=HERE"
        weights += f",revision={aft.base_revision}" if aft.base_revision else ""
    command = f"    lm_eval --model aft --model_args {weights},k={k},layers={layers} --apply_chat_template --tasks ..."
    return ["The prompts of training are used by", "", command, ""]


def _curve(log: Path, points: int = 20) -> list[str]:
    """Loss by step as a table: some training losses at even distances, and every validation loss.

    The table of reinforcement learning has the rewards instead of validation losses.
    """
    rows = [row for _, row in iterate_jsonl(log)] if log.is_file() else []
    losses = [row for row in rows if "loss" in row]
    some = losses[:: max(1, len(losses) // points)] + losses[-1:]
    if any("reward" in row for row in losses):
        figures = ("loss", "reward", "grade", "copy_rate", "length")
        lines = [[f"{row[name]:.4f}" if name in row else "" for name in figures] for row in some]
        table = {row["step"]: f"| {row['step']} | {' | '.join(line)} |" for row, line in zip(some, lines, strict=True)}
        return [f"| step | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|", *table.values()]
    steps: dict[int, dict[str, str]] = {}
    for row in [*some, *(row for row in rows if "eval_loss" in row)]:
        losses_there: dict[str, str] = {key: f"{row[key]:.4f}" for key in ("loss", "eval_loss") if key in row}
        steps.setdefault(row["step"], {}).update(losses_there)
    body = [f"| {step} | {row.get('loss', '')} | {row.get('eval_loss', '')} |" for step, row in sorted(steps.items())]
    return ["| step | training loss | validation loss |", "|---|---|---|", *body]
