"""A judge on this machine without a server: the hf engine in place of the HTTP client.

It answers one call at a time and gives no log-probabilities. For large judges or many calls, run ``vllm serve``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.api.client import Cancelled, Refused
from lm_eval_aft.engines.registry import load_engine


class LocalClient:
    """Answers chat completions with an engine, in the format of a server's replies."""

    base_url, has_key = "engine=hf", False

    def __init__(self, engine: Engine) -> None:
        """Wrap a loaded engine."""
        self.engine = engine
        self._lock = threading.Lock()

    @classmethod
    def load(cls, pretrained: str) -> LocalClient:
        """Load a checkpoint.

        Raises:
            ConfigError, EngineError: If it cannot be loaded.
        """
        return cls(load_engine("hf", {"pretrained": pretrained, "dtype": "auto"}, HostArgs()))

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        """See ``ChatClient.post``.

        Raises:
            Refused: If the prompt does not fit the context.
            Cancelled: If ``stop`` is set before the engine is free.
        """
        sampling = Sampling(float(body["temperature"]), 1.0, 0, int(body["max_tokens"]))
        # Neither tokenizers nor models are thread-safe.
        with self._lock:
            if stop.is_set():
                raise Cancelled
            prompt = self.engine.renderer.encode(Chat(tuple(Message(**row) for row in body["messages"])))
            if prompt.prompt_tokens + sampling.max_tokens > self.engine.max_length:
                needed = f"{prompt.prompt_tokens} prompt tokens and {sampling.max_tokens} to generate"
                raise Refused(400, f"{needed} are beyond the context length of {self.engine.max_length}")
            ((_, completion),) = self.engine.generate([Request(prompt, sampling, seed=0)])
        message = {"role": "assistant", "content": prompt.unshown_mark + completion.text}
        counts = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.generated_tokens}
        return {"choices": [{"message": message, "finish_reason": completion.finish_reason}], "usage": counts}

    def disconnect(self) -> None:
        """Nothing to close."""
