"""A deterministic engine without weights, for tests and demonstrations.

The text of a completion is a function of its prompt and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from lm_eval_aft.core.arguments import integer
from lm_eval_aft.core.chat import strip_control, transcript
from lm_eval_aft.core.config import refuse_unknown
from lm_eval_aft.core.engine import HostArgs, Processes, Scorer, SingleProcess
from lm_eval_aft.core.records import Chat, Completion, Confidence, Prompt, Request
from lm_eval_aft.core.usage import ModelShape

Script = Callable[[Request], str]
Logprobs = Callable[[Request], Sequence[float]]
CONTROL = ("<|start|>", "<|end|>")


class WordRenderer:
    """Counts one token a word."""

    tokenizer: Any = None

    def encode(self, chat: Chat) -> Prompt:
        """See ``Renderer.encode``. There are no token ids."""
        words = sum(len(m.content.split()) + 1 for m in chat.messages) + len(chat.prefill.split())
        return Prompt(chat, None, words, chat.identity)

    def render(self, chat: Chat) -> str:
        """See ``Renderer.render``."""
        return transcript(chat)

    def trim(self, text: str, tokens: int) -> str:
        """See ``Renderer.trim``."""
        return " ".join(text.split()[:tokens])

    def count(self, text: str) -> int:
        """See ``Renderer.count``."""
        return len(text.split())

    def clean(self, text: str) -> str:
        """See ``Renderer.clean``."""
        return strip_control(text, CONTROL)


def numbered_answer(request: Request) -> str:
    """The default script: a short text that ends in a number computed from prompt and seed."""
    key = f"{request.prompt.digest}/{request.sampling.temperature and request.seed}"
    number = int.from_bytes(sha256(key.encode()).digest()[:4]) % 100
    return f"Working it out step by step gives {number}. The answer is {number}."


class ScriptedEngine:
    """Answers every request with the text that its script returns."""

    counts_shared_prefill = True
    seed_advice = ""
    commits_each = False
    shape: ModelShape | None = None
    scorer: Scorer | None = None
    processes: Processes = SingleProcess()
    device: Any = None

    def __init__(
        self, script: Script = numbered_answer, max_length: int = 8192, logprobs: Logprobs | None = None
    ) -> None:
        """Build an engine.

        Args:
            script: Returns the text for a request. It must depend on the request alone.
            max_length: Maximum words of a prompt and its completion together.
            logprobs: Returns the log-probabilities of a request's text. None gives no text a confidence.
        """
        self.renderer = WordRenderer()
        self._logprobs = logprobs
        self.no_confidence = "" if logprobs else "no model computes its texts"
        self.script, self.max_length = script, max_length
        self._finishing = False
        self.fingerprint = f"scripted/{script.__module__}.{script.__qualname__}"
        self.info: Mapping[str, Any] = {"script": script.__qualname__}

    @classmethod
    def load(cls, engine_args: Mapping[str, Any], host: HostArgs) -> ScriptedEngine:
        """Build an engine from model arguments. ``pretrained`` names the run only; nothing is loaded."""
        refuse_unknown(engine_args, {"pretrained", "max_length"}, "scripted")
        return cls(max_length=integer(1)("max_length", engine_args.get("max_length", 8192)))

    def use_chat_template(self, name: str | None) -> None:
        """See ``Engine.use_chat_template``. This engine has no chat template."""

    def model_info(self) -> dict[str, Any]:
        """See ``Engine.model_info``."""
        return {}

    def finish(self) -> None:
        """See ``Engine.finish``."""
        self._finishing = True

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``."""
        self._finishing = False
        computed: set[str] = set()
        for position, request in enumerate(requests):
            if self._finishing:
                return
            prompt = request.prompt.digest
            yield position, self.complete(request, shared=prompt in computed)
            computed.add(prompt)

    def complete(self, request: Request, shared: bool) -> Completion:
        """The completion of a request.

        Args:
            request: What to complete.
            shared: Whether another request has computed the same prompt.
        """
        words = self.script(request).split(" ")
        limit, prompt_tokens = request.sampling.max_tokens, request.prompt.prompt_tokens
        return Completion(
            text=" ".join(words[:limit]),
            token_ids=(),
            finish_reason="length" if len(words) > limit else "stop",
            prompt_tokens=prompt_tokens,
            computed_prompt_tokens=0 if shared else prompt_tokens,
            generated_tokens=min(len(words), limit),
            confidence=Confidence.of(self._logprobs(request)) if self._logprobs else None,
        )
