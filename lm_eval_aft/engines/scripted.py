"""A deterministic engine without weights, on the same path as the real ones.

The text of a completion is a function of its prompt and seed, so tests and demonstrations run anywhere in no time.
Knows nothing of drafts. Loaded by ``engine=scripted``, or built by tests with a script of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from lm_eval_aft.core.arguments import integer
from lm_eval_aft.core.chat import strip_control
from lm_eval_aft.core.config import refuse_unknown
from lm_eval_aft.core.records import Chat, Completion, Prompt, Request
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.engines.base import HostArgs

Script = Callable[[Request], str]
CONTROL = ("<|start|>", "<|end|>")


class WordRenderer:
    """One word, one token: enough to measure and to cut."""

    def encode(self, chat: Chat) -> Prompt:
        """See ``Renderer.encode``; there are no token ids."""
        words = sum(len(m.content.split()) + 1 for m in chat.messages) + len(chat.prefill.split())
        return Prompt(chat, None, words, chat.identity)

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
    """The default script: a short text that ends in a number drawn from prompt and seed."""
    key = f"{request.prompt.digest}/{request.sampling.temperature and request.seed}"
    number = int.from_bytes(sha256(key.encode()).digest()[:4]) % 100
    return f"Working it out step by step gives {number}. The answer is {number}."


class ScriptedEngine:
    """Answers every request with what its script returns."""

    shape: ModelShape | None = None
    counts_shared_prefill = True
    scorer: Any = None

    def __init__(self, script: Script = numbered_answer, max_length: int = 8192) -> None:
        """Build an engine.

        Args:
            script: Text for a request; must be a function of the request alone.
            max_length: Words a prompt and its completion may have together.
        """
        self.renderer = WordRenderer()
        self.script, self.max_length = script, max_length
        self.fingerprint = f"scripted/{script.__module__}.{script.__qualname__}"
        self.info: Mapping[str, Any] = {"script": script.__qualname__}

    @classmethod
    def load(cls, engine_args: dict[str, Any], host: HostArgs) -> ScriptedEngine:
        """Build one from model arguments; ``pretrained`` names the run and loads nothing."""
        refuse_unknown(engine_args, {"pretrained", "max_length"}, "scripted")
        return cls(max_length=integer(1)("max_length", engine_args.get("max_length", 8192)))

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``."""
        seen: set[str] = set()
        for position, request in enumerate(requests):
            first = request.prompt.digest not in seen
            seen.add(request.prompt.digest)
            yield position, self._complete(request, shared=not first)

    def _complete(self, request: Request, shared: bool) -> Completion:
        words = self.script(request).split(" ")
        cut = len(words) > request.sampling.max_tokens
        prompt_tokens = request.prompt.prompt_tokens
        return Completion(
            text=" ".join(words[: request.sampling.max_tokens]),
            token_ids=(),
            finish_reason="length" if cut else "stop",
            prompt_tokens=prompt_tokens,
            computed_prompt_tokens=0 if shared else prompt_tokens,
            generated_tokens=min(len(words), request.sampling.max_tokens),
        )
