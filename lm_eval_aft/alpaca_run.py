"""The judge of AlpacaEval that a run itself names, read and checked before anything is generated.

Knows the keys of ``--metadata``; judging is ``alpaca``'s. Called by the task aft_alpaca_eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft.alpaca import CACHE, Say, judge_outputs, read_reference
from lm_eval_aft.alpaca_data import Output, refuse_namesakes
from lm_eval_aft.alpaca_method import PUBLIC_TOP
from lm_eval_aft.alpaca_package import find_difficulty, package
from lm_eval_aft.alpaca_verdict import Plan, Verdict
from lm_eval_aft.config import SECRET
from lm_eval_aft.errors import ConfigError
from lm_eval_aft.judge import Judge
from lm_eval_aft.parse import flag, integer


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
    def of(cls, settings: Mapping[str, Any], whole: bool, record: str | None, generator: str) -> RunJudge | None:
        """Read the settings and all that judging needs, before anything is generated; None where no judge is named.

        Args:
            settings: ``--metadata`` with the model arguments.
            whole: Whether the run answers the whole eval set, which length control needs.
            record: Where the run keeps its answers.
            generator: What the model is called.

        Raises:
            AFTError: If a setting is missing or wrong, or reference answers, the package or df_gamed.csv are.
        """
        _refuse_secrets(settings)
        named = [settings.get(name) for name in ("judge_model", "judge_base_url")]
        if not any(named):
            return None
        if not all(named):
            raise ConfigError("--metadata names half a judge: give both judge_model=NAME and judge_base_url=URL.")
        if not record:
            raise ConfigError("a run that is judged must keep its answers and judgements: give record=DIR.")
        plan = _plan(settings)
        with package():
            pass
        if plan.length_control and whole:
            find_difficulty(plan.difficulty)
        references = read_reference(_path(settings, "alpaca_reference"))
        refuse_namesakes(generator, references[0].generator)
        most = settings.get("max_judge_calls")
        most_calls = None if most is None else integer(0)("max_judge_calls", most)
        model, base_url = map(str, named)
        judge = cls(model, base_url, str(settings.get("judge_revision", "")), most_calls, references, plan)
        judge._open(None).close()  # an address that cannot be one is found here
        return judge

    def judge(self, outputs: Sequence[Output], folder: Path, say: Say) -> Verdict:
        """See ``judge_outputs``.

        Raises:
            AFTError: If it fails; what was judged by then is kept in the folder.
        """
        with closing(self._open(folder / CACHE)) as judge:
            return judge_outputs(outputs, self.references, judge, self.plan, folder, say)

    def _open(self, cache: Path | None) -> Judge:
        return Judge(self.model, self.base_url, cache=cache, revision=self.revision, max_calls=self.max_calls)


def _plan(settings: Mapping[str, Any]) -> Plan:
    def said(name: str) -> bool:
        return flag(name, settings.get(name, False))

    return Plan(
        not said("alpaca_no_lc"),
        _path(settings, "alpaca_difficulty"),
        said("alpaca_allow_missing"),
        said("alpaca_regex"),
        integer(1, 21)("alpaca_top_logprobs", settings.get("alpaca_top_logprobs", PUBLIC_TOP)),
    )


def _path(settings: Mapping[str, Any], name: str) -> Path | None:
    return Path(str(settings[name])) if settings.get(name) else None


def _refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Metadata lands in result files, so no message may repeat the value either."""
    for name in settings:
        if name.startswith("judge_") and SECRET.search(name):
            raise ConfigError(
                f"{name} must not be given in --metadata, which is written into result files: set the environment "
                "variable OPENAI_API_KEY."
            )
