"""The model that writes data: an engine, its prompts and a store, opened from the arguments of ``--model aft``.

Every text it writes is kept the moment it ends, so a command that was killed goes on where it was. Knows nothing of
rows. Called by the data commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval_aft.core.arguments import key_values
from lm_eval_aft.core.config import AFTConfig, samplings
from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Completion, Prompt, Question, Request, Sampling
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.checkpoint import choose_template
from lm_eval_aft.inference.generate import generate_or_reuse, show_progress
from lm_eval_aft.inference.schedule import generation_seed
from lm_eval_aft.storage.draft_store import Store, open_store

DRAFTS = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}  # how the paper sampled on-policy drafts


@dataclass(frozen=True, slots=True)
class TextGenerator:
    """An engine with what it needs to write texts that are kept."""

    engine: Engine
    template: Template
    config: AFTConfig
    store: Store
    name: str

    @property
    def sampling(self) -> Sampling:
        """How texts are drawn."""
        return samplings(self.config, {})[0]

    @property
    def budget(self) -> int:
        """Tokens that a prompt may have."""
        return self.engine.max_length - self.sampling.max_tokens

    def request(self, prompt: Prompt, chat: Chat, layer: int, index: int, repeat: int = 0) -> Request:
        """A request whose seed is the schedule's for this place: data drafts are the drafts of inference."""
        question = Question(chat, self.sampling, self.sampling, repeat=repeat)
        return Request(prompt, self.sampling, generation_seed(self.config, question, layer, index))

    def write(self, requests: Sequence[Request], name: str) -> list[Completion]:
        """The completions of all requests, in their order."""
        done: dict[int, Completion] = {}
        steps = generate_or_reuse(requests, self.engine, self.store)
        for position, completion, _ in show_progress(steps, name, len(requests), quiet=False):
            done[position] = completion
        return [done[position] for position in range(len(requests))]

    def facts(self) -> dict[str, Any]:
        """What the card of the output says about the model."""
        settings = {name: value for name, value in self.config.to_dict().items() if value is not None}
        settings = {name: value for name, value in settings.items() if not _has_no_meaning(name) and name != "cache"}
        return {"model": self.name, "fingerprint": self.engine.fingerprint, **settings}


def _has_no_meaning(name: str) -> bool:
    """Whether an argument of ``--model aft`` is of the schedule, the answer or the scoring, which are not used here."""
    schedule = {"k", "layers", "strategy", "probe", "drafts_from", "record", "reward_model", "vote_regex"}
    return name in schedule | {"mcq", "mcq_orders", "think_end_token"} or name.startswith("final_")


def open_writer(
    model_args: str, out: Path, device: str, batch_size: str, defaults: Mapping[str, Any] | None = None
) -> TextGenerator:
    """Load an engine.

    Args:
        model_args: As for ``--model aft``, without those of the schedule (k, layers, final_..., record and so on).
        out: File that is being made; the store lies beside it unless ``cache=`` names one.
        device: As for lm_eval.
        batch_size: As for lm_eval.
        defaults: Arguments that hold unless ``model_args`` says otherwise.

    Raises:
        AFTError: If an argument is wrong or the engine cannot be loaded.
    """
    given = key_values("--model_args", model_args)
    for name in given:
        if _has_no_meaning(name):
            raise ConfigError(f"--model_args {name}={given[name]} has no meaning here: leave it out.")
    config, engine_args = AFTConfig.split({**(defaults or {}), **given})
    name = str(engine_args.get("pretrained") or engine_args.get("model") or config.engine)
    template = choose_template(config, engine_args)
    store = open_store(config.cache, f"{out}.sqlite")
    engine = load_engine(config.engine, engine_args, HostArgs(batch_size, None, device))
    return TextGenerator(engine, template, replace(config, layers=1), store, name)
