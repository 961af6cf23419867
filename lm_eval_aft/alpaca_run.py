"""The judge of AlpacaEval that a run itself names, read and checked before anything is generated.

Knows the keys of ``--metadata``; judging is ``alpaca``'s. Called by the task aft_alpaca_eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft.alpaca import CACHE, Say, judge_outputs, read_reference
from lm_eval_aft.alpaca_data import Output
from lm_eval_aft.alpaca_package import find_difficulty, package
from lm_eval_aft.alpaca_verdict import Plan, Verdict
from lm_eval_aft.errors import ConfigError
from lm_eval_aft.judge import Judge


@dataclass(frozen=True, slots=True)
class RunJudge:
    """The judge that a run of aft_alpaca_eval names in its ``--metadata``."""

    model: str
    base_url: str
    revision: str
    max_calls: int | None
    references: tuple[Output, ...]
    plan: Plan

    @classmethod
    def of(cls, settings: Mapping[str, Any], whole: bool) -> RunJudge | None:
        """Read the settings and all that judging needs, before anything is generated; None where no judge is named.

        Args:
            settings: ``--metadata``.
            whole: Whether the run answers the whole eval set, which length control needs.

        Raises:
            AFTError: If a setting is missing, or reference answers, the package or df_gamed.csv cannot be had.
        """
        named = [settings.get(name) for name in ("judge_model", "judge_base_url")]
        if not any(named):
            return None
        if not all(named):
            raise ConfigError("--metadata names half a judge: give both judge_model=NAME and judge_base_url=URL.")
        plan = Plan(
            not _yes(settings, "alpaca_no_lc"),
            _path(settings, "alpaca_difficulty"),
            _yes(settings, "alpaca_allow_missing"),
            _yes(settings, "alpaca_regex"),
            int(settings.get("alpaca_top_logprobs", 5)),
        )
        with package():
            pass
        if plan.length_control and whole:
            find_difficulty(plan.difficulty)
        most = settings.get("max_judge_calls")
        return cls(
            str(settings["judge_model"]),
            str(settings["judge_base_url"]),
            str(settings.get("judge_revision", "")),
            None if most is None else int(most),
            read_reference(_path(settings, "alpaca_reference")),
            plan,
        )

    def judge(self, outputs: Sequence[Output], folder: Path | None, say: Say) -> Verdict:
        """See ``judge_outputs``.

        Raises:
            AFTError: If it fails; what was judged by then is kept in the folder.
        """
        cache = folder / CACHE if folder else None
        judge = Judge(self.model, self.base_url, cache=cache, revision=self.revision, max_calls=self.max_calls)
        try:
            return judge_outputs(outputs, self.references, judge, self.plan, folder, say)
        finally:
            judge.close()


def _yes(settings: Mapping[str, Any], name: str) -> bool:
    return str(settings.get(name, "")).lower() in ("true", "1", "yes")


def _path(settings: Mapping[str, Any], name: str) -> Path | None:
    return Path(settings[name]) if settings.get(name) else None
