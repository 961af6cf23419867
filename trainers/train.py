"""``aft train``: from rows to a checkpoint that records how it was trained. torch is imported when a run starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import inf
from pathlib import Path

import click

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import locked
from lm_eval_aft.core.stops import stoppable
from lm_eval_aft.core.terminal import note
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from trainers.fitting.examples import Encoded, Encoder
from trainers.fitting.resume import open_run
from trainers.fitting.run import TrainingRun, kept_in
from trainers.generation.verifiers import load_verifier
from trainers.inspection.overlap import Overlap, measure, warnings
from trainers.rows.row import TrainingRow, read_training_rows
from trainers.rows.samples import Sample, make_prompts, make_samples, pseudo_samples
from trainers.settings import KINDS, Kind, TrainConfig, load_config

MASK_POLICY = "the target and the token that ends the turn"
REWARD_POLICY = "sampled texts, by their reward"
# The release of TRL that the tests use.
LEAST_TRL = (1, 16)


@click.command(short_help="Train a checkpoint: SFT, AFT, a control, or by rewards.")
@click.argument("kind", type=click.Choice([*KINDS, "rl"]))
@click.option(
    "--config",
    "path",
    required=True,
    metavar="FILE",
    help="File of settings, in YAML or TOML. docs/training.md lists the settings.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Setting that replaces the one in the file. Repeat the option for several.",
)
@click.option("--merge", is_flag=True, help="Also write adapter and base as one checkpoint, into the folder merged.")
def train(kind: Kind, path: str, overrides: tuple[str, ...], merge: bool) -> None:
    """Train a checkpoint: sft, aft, aft-no-drafts or aft-pseudo, or rl.

    One data file serves all kinds. Its rows hold query, drafts, target and sft_target. rl learns from rewards instead
    of targets, and needs TRL. If a run was interrupted, give the same command again to resume it. For many GPUs, run
    accelerate launch -m trainers.train KIND --config FILE.
    """
    run_training(kind, load_config(path, overrides, kind), merge=merge)


def print_once(line: str) -> None:
    """Print a line, in the first process only."""
    if _first_process():
        note(line, err=False)


def run_training(
    kind: Kind, config: TrainConfig, *, merge: bool = False, say: Callable[[str], None] = print_once
) -> TrainingRun:
    """Train one checkpoint into ``config.output``, or resume its training.

    Args:
        kind: One of ``KINDS``, or "rl".
        config: The settings.
        merge: Also write adapter and base as one checkpoint into the folder ``merged``.
        say: Prints a line.

    Returns:
        The finished run, with the settings that were in force.

    Raises:
        AFTError: If settings, data, template or model are wrong.
    """
    require_tracker(config.report_to)
    if kind == "rl":
        require_trl()
    if _first_process() and not Path(config.output).is_dir():
        # Settings and data are checked before a folder is made.
        open_run(kind, config).make_folder()
    folder = Path(config.output)
    with _alone(folder), stoppable(lambda: kept_in(folder)):
        run = open_run(kind, config)
        for sentence in run.notes:
            say(sentence)
        if run.finished:
            say(f"the run in {run.folder} is finished: nothing is left to train.")
        if merge or not run.finished:
            _train(run, merge, say)
    return replace(run, finished=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other commands out of a run's folder. The first process of a launch holds the lock for all of them.

    Opening a run removes checkpoints that are not whole, so a second command would remove what the first one writes.

    Raises:
        ConfigError: If another command trains there.
    """
    if not _first_process():
        yield
        return
    busy = f"another aft train is at work in output={folder}: wait until it ends, or give another output."
    with locked(folder, busy):
        yield


def _train(run: TrainingRun, merge: bool, say: Callable[[str], None]) -> None:
    config = run.config
    if _first_process():
        run.make_folder()
    rows = read_training_rows(config.data)
    from trainers.fitting import model

    encoder = Encoder(model.load_tokenizer(config), run.template, config.max_length)
    learn = _reinforce if run.kind == "rl" else _fit
    run, aft, facts = learn(run, rows, encoder, say)
    if not run.finished:
        say(f"saved in {run.folder}")
    if merge and _first_process():
        if config.lora_rank:
            say(f"merged in {model.merge(run, encoder.end_id, aft, facts)}")
        else:
            say("lora_rank is 0: the checkpoint is a full one, there is nothing to merge.")


def _reinforce(
    run: TrainingRun, rows: list[TrainingRow], encoder: Encoder, say: Callable[[str], None]
) -> tuple[TrainingRun, CheckpointConfig, list[str]]:
    """Train by rewards unless the run is finished, and return what cards need."""
    samples = make_prompts(rows, run.config)
    run, draft_counts = _with_most_drafts(run, samples)
    aft, with_drafts = checkpoint_config(run, draft_counts), sum(bool(sample.drafts) for sample in samples)
    facts = [
        f"{len(rows)} rows, {len(samples)} prompts: {with_drafts} with drafts, {len(samples) - with_drafts} without"
    ]
    if not run.finished:
        from trainers.reinforcement.loop import reinforce

        reinforce(run, encoder, samples, aft, facts, say)
    return run, aft, facts


def _with_most_drafts(run: TrainingRun, samples: list[Sample]) -> tuple[TrainingRun, set[int]]:
    draft_counts = {len(sample.drafts) for sample in samples if sample.drafts}
    return replace(run, most_drafts=max(draft_counts, default=0)), draft_counts


