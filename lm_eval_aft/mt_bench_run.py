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

from lm_eval_aft.config import SECRET
from lm_eval_aft.errors import ConfigError
from lm_eval_aft.judge import Judge
from lm_eval_aft.mt_bench import Answer, Dialogue, Material, read_references
from lm_eval_aft.mt_bench_judge import CACHE, MAX_TOKENS, Plan, Say, judge_answers
from lm_eval_aft.mt_bench_prompts import PromptSet, prompt_set
from lm_eval_aft.mt_bench_scores import Scores
from lm_eval_aft.parse import flag, integer, mapping, real


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
        model: The server's name of it.
        base_url: The server's address.
        revision: Which weights it serves, in the user's words.
        max_calls: Never more calls than these; None is no bound.
        prompts: What it is asked with.
        plan: How.
        extra_body: Further fields of each call.
        files: What ``prompts`` was read from, by the option of ``aft judge mt_bench``.
    """

    model: str
    base_url: str
    revision: str
    max_calls: int | None
    prompts: PromptSet
    plan: Plan
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
        _refuse_secrets(settings)
        named = [settings.get(name) for name in ("judge_model", "judge_base_url")]
        if not any(named):
            return None
        if not all(named):
            raise ConfigError("--metadata names half a judge: give both judge_model=NAME and judge_base_url=URL.")
        if not record:
            raise ConfigError(
                "a run that is judged must keep its answers and judgements: give record=DIR in --model_args."
            )
        references = _path(settings, "mt_bench_references")
        given = read_references(references) if references else None
        most = settings.get("max_judge_calls")
        judge = cls(
            str(settings["judge_model"]),
            str(settings["judge_base_url"]),
            str(settings.get("judge_revision", "")),
            None if most is None else integer(0)("max_judge_calls", most),
            prompt_set(_path(settings, "mt_bench_prompts"), given, dialogues),
            Plan(
                integer(1)("mt_bench_repeats", settings.get("mt_bench_repeats", 1)),
                flag("mt_bench_allow_missing", settings.get("mt_bench_allow_missing", False)),
                max_tokens=integer(1)("mt_bench_max_tokens", settings.get("mt_bench_max_tokens", MAX_TOKENS)),
                temperature=real(0)("mt_bench_temperature", settings.get("mt_bench_temperature", 0)),
            ),
            mapping("judge_extra_body", settings.get("judge_extra_body", {})),
            {"--judge-prompts": _path(settings, "mt_bench_prompts"), "--references": references},
        )
        judge._open(None).close()  # an address that cannot be one is found before anything is generated
        return judge

    def judge(self, material: Material, say: Say) -> Scores:
        """See ``judge_answers``."""
        with closing(self._open(material.folder / CACHE)) as judge:
            return judge_answers(material, self.prompts, judge, self.plan, say)

    def command(self, run: Path) -> str:
        """The command that goes on where this run's judge stopped."""
        words = {"--judge-model": self.model, "--judge-base-url": self.base_url, "--judge-revision": self.revision}
        words |= {option: str(file) for option, file in self.files.items() if file}
        words |= {"--extra-body": json.dumps(self.extra_body)} if self.extra_body else {}
        words |= {"--repeats": str(self.plan.repeats), "--max-tokens": str(self.plan.max_tokens)}
        words |= {"--temperature": f"{self.plan.temperature:g}"}
        options = [f"{option} {shlex.quote(word)}" for option, word in words.items() if word]
        return " ".join(["aft judge mt_bench", shlex.quote(str(run)), *options])

    def _open(self, cache: Path | None) -> Judge:
        return Judge(
            self.model,
            self.base_url,
            cache=cache,
            revision=self.revision,
            prompt_version=self.prompts.name,
            max_calls=self.max_calls,
            extra_body=self.extra_body,
        )


def _refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Metadata lands in result files, so no message may repeat the value either."""
    for name in settings:
        if name.startswith("judge_") and SECRET.search(name):
            raise ConfigError(
                f"{name} must not be given in --metadata, which is written into result files: set the environment "
                "variable OPENAI_API_KEY."
            )


def _path(settings: Mapping[str, Any], name: str) -> Path | None:
    return Path(str(settings[name])) if settings.get(name) else None
