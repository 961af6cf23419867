"""A run of MT-Bench: how answers reach the process that writes them, and the judge that the run itself names.

The judge is read and checked before anything is generated. Knows the keys of ``--metadata``; judging is
``mt_bench_judge``'s. Called by the task aft_mt_bench.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval_aft.core.arguments import flag, integer, mapping, real
from lm_eval_aft.judging.judge import CACHE_FILE
from lm_eval_aft.judging.metadata import NamedJudge, named_path
from lm_eval_aft.judging.mt_bench.data import Answer, Dialogue, Material, read_references
from lm_eval_aft.judging.mt_bench.prompts import PromptSet, prompt_set
from lm_eval_aft.judging.mt_bench.rate import MAX_TOKENS, RatingOptions, Say, judge_answers
from lm_eval_aft.judging.mt_bench.scores import Scores


class Words(float):
    """Words per turn of one dialogue; the answers travel in it to the process that writes and judges them."""

    row: tuple[int, Dialogue, Answer]

    @classmethod
    def of(cls, place: int, asked: Dialogue, answer: Answer) -> Words:
        """Count, and carry."""
        words = cls(fmean(len(turn.split()) for turn in answer.turns))
        words.row = (place, asked, answer)
        return words


@dataclass(frozen=True, slots=True)
class RunJudge:
    """The judge that a run of aft_mt_bench names in its ``--metadata``.

    Attributes:
        named: Which, and where.
        prompts: What it is asked with.
        plan: How.
        extra_body: Further fields of each call.
        files: What ``prompts`` was read from, by the option of ``aft judge mt_bench``.
    """

    named: NamedJudge
    prompts: PromptSet
    plan: RatingOptions
    extra_body: Mapping[str, Any]
    files: Mapping[str, Path | None]

    @classmethod
    def of(cls, settings: Mapping[str, Any], dialogues: Sequence[Dialogue], record: str | None) -> RunJudge | None:
        """Read the settings and what they name; None where no judge is named.

        Args:
            settings: ``--metadata`` with the model arguments.
            dialogues: The questions.
            record: Where the run keeps its traces.

        Raises:
            AFTError: If a setting is missing or wrong, or holds a secret.
        """
        named = NamedJudge.of(settings, record)
        if named is None:
            return None
        references = named_path(settings, "mt_bench_references")
        given = read_references(references) if references else None
        return cls(
            named,
            prompt_set(named_path(settings, "mt_bench_prompts"), given, dialogues),
            RatingOptions(
                integer(1)("mt_bench_repeats", settings.get("mt_bench_repeats", 1)),
                flag("mt_bench_allow_missing", settings.get("mt_bench_allow_missing", False)),
                max_tokens=integer(1)("mt_bench_max_tokens", settings.get("mt_bench_max_tokens", MAX_TOKENS)),
                temperature=real(0)("mt_bench_temperature", settings.get("mt_bench_temperature", 0)),
            ),
            mapping("judge_extra_body", settings.get("judge_extra_body", {})),
            {"--judge-prompts": named_path(settings, "mt_bench_prompts"), "--references": references},
        )

    def judge(self, material: Material, say: Say) -> Scores:
        """See ``judge_answers``."""
        open_judge = self.named.open(
            material.folder / CACHE_FILE, prompt_version=self.prompts.name, extra_body=self.extra_body
        )
        with closing(open_judge) as judge:
            return judge_answers(material, self.prompts, judge, self.plan, say)

    def command(self, run: Path) -> str:
        """The command that goes on where this run's judge stopped."""
        named = self.named
        words = {"--judge-model": named.model, "--judge-base-url": named.base_url, "--judge-revision": named.revision}
        words |= {option: str(file) for option, file in self.files.items() if file}
        words |= {"--extra-body": json.dumps(self.extra_body)} if self.extra_body else {}
        words |= {"--repeats": str(self.plan.repeats), "--max-tokens": str(self.plan.max_tokens)}
        words |= {"--temperature": f"{self.plan.temperature:g}"}
        options = [f"{option} {shlex.quote(word)}" for option, word in words.items() if word]
        return " ".join(["aft judge mt_bench", shlex.quote(str(run)), *options])
