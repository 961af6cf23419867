"""The Engine protocol: everything that a run asks of an engine.

An engine turns requests into completions. It may also score continuations and share the work among processes. A new
engine implements ``Engine`` and gets a line in ``lm_eval_aft.engines.registry``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lm_eval_aft.core.chat import Renderer
from lm_eval_aft.core.records import Chat, Completion, Request
from lm_eval_aft.core.usage import ModelShape

# lm-eval's score: the log-probability of a continuation, and whether greedy decoding would write it.
Score = tuple[float, bool]
TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class HostArgs:
    """The arguments that lm-eval's command line passes to every model."""

    batch_size: int | str = 1
    max_batch_size: int | None = None
    device: str = "cuda:0"


class Processes(Protocol):
    """The processes that share one evaluation. The methods are those of lm-eval's ``LM``."""

    @property
    def rank(self) -> int:
        """Index of this process, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes that share the requests."""

    def all_gather(self, tensor: Any) -> Any:
        """Concatenate the tensors of all processes."""

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Collect the objects of all processes in process ``dst``. The others get None."""

    def barrier(self) -> None:
        """Wait until every process is here."""


class SingleProcess:
    """The only process of an evaluation."""

    rank = 0
    world_size = 1

    def all_gather(self, tensor: Any) -> Any:
        """See ``Processes.all_gather``."""
        return tensor

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """See ``Processes.gather_object``."""
        return [obj]

    def barrier(self) -> None:
        """See ``Processes.barrier``."""


class Scorer(Protocol):
    """Computes log-probabilities of given texts."""

    @property
    def shares_prompts(self) -> bool:
        """Whether continuations of one prompt are scored with one computation of that prompt."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Score]:
        """Score lm-eval's loglikelihood requests. See ``LM.loglikelihood``."""

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float] | list[Score]:
        """Score whole texts. See ``LM.loglikelihood_rolling``. lm-eval 0.5 takes pairs."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a chat as ``--model hf`` renders it. See ``LM.apply_chat_template``."""

    def render(self, chat: Chat) -> str:
        """Render a chat as the engine's renderer renders it for generation."""

    def encode_pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Split a context and its continuation into token ids by lm-eval's rule.

        White space at the end of the context belongs to the continuation. An empty context becomes the prefix token.
        """

    def score_choices(
        self, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]], *, quiet: bool = False
    ) -> Iterator[tuple[int, list[Score]]]:
        """Yield the index of each prompt and the scores of its choices, in any order of prompts.

        Args:
            prompts: Token ids.
            choices: Token ids of each prompt's continuations. An empty continuation has probability 1.
            quiet: No progress bar.

        Raises:
            EngineError: If the engine stops working, or one prompt with its choices does not fit the memory.
        """

    def token_logprobs(
        self, prompts: Sequence[TokenIds], texts: Sequence[TokenIds], *, quiet: bool = False
    ) -> Iterator[tuple[int, list[float]]]:
        """Yield the index of each text and the log-probability of each of its tokens, in any order of texts.

        Args:
            prompts: Token ids of each text's prompt.
            texts: Token ids.
            quiet: No progress bar.

        Raises:
            EngineError: If the engine stops working, or one text does not fit the memory.
        """


class Engine(Protocol):
    """Turns requests into completions."""

    @property
    def renderer(self) -> Renderer:
        """Turns chats into prompts, with the engine's tokenizer if it holds one."""

    @property
    def max_length(self) -> int:
        """Maximum tokens of a prompt and its completion together."""

    @property
    def fingerprint(self) -> str:
        """What decides a text besides prompt, sampling and seed: weights, adapter, dtype, engine kind."""

    @property
    def shape(self) -> ModelShape | None:
        """The model's sizes, from which operations are counted, or None if they are unknown."""

    @property
    def counts_shared_prefill(self) -> bool:
        """Whether requests of one call that share a prompt compute it exactly once."""

    @property
    def seed_advice(self) -> str:
        """What the user can do if seeded drafts come out equal. Empty if the engine draws with the seeds itself."""

    @property
    def commits_each(self) -> bool:
        """Whether the store commits each completion at once, because a server is paid or waited for."""

    @property
    def no_confidence(self) -> str:
        """Why completions cannot have a confidence, as the end of a sentence. Empty if they can."""

    @property
    def scorer(self) -> Scorer | None:
        """Scores loglikelihood requests, or None if the engine cannot score."""

    @property
    def processes(self) -> Processes:
        """The processes among which lm-eval divides the requests."""

    @property
    def device(self) -> Any:
        """The torch device of the model, or None if the model does not run in this process."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts for the results file, under ``aft.engine_info``: versions, devices, what was loaded."""

    def use_chat_template(self, name: str | None) -> None:
        """Render with one of the tokenizer's named chat templates from now on; None is the default one.

        Raises:
            ConfigError: If there is no such template, or if the engine does not render chats.
        """

    def model_info(self) -> dict[str, Any]:
        """Facts that ``--model hf`` writes into the results file. Empty for engines that lm-eval does not load."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield the position and the completion of each request, once each, as it ends, in any order.

        A completion depends on its own request only: not on order, batch or other requests (up to the rounding of
        the device; docs/engines.md says what is promised where). It has its confidence if its request says so.

        Raises:
            EngineError: If the engine stops working. Completions that were yielded before stay valid.
        """

    def finish(self) -> None:
        """End the running ``generate`` early. It begins no further call to a server, and no further forward pass.

        It still yields the completions of the calls or the pass under way.
        """
