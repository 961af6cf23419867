"""MT-Bench within a run: how answers reach the process that writes them, and the judge that the run itself names.

The judge's settings are read and checked before anything is generated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from lm_eval_aft.core.arguments import flag, integer, mapping, sampling_temperature
from lm_eval_aft.judging.cache import CACHE_FILE
from lm_eval_aft.judging.metadata import NamedJudge, RunJudge, path_setting
from lm_eval_aft.judging.mt_bench.data import AnswerSet, MTBenchAnswer, MTBenchQuestion, read_references
from lm_eval_aft.judging.mt_bench.prompts import PromptSet, prompt_set
from lm_eval_aft.judging.mt_bench.rate import MAX_TOKENS, RatingOptions, judge_answers
from lm_eval_aft.judging.mt_bench.scores import MTBenchScores


class WordsPerTurn(float):
    """Mean words per turn of one dialogue, with the question and its answer attached.

    Metric values are all that lm-eval gathers across processes.
    """

    row: tuple[int, MTBenchQuestion, MTBenchAnswer]

    @classmethod
    def of(cls, place: int, question: MTBenchQuestion, answer: MTBenchAnswer) -> WordsPerTurn:
        """The mean of one answer; ``place`` is the question's row in the data set."""
        words = cls(fmean(len(turn.split()) for turn in answer.turns))
        words.row = (place, question, answer)
        return words


@dataclass(frozen=True, slots=True)
class MTBenchRunJudge(RunJudge):
    """The judge that a run of aft_mt_bench names in its ``--metadata``.

    Attributes:
        named: The judge.
        prompts: The judge prompts.
        rating: How to judge.
        extra_body: Further fields of each call.
        files: The files that ``prompts`` was read from, by the option of ``aft judge mt_bench``.
    """

    benchmark: ClassVar[str] = "mt_bench"
    prompts: PromptSet
    rating: RatingOptions
    extra_body: Mapping[str, Any]
    files: Mapping[str, Path | None]

    @classmethod
    def from_metadata(
        cls, settings: Mapping[str, Any], questions: Sequence[MTBenchQuestion], record: str | None
    ) -> MTBenchRunJudge | None:
        """Read the settings and the files they name; None if no judge is named.

        Args:
            settings: ``--metadata`` with the model arguments.
            questions: The questions.
            record: Where the run keeps its traces.

        Raises:
            AFTError: If a setting is missing or wrong, or holds a secret.
        """
        named = NamedJudge.from_metadata(settings, record)
        if named is None:
            return None
        prompts = path_setting(settings, "mt_bench_prompts")
        references = path_setting(settings, "mt_bench_references")
        return cls(
            named,
            prompt_set(prompts, read_references(references) if references else None, questions),
            _rating(settings),
            mapping("judge_extra_body", settings.get("judge_extra_body", {})),
            {"--judge-prompts": prompts, "--references": references},
        )

    def judge(self, answer_set: AnswerSet, notify: Callable[[str], None]) -> MTBenchScores:
        """See ``judge_answers``."""
        cache = answer_set.folder / CACHE_FILE
        settings = {"prompt_version": self.prompts.name, "extra_body": self.extra_body}
        with closing(self.named.open(cache, **settings)) as judge:
            return judge_answers(answer_set, self.prompts, judge, self.rating, notify)

    def options(self) -> dict[str, str | bool]:
        """See ``RunJudge.options``."""
        files: dict[str, str | bool] = {option: str(file or "") for option, file in self.files.items()}
        return files | {
            "--extra-body": json.dumps(self.extra_body) if self.extra_body else "",
            "--repeats": str(self.rating.repeats),
            "--max-tokens": str(self.rating.max_tokens),
            "--temperature": f"{self.rating.temperature:g}",
            "--allow-missing": self.rating.allow_missing,
        }


def _rating(settings: Mapping[str, Any]) -> RatingOptions:
    return RatingOptions(
        integer(1)("mt_bench_repeats", settings.get("mt_bench_repeats", 1)),
        flag("mt_bench_allow_missing", settings.get("mt_bench_allow_missing", False)),
        max_tokens=integer(1)("mt_bench_max_tokens", settings.get("mt_bench_max_tokens", MAX_TOKENS)),
        temperature=sampling_temperature("mt_bench_temperature", settings.get("mt_bench_temperature", 0)),
    )
