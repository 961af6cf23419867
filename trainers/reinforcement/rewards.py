"""The reward of a text: the grade of a verifier or a reward model, less the penalties for length and for copying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.records import Message
from lm_eval_aft.inference.reward_model import RewardModel
from lm_eval_aft.storage.draft_store import NoStore
from trainers.generation.verifiers import load_verifier
from trainers.rows.grades import grade_of
from trainers.rows.row import shown_text
from trainers.rows.samples import Sample, copied_drafts
from trainers.settings import RLConfig

FORMS = "give exact:REGEX, task:NAME, module:function or model:REWARD_MODEL"
# Failures that are named, and batches of equal rewards that are not.
NAMED, PATIENT = 5, 5


class Rewards:
    """Rewards the texts of a run. It counts batches, and grades that it tried and that failed.

    ``verify`` is None for a reward model. ``differ`` says whether two texts of a prompt ever got different rewards.
    """

    def __init__(self, config: RLConfig, samples: Sequence[Sample], say: Callable[[str], None]) -> None:
        """Load the verifier or the reward model.

        Raises:
            AFTError: If it cannot be loaded.
        """
        self.config, self.samples, self.say = config, samples, say
        # TRL shows this name.
        self.__name__ = "reward"
        module, _, name = config.reward.partition(":")
        device = "cuda:0" if config.device == "auto" else config.device
        self._model = RewardModel(name, NoStore(), device, config.batch_size) if module == "model" else None
        self.verify = None if self._model else load_verifier(config.reward, config.gold, "reward=", FORMS)
        self.tried, self.failed, self.batches, self.differ = 0, 0, 0, False

    def __call__(
        self,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        number: Sequence[int],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """The rewards of texts; ``number`` holds the numbers of their samples.

        Raises:
            EngineError: If every text so far has failed.
        """
        samples, texts = [self.samples[each] for each in number], [shown_text(text) for text in completions]
        grades = self._grades(samples, texts)
        if 0 < self.failed == self.tried:
            raise EngineError(f"reward={self.config.reward} failed for all of {self.failed} texts: correct it.")
        copies = [bool(copied_drafts(text, sample)) for text, sample in zip(texts, samples, strict=True)]
        log_metric("grade", sum(grades) / len(grades))
        if shown := [copy for copy, sample in zip(copies, samples, strict=True) if sample.drafts]:
            log_metric("copy_rate", sum(shown) / len(shown))
        by_length, by_copy = self.config.length_penalty / self.config.max_new_tokens, self.config.copy_penalty
        parts = zip(grades, completion_ids, copies, strict=True)
        rewards = [grade - by_length * len(ids) - by_copy * copy for grade, ids, copy in parts]
        self.batches += 1
        self.differ |= len(set(zip(number, rewards, strict=True))) > len(set(number))
        if self.batches == PATIENT and not self.differ:
            self.say(f"warning: the texts of each prompt got equal rewards in {PATIENT} batches: nothing to learn yet.")
        return rewards

    def _grades(self, samples: Sequence[Sample], texts: Sequence[str]) -> list[float]:
        pairs = list(zip(texts, samples, strict=True))
        if self._model is None:
            return [self._grade(text, sample) for text, sample in pairs]
        return self._model.score([[(*sample.chat.messages, Message("assistant", text)) for text, sample in pairs]])[0]

    def _grade(self, text: str, sample: Sample) -> float:
        """The verifier's grade of a text; 0 if it fails."""
        assert self.verify is not None
        grade, reason = grade_of(self.verify, text, sample.data)
        self.tried += 1
        self.failed += bool(reason)
        if reason and self.failed <= NAMED:
            self.say(f"warning: the reward of {sample.where} failed ({reason}).")
        return grade

    def right_drafts(self, sample: Sample) -> list[bool]:
        """For each draft of a sample, whether the verifier takes it as right."""
        return [self._grade(shown_text(draft), sample) > 0 for draft in sample.drafts]
