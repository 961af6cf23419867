"""The judge that a run names in its ``--metadata``, in the same way for every benchmark."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lm_eval_aft.core.arguments import integer, refuse_secrets
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.paths import check_path
from lm_eval_aft.judging.judge import Judge


@dataclass(frozen=True, slots=True)
class NamedJudge:
    """A judge at an address.

    Attributes:
        model: The server's name of the judge.
        base_url: The server's address.
        revision: The weights that the server runs, in the user's words.
        max_calls: Upper bound of the number of calls; None for no bound.
    """

    model: str
    base_url: str
    revision: str
    max_calls: int | None

    @classmethod
    def from_metadata(cls, settings: Mapping[str, Any], record: str | None) -> NamedJudge | None:
        """Read and check the settings; None if no judge is named.

        Args:
            settings: ``--metadata`` with the model arguments.
            record: Where the run keeps its traces.

        Raises:
            ConfigError: If a setting is missing or wrong, or one holds a secret.
        """
        own = {name: value for name, value in settings.items() if name.startswith(("judge_", "mt_bench_", "alpaca_"))}
        refuse_secrets(own, "--metadata")
        model, base_url = (settings.get(name) for name in ("judge_model", "judge_base_url"))
        if not model and not base_url:
            return None
        if not model or not base_url:
            raise ConfigError(
                "--metadata names only a part of a judge: give both judge_model=NAME and judge_base_url=URL."
            )
        if not record:
            raise ConfigError(
                "a run that is judged must keep its answers and judgements: give record=DIR in --model_args."
            )
        bound = settings.get("max_judge_calls")
        max_calls = None if bound is None else integer(0)("max_judge_calls", bound)
        named = cls(str(model), str(base_url), str(settings.get("judge_revision", "")), max_calls)
        # a wrong address is refused before anything is generated
        named.open(None).close()
        return named

    def open(self, cache: Path | None, **settings: Any) -> Judge:
        """The judge, ready for calls; see ``Judge`` for the settings."""
        return Judge(
            self.model, self.base_url, cache=cache, revision=self.revision, max_calls=self.max_calls, **settings
        )


@dataclass(frozen=True, slots=True)
class RunJudge(ABC):
    """The judge that a run names, with all that its benchmark needs. Each benchmark has its own class.

    Attributes:
        benchmark: Name of the command under ``aft judge``.
        named: The judge.
    """

    benchmark: ClassVar[str]
    named: NamedJudge

    @abstractmethod
    def options(self) -> dict[str, str | bool]:
        """The options with which the command judges as this run does. A flag is True; an empty text is left out."""

    def command(self, run: Path) -> str:
        """The command that makes the judgements which this run's judge did not."""
        named = self.named
        options: dict[str, str | bool] = {
            "--judge-model": named.model,
            "--judge-base-url": named.base_url,
            "--judge-revision": named.revision,
        }
        options |= self.options()
        words = ["aft", "judge", self.benchmark, str(run)]
        for option, value in options.items():
            if value:
                words += [option] if value is True else [option, str(value)]
        return shlex.join(words)


def path_setting(settings: Mapping[str, Any], name: str) -> Path | None:
    """The path that a setting names; None if it is not set."""
    return Path(check_path(f"{name}=", str(settings[name]))) if settings.get(name) else None
