"""The judge of AlpacaEval that a run itself names, read and checked before anything is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lm_eval_aft.core.arguments import flag, integer
from lm_eval_aft.judging.alpaca_eval.annotate import PUBLIC_TOP_LOGPROBS
from lm_eval_aft.judging.alpaca_eval.data import ModelOutput, refuse_equal_names
from lm_eval_aft.judging.alpaca_eval.package import find_difficulty, require_package
from lm_eval_aft.judging.alpaca_eval.run import judge_outputs, read_reference
from lm_eval_aft.judging.alpaca_eval.scores import AlpacaSummary, ScoringOptions
from lm_eval_aft.judging.cache import CACHE_FILE
from lm_eval_aft.judging.judge import Estimate
from lm_eval_aft.judging.metadata import NamedJudge, RunJudge, path_setting


@dataclass(frozen=True, slots=True)
class AlpacaRunJudge(RunJudge):
    """The judge that a run of aft_alpaca_eval names in its ``--metadata``.

    Attributes:
        named: The judge.
        references: The answers that the model's are compared with.
        scoring: How to compare and score.
        file: The file of ``references``; None for the hub's.
    """

    benchmark: ClassVar[str] = "alpaca_eval"
    references: tuple[ModelOutput, ...]
    scoring: ScoringOptions
    file: Path | None

    @classmethod
    def from_metadata(
        cls, settings: Mapping[str, Any], whole: bool, record: str | None, generator: str
    ) -> AlpacaRunJudge | None:
        """Read the settings and all that judging needs; None if no judge is named.

        Args:
            settings: ``--metadata`` with the model arguments.
            whole: Whether the run answers the whole eval set, which length control needs.
            record: Where the run keeps its answers.
            generator: The model's name.

        Raises:
            AFTError: If a setting is missing or wrong, or the references, the package or df_gamed.csv are missing.
        """
        named = NamedJudge.from_metadata(settings, record)
        if named is None:
            return None
        scoring = _scoring(settings)
        require_package()
        if scoring.length_control and whole:
            find_difficulty(scoring.difficulty)
        file = path_setting(settings, "alpaca_reference")
        references = read_reference(file)
        refuse_equal_names(generator, references[0].generator)
        return cls(named, references, scoring, file)

    def judge(
        self, outputs: Sequence[ModelOutput], folder: Path, show_estimate: Callable[[Estimate], None]
    ) -> AlpacaSummary:
        """See ``judge_outputs``.

        Raises:
            AFTError: If judging fails. The folder keeps the judgements that were made.
        """
        with closing(self.named.open(folder / CACHE_FILE)) as judge:
            return judge_outputs(outputs, self.references, judge, self.scoring, folder, show_estimate)

    def options(self) -> dict[str, str | bool]:
        """See ``RunJudge.options``."""
        scoring = self.scoring
        return {
            "--reference": str(self.file or ""),
            "--difficulty": str(scoring.difficulty or ""),
            "--top-logprobs": str(scoring.top_logprobs),
            "--regex": scoring.regex,
            "--no-lc": not scoring.length_control,
            "--allow-missing": scoring.allow_missing,
        }


def _scoring(settings: Mapping[str, Any]) -> ScoringOptions:
    def is_set(name: str) -> bool:
        return flag(name, settings.get(name, False))

    return ScoringOptions(
        not is_set("alpaca_no_lc"),
        path_setting(settings, "alpaca_difficulty"),
        is_set("alpaca_allow_missing"),
        is_set("alpaca_regex"),
        integer(1, 21)("alpaca_top_logprobs", settings.get("alpaca_top_logprobs", PUBLIC_TOP_LOGPROBS)),
    )
