"""The judge of AlpacaEval that a run itself names, read and checked before anything is generated.

Knows the keys of ``--metadata``; judging is ``alpaca``'s. Called by the task aft_alpaca_eval.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft.core.arguments import flag, integer
from lm_eval_aft.judging.alpaca_eval.data import Output, refuse_namesakes
from lm_eval_aft.judging.alpaca_eval.methods import PUBLIC_TOP
from lm_eval_aft.judging.alpaca_eval.package import find_difficulty, package
from lm_eval_aft.judging.alpaca_eval.run import judge_outputs, read_reference
from lm_eval_aft.judging.alpaca_eval.summary import AlpacaSummary, ScoringOptions
from lm_eval_aft.judging.judge import CACHE_FILE, Estimate
from lm_eval_aft.judging.metadata import NamedJudge, named_path


@dataclass(frozen=True, slots=True)
class RunJudge:
    """The judge that a run of aft_alpaca_eval names in its ``--metadata``, what it compares with, and how.

    Attributes:
        named: Which, and where.
        references: What the answers are compared with.
        plan: How.
        file: What the references were read from; None where that was the hub.
    """

    named: NamedJudge
    references: tuple[Output, ...]
    plan: ScoringOptions
    file: Path | None

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
        named = NamedJudge.of(settings, record)
        if named is None:
            return None
        plan = _plan(settings)
        with package():
            pass
        if plan.length_control and whole:
            find_difficulty(plan.difficulty)
        file = named_path(settings, "alpaca_reference")
        references = read_reference(file)
        refuse_namesakes(generator, references[0].generator)
        return cls(named, references, plan, file)

    def judge(self, outputs: Sequence[Output], folder: Path, say: Callable[[Estimate], None]) -> AlpacaSummary:
        """See ``judge_outputs``.

        Raises:
            AFTError: If it fails; what was judged by then is kept in the folder.
        """
        with closing(self.named.open(folder / CACHE_FILE)) as judge:
            return judge_outputs(outputs, self.references, judge, self.plan, folder, say)

    def command(self, run: Path) -> str:
        """The command that goes on where this run's judge stopped."""
        named, plan = self.named, self.plan
        words = {"--judge-model": named.model, "--judge-base-url": named.base_url, "--judge-revision": named.revision}
        words |= {"--reference": str(self.file or ""), "--difficulty": str(plan.difficulty or "")}
        words |= {"--top-logprobs": str(plan.top_logprobs)}
        flags = {"--regex": plan.regex, "--no-lc": not plan.length_control, "--allow-missing": plan.allow_missing}
        options = [f"{option} {shlex.quote(word)}" for option, word in words.items() if word]
        options += [option for option, chosen in flags.items() if chosen]
        return " ".join(["aft judge alpaca_eval", shlex.quote(str(run)), *options])


def _plan(settings: Mapping[str, Any]) -> ScoringOptions:
    def said(name: str) -> bool:
        return flag(name, settings.get(name, False))

    return ScoringOptions(
        not said("alpaca_no_lc"),
        named_path(settings, "alpaca_difficulty"),
        said("alpaca_allow_missing"),
        said("alpaca_regex"),
        integer(1, 21)("alpaca_top_logprobs", settings.get("alpaca_top_logprobs", PUBLIC_TOP)),
    )
