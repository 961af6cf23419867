"""The training loop of ``aft train rl``: TRL's GRPO or RLOO on the prompts of inference."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from lm_eval_aft.core.errors import ConfigError, PromptTooLong
from lm_eval_aft.core.loading import reason_of
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from trainers.fitting.callbacks import RunLog
from trainers.fitting.examples import Encoder
from trainers.fitting.export import prompt_text
from trainers.fitting.loop import Checkpointing, arguments, run_trainer, use_one_gpu
from trainers.fitting.model import model_to_train
from trainers.fitting.run import Say, TrainingRun
from trainers.generation.targets import balance_mixed
from trainers.reinforcement.rewards import Rewards
from trainers.rows.samples import Sample
from trainers.settings import RLConfig

# TRL's figures that the log holds, and their names there.
FIGURES = {name: name for name in ("reward", "reward_std", "grade", "copy_rate", "kl", "entropy")}
FIGURES |= {"completions/mean_length": "length", "completions/clipped_ratio": "cut"}
FIGURES |= {"frac_reward_zero_std": "equal_groups"}


class Reinforcing(Checkpointing):
    """What our trainers change of TRL's."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)
        # A seed for each epoch, so that a resumed run has the order of an undisturbed one.
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(sampler.seed * 1_000_003 + epoch)
        return sampler

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card of TRL's: each checkpoint has ours."""


class GRPO(Reinforcing, GRPOTrainer):
    """GRPO with our checkpoints."""


class RLOO(Reinforcing, RLOOTrainer):
    """RLOO with our checkpoints."""


def reinforce(
    run: TrainingRun, encoder: Encoder, samples: Sequence[Sample], aft: CheckpointConfig, facts: list[str], say: Say
) -> None:
    """Train, or resume training, and save the result. Facts about the prompts are added to ``facts``.

    Raises:
        AFTError: If a setting, the reward, a row or the model is wrong, or the loss is not a number.
    """
    config = run.config
    assert isinstance(config, RLConfig)
    rewards = Rewards(config, samples, say)
    prompts = _encode(encoder, rewards, _mixed(rewards, config, facts), config, facts)
    _check_batches(config, len(prompts), run.processes)
    for fact in facts:
        say(fact)
    lengths, highest = [len(ids) + config.max_new_tokens for *_, ids in prompts], max(max(ids) for *_, ids in prompts)
    model = model_to_train(config, encoder.end_id, highest, lengths, say)
    trainer_class, settings_class = (GRPO, GRPOConfig) if config.algorithm == "grpo" else (RLOO, RLOOConfig)
    # TRL 1.16 has names that transformers 5.23 deprecates.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            args = _arguments(config, settings_class)
            use_one_gpu(args, say)
            trainer = trainer_class(
                RunLog(run, aft, facts, say, FIGURES),
                model=model,
                reward_funcs=rewards,
                args=args,
                train_dataset=Dataset.from_list([{"prompt": text, "number": number} for number, text, _ in prompts]),
                processing_class=encoder.renderer.tokenizer,
            )
        except (TypeError, ValueError, ImportError) as error:
            raise ConfigError(f"TRL refuses these settings ({reason_of(error)}): correct them.") from error
        run_trainer(trainer, run, aft, facts, say)
    if rewards.failed:
        say(f"warning: {rewards.failed} of {rewards.tried} grades failed and counted 0.")
    if rewards.batches and not rewards.differ:
        say("warning: the texts of each prompt always got equal rewards: there was nothing to learn.")


def _mixed(rewards: Rewards, config: RLConfig, facts: list[str]) -> list[int]:
    """The numbers of the samples to train on, such that mixed draft sets have their share."""
    if rewards.verify is None:
        if config.mixed:
            raise ConfigError("mixed needs a verifier as the reward, which says which drafts are right: leave it out.")
        return list(range(len(rewards.samples)))
    numbered = list(enumerate(rewards.samples))
    sets = [dict[str, Any](number=n, right=rewards.right_drafts(sample)) for n, sample in numbered if sample.drafts]
    if config.mixed:
        if not sets:
            raise ConfigError(f"mixed={config.mixed:g} needs prompts with drafts: leave it out, or lower plain_share.")
        drawn, sets = len(sets), balance_mixed(sets, config.mixed, config.seed)
        facts.append(f"left out for mixed: {drawn - len(sets)} prompts")
    counts = sorted(Counter((len(each["right"]), sum(each["right"])) for each in sets).items())
    facts.append(f"prompts by right drafts: {', '.join(f'{good} of {k}: {n}' for (k, good), n in counts)}")
    return [each["number"] for each in sets] + [number for number, sample in numbered if not sample.drafts]


def _encode(
    encoder: Encoder, rewards: Rewards, numbers: Sequence[int], config: RLConfig, facts: list[str]
) -> list[tuple[int, str, list[int]]]:
    """Number, text and token ids of each prompt that fits beside ``max_new_tokens``. TRL must make the same ids."""
    prompts, cut = [], 0
    for number in numbers:
        try:
            fitted = encoder.fit_prompt(rewards.samples[number], config.max_new_tokens)
        except PromptTooLong:
            continue
        text, ids = prompt_text(encoder, fitted), list(fitted.prompt.token_ids or ())
        if list(encoder.renderer.tokenizer(text)["input_ids"]) != ids:
            raise ConfigError(f"TRL would make other tokens of {rewards.samples[number].where}: use another tokenizer.")
        prompts.append((number, text, ids))
        cut += any(fitted.cut_tokens)
    if not prompts:
        limits = f"max_length={config.max_length} beside max_new_tokens={config.max_new_tokens}"
        raise ConfigError(f"none of the {len(numbers)} prompts fits {limits}: raise the first, or lower the second.")
    facts.append(f"over max_length: {len(numbers) - len(prompts)} prompts left out, drafts cut in {cut}")
    return prompts


def _check_batches(config: RLConfig, prompts: int, processes: int) -> None:
    """Refuse batches that TRL cannot divide into groups, or would drop."""
    texts, group = config.batch_size * config.accumulate * processes, config.generations
    if texts % group:
        raise ConfigError(f"batch_size * accumulate * processes is {texts}: make it a multiple of generations={group}.")
    if (needed := texts // group) > prompts:
        raise ConfigError(f"a step needs {needed} prompts and there are {prompts}: lower batch_size or give more rows.")


def _arguments(config: RLConfig, settings_class: Any) -> Any:
    return arguments(
        config,
        False,
        settings_class,
        num_generations=config.generations,
        temperature=config.temperature,
        top_p=config.top_p,
        max_completion_length=config.max_new_tokens,
        beta=config.beta,
        include_num_input_tokens_seen="no",
        use_vllm=config.vllm is not None,
        **{f"vllm_{name}": value for name, value in (config.vllm or {}).items()},
    )
