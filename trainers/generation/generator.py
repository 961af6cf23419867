"""The model that writes data: an engine, its prompts and a draft store, opened from the arguments of ``--model aft``.

The store keeps every text when it is finished, so a killed command resumes where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lm_eval_aft.core.arguments import key_values
from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.config import BUDGETS, AFTConfig, samplings
from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.prompts import Template, check_templates
from lm_eval_aft.core.records import Chat, Completion, Prompt, Question, Request, Sampling
from lm_eval_aft.core.secrets import public
from lm_eval_aft.core.stops import stoppable
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.budget import Budget, Meter
from lm_eval_aft.inference.checkpoint import choose_template
from lm_eval_aft.inference.generate import generate_or_reuse, show_progress
from lm_eval_aft.inference.schedule import generation_seed
from lm_eval_aft.storage.draft_store import Store, kept_in, open_store

# The paper sampled on-policy drafts with these settings.
DRAFT_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
# Settings of ``--model aft`` that describe one text. The others are for layers, answers and scoring.
USED_SETTINGS = {
    *("temperature", "top_p", "top_k", "draft_max_tokens", "draft_until", "max_gen_toks", "seed"),
    *("template", "template_override", "engine", "cache", *BUDGETS),
}
UNUSED_SETTINGS = {field.name for field in fields(AFTConfig)} - USED_SETTINGS
# Texts that one command writes. Each is an object in memory.
MAX_TEXTS = 10_000_000


@dataclass(frozen=True, slots=True)
class TextGenerator:
    """An engine with what it needs to write texts and keep them.

    Attributes:
        engine: The engine.
        template: The prompts.
        config: Settings of the texts.
        store: Keeps the texts.
        name: The model's name on cards.
        meter: Counts the texts of the command towards ``max_generated_tokens`` and ``max_cost``.
    """

    engine: Engine
    template: Template
    config: AFTConfig
    store: Store
    name: str
    meter: Meter

    @property
    def sampling(self) -> Sampling:
        """Sampling settings of every text."""
        return samplings(self.config, {})[0]

    @property
    def budget(self) -> int:
        """Most tokens of a prompt."""
        return self.engine.max_length - self.sampling.max_tokens

    def request(self, prompt: Prompt, chat: Chat, layer: int, index: int, repeat: int = 0) -> Request:
        """A request with the seed of an evaluation, so data drafts equal the drafts of inference."""
        question = Question(chat, self.sampling, self.sampling, repeat=repeat)
        return Request(prompt, self.sampling, generation_seed(self.config, question, layer, index))

    def write(self, requests: Sequence[Request], name: str) -> list[Completion]:
        """The completions of all requests, in their order; ``name`` labels the progress bar.

        Raises:
            BudgetReached: If ``max_cost`` or ``max_generated_tokens`` is reached and texts are left to generate.
        """
        completions: dict[int, Completion] = {}
        steps = generate_or_reuse(requests, self.engine, self.store, self.meter)
        with stoppable(lambda: kept_in(self.store)):
            for position, completion, _ in show_progress(steps, name, len(requests), quiet=False):
                completions[position] = completion
        return [completions[position] for position in range(len(requests))]

    def facts(self) -> dict[str, Any]:
        """Model and settings, for cards."""
        written = USED_SETTINGS - {"cache", *BUDGETS}
        settings = {name: value for name, value in self.config.to_dict().items() if name in written}
        settings = {name: value for name, value in settings.items() if value is not None}
        return {"model": self.name, "fingerprint": self.engine.fingerprint, **settings}


@dataclass(frozen=True, slots=True)
class GeneratorOptions:
    """How to open a generator; an engine loads only when ``open`` is called.

    Attributes:
        model_args: As for ``lm_eval --model aft``. Of the settings, those in ``USED_SETTINGS``.
        store: File of the draft store, unless ``model_args`` has ``cache=``. None keeps nothing.
        device: As for lm_eval.
        batch_size: As for lm_eval.
    """

    model_args: str
    store: Path | None = None
    device: str = "cuda:0"
    batch_size: str = "auto"

    def open(self, defaults: Mapping[str, Any] | None = None) -> TextGenerator:
        """Load the engine and open the store.

        Args:
            defaults: Arguments that ``model_args`` may replace.

        Raises:
            AFTError: If an argument is wrong or the engine cannot be loaded.
        """
        arguments = key_values("--model_args", self.model_args)
        for name in arguments:
            if name in UNUSED_SETTINGS:
                value = public(name, arguments[name])
                raise ConfigError(f"--model_args {name}={value} has no meaning here: leave it out.")
        config, engine_args = AFTConfig.split({**(defaults or {}), **arguments})
        name = str(engine_args.get("pretrained") or engine_args.get("model") or config.engine)
        template = choose_template(config, engine_args)
        store = open_store(config.cache, self.store)
        engine = load_engine(config.engine, engine_args, HostArgs(self.batch_size, None, self.device))
        if isinstance(engine.renderer, TokenizerRenderer):
            check_templates(template, engine.renderer)
        meter = Meter(Budget(config.max_generated_tokens, config.max_cost), config.token_costs)
        return TextGenerator(engine, template, replace(config, layers=1), store, name, meter)