def _fit(
    run: TrainingRun, rows: list[TrainingRow], encoder: Encoder, say: Callable[[str], None]
) -> tuple[TrainingRun, CheckpointConfig, list[str]]:
    """Train on targets unless the run is finished, and return what cards need."""
    config = run.config
    validation_rows = read_training_rows(config.validation) if config.validation else []
    samples = make_samples(rows, run.kind, config)
    run, draft_counts = _with_most_drafts(run, samples)
    overlap = measure(samples)
    encoded = encoder.encode_all(samples)
    facts = data_facts(rows, samples, encoded, overlap)
    validation, diagnosis = Encoded([], 0, 0), None
    if validation_rows:
        validation_samples = make_samples(validation_rows, run.kind, config)
        validation = encoder.encode_all(validation_samples, "validation examples")
        sizes = f"{len(validation_rows)} rows, {len(validation.examples)} examples"
        facts.append(f"validation: {sizes}; {_length_facts(validation)}")
    aft = checkpoint_config(run, draft_counts)
    if not run.finished:
        from trainers.fitting import loop
        from trainers.fitting.diagnosis import Diagnosis

        for line in [*facts, *_target_warnings(run.kind, rows, samples, overlap, config)]:
            say(line)
        if encoded.hidden:
            say(f"warning: {encoded.hidden} drafts are not shown: without control tokens and thoughts they are empty.")
        if encoded.unknown:
            say(
                f"warning: {encoded.unknown} of {len(encoded.examples)} targets hold words that the tokenizer does not "
                "know: they are learnt as its unknown token. Use another tokenizer, or remove these words."
            )
        if validation_rows and config.diagnose:
            verify = load_verifier(config.verifier, config.gold, "verifier=") if config.verifier else None
            diagnosis = Diagnosis(validation_samples, encoder, config.diagnose, verify, config.seed, say)
        loop.fit(run, encoder, encoded.examples, validation.examples, aft, facts, say, diagnosis)
    return run, aft, facts


def require_tracker(name: str) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        ConfigError: If it is missing.
    """
    if name != "none" and find_spec(name) is None:
        raise ConfigError(f"report_to={name} needs {name}, which is not installed: pip install {name}.")


def require_trl() -> None:
    """Refuse to train by rewards without TRL, or with an older one than was tested.

    Raises:
        ConfigError: If it is missing or too old.
    """
    try:
        installed = version("trl")
    except PackageNotFoundError:
        raise ConfigError("aft train rl needs TRL, which is not installed: pip install 'lm_eval_aft[rl]'.") from None
    if tuple(int(part) for part in installed.split(".")[:2]) < LEAST_TRL:
        least = ".".join(map(str, LEAST_TRL))
        raise ConfigError(f"aft train rl needs TRL {least} or newer, and {installed} is installed: pip install -U trl.")


def data_facts(rows: list[TrainingRow], samples: list[Sample], encoded: Encoded, overlap: Overlap) -> list[str]:
    """Facts about the training data, for terminal and card."""
    single = sum(not sample.drafts for sample in samples)
    lengths = [len(example.token_ids) for example in encoded.examples]
    learnt = sum(lengths) - sum(example.prompt_tokens for example in encoded.examples)
    facts = [
        f"{len(rows)} rows, {len(samples)} examples: {len(samples) - single} with drafts, {single} without",
        f"{sum(lengths):,} tokens, {learnt:,} of them learnt; an example has {sum(lengths) / len(lengths):.0f}, the "
        f"longest {max(lengths)}",
        _length_facts(encoded),
    ]
    return facts + (overlap.lines() if overlap.samples else [])


def _length_facts(encoded: Encoded) -> str:
    return f"over max_length: {encoded.too_long} examples left out, drafts cut in {encoded.cut}"


def _target_warnings(
    kind: Kind, rows: list[TrainingRow], samples: list[Sample], overlap: Overlap, config: TrainConfig
) -> list[str]:
    if kind != "aft":
        return []
    same = all(row.sft_target == row.target for row in rows)
    messages = warnings(overlap, samples, pseudo_samples(rows, config), same)
    partly_shown = sum(len(row.drafts) > min(config.k, default=inf) and not row.sources for row in rows)
    if partly_shown:
        messages.append(
            f"k={','.join(map(str, config.k))} does not show all drafts of {partly_shown} rows, and no sources say "
            "which ones their targets were made from: leave k out, and make sets of each size with aft data aggregate "
            "--k."
        )
    return [f"warning: {text}" for text in messages]


def checkpoint_config(run: TrainingRun, draft_counts: Collection[int]) -> CheckpointConfig:
    """Contents of aft_config.json; ``draft_counts`` are the numbers of drafts that examples show."""
    config = run.config
    return CheckpointConfig(
        template=run.template.source,
        template_sha256=run.template.digest,
        k=max(draft_counts) if len(set(draft_counts)) == 1 else None,
        base_model=config.model,
        base_revision=config.revision or "",
        mask_policy=MASK_POLICY if run.kind != "rl" else REWARD_POLICY,
        data_digest=run.data_digest,
    )


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


# accelerate launch -m trainers.train runs this module.
if __name__ == "__main__":
    from lm_eval_aft.cli.runner import run

    run(train, "aft train")
