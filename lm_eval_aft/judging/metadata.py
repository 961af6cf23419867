"""The judge that a run names in its ``--metadata``, the same way for every benchmark.

Knows the keys ``judge_model``, ``judge_base_url``, ``judge_revision`` and ``max_judge_calls``, and that nothing secret
may stand beside them; what is judged how is the benchmarks'. Called by ``alpaca_run`` and ``mt_bench_run``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft.core.arguments import integer
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.secrets import refuse_secrets
from lm_eval_aft.judging.judge import Judge


@dataclass(frozen=True, slots=True)
class NamedJudge:
    """A judge behind an address.

    Attributes:
        model: The server's name of it.
        base_url: The server's address.
        revision: Which weights it serves, in the user's words.
        max_calls: Never more calls than these; None is no bound.
    """

    model: str
    base_url: str
    revision: str
    max_calls: int | None

    @classmethod
    def of(cls, settings: Mapping[str, Any], record: str | None) -> NamedJudge | None:
        """Read and check the settings; None where no judge is named.

        Args:
            settings: ``--metadata`` with the model arguments.
            record: Where the run keeps its traces.

        Raises:
            ConfigError: If a setting is missing or wrong, or one holds a secret.
        """
        refuse_secrets((name for name in settings if name.startswith("judge_")), "--metadata")
        model, base_url = (settings.get(name) for name in ("judge_model", "judge_base_url"))
        if not model and not base_url:
            return None
        if not model or not base_url:
            raise ConfigError("--metadata names half a judge: give both judge_model=NAME and judge_base_url=URL.")
        if not record:
            raise ConfigError(
                "a run that is judged must keep its answers and judgements: give record=DIR in --model_args."
            )
        most = settings.get("max_judge_calls")
        most_calls = None if most is None else integer(0)("max_judge_calls", most)
        named = cls(str(model), str(base_url), str(settings.get("judge_revision", "")), most_calls)
        named.open(None).close()  # an address that cannot be one is found before anything is generated
        return named

    def open(self, cache: Path | None, **settings: Any) -> Judge:
        """The judge, ready to be asked; see ``Judge`` for the settings."""
        return Judge(
            self.model, self.base_url, cache=cache, revision=self.revision, max_calls=self.max_calls, **settings
        )


def named_path(settings: Mapping[str, Any], name: str) -> Path | None:
    """The file or folder that a setting names, if it names one."""
    return Path(str(settings[name])) if settings.get(name) else None
