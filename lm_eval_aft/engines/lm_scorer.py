"""A ``Scorer`` around one of lm-eval's own models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from lm_eval_aft.core.chat import NO_PREFIX, TokenizerRenderer, refused_chat
from lm_eval_aft.core.engine import Score, TokenIds
from lm_eval_aft.core.errors import ChatError
from lm_eval_aft.core.records import Chat
from lm_eval_aft.core.rendering import render


class LMScorer:
    """Scores with an lm-eval model that holds the engine's weights, one request a choice."""

    shares_prompts = False

    def __init__(self, lm: TemplateLM, renderer: TokenizerRenderer) -> None:
        """Wrap a loaded model.

        Args:
            lm: lm-eval's model.
            renderer: The engine's renderer.
        """
        self.lm = lm
        self._renderer = renderer

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """See ``Scorer.loglikelihood``."""
        return list(self.lm.loglikelihood(requests, disable_tqdm=disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float] | list[Score]:
        """See ``Scorer.loglikelihood_rolling``."""
        return list(self.lm.loglikelihood_rolling(requests, disable_tqdm=disable_tqdm))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """See ``Scorer.apply_chat_template``."""
        return render(
            lambda: self.lm.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt), refused_chat
        )

    def render(self, chat: Chat) -> str:
        """See ``Scorer.render``."""
        return self._renderer.render(chat)

    def encode_pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See ``Scorer.encode_pair``."""
        if not context:
            if self.lm.prefix_token_id is None:
                raise ChatError(NO_PREFIX)
            return (self.lm.prefix_token_id,), tuple(self.lm.tok_encode(continuation, add_special_tokens=False))
        context_ids, continuation_ids = self.lm._encode_pair(context, continuation)
        return tuple(context_ids), tuple(continuation_ids)

    def score_choices(
        self, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]], *, quiet: bool = False
    ) -> Iterator[tuple[int, list[Score]]]:
        """See ``Scorer.score_choices``."""
        rows: list[Any] = [
            (("", ""), list(prompt), list(ids)) for prompt, own in zip(prompts, choices, strict=True) for ids in own
        ]
        # lm-eval has no public method that takes token ids.
        scores = iter(self.lm._loglikelihood_tokens(rows, disable_tqdm=quiet))
        for index, own in enumerate(choices):
            yield index, [next(scores) for _ in own]
