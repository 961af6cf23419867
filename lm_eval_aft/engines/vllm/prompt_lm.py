"""Log-likelihoods from a model that vLLM has loaded, so that scoring tasks need no second copy of the weights.

lm-eval's own VLLM class loads a model itself. It cannot be imported beside vLLM's CPU build, because it asks for the
version of a distribution called vllm. The encoding follows lm-eval's HFLM: same contexts, same prefix token, same
windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lm_eval_aft.core.chat import refused_chat
from lm_eval_aft.core.engine import Score, TokenIds
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.model_checks import damaged_logits
from lm_eval_aft.core.rendering import render
from lm_eval_aft.engines.lm_scorer import LMScorer
from lm_eval_aft.engines.vllm.watchdog import watched

# A text to score before a run.
SAMPLE = "The quick brown fox jumps over the lazy dog."
# lm-eval's: cache key, context ids, continuation ids.
Pair = tuple[Any, list[int], list[int]]


class PromptLM(TemplateLM):
    """Scores texts by the log-probabilities that vLLM gives for the tokens of a prompt."""

    def __init__(
        self,
        llm: Any,
        tokenizer: Any,
        *,
        max_length: int,
        lora_request: Any = None,
        add_bos_token: bool | None = None,
        template_args: dict[str, Any] | None = None,
    ) -> None:
        """Wrap a loaded ``vllm.LLM``.

        Args:
            llm: The engine, shared with generation.
            tokenizer: Its tokenizer.
            max_length: Context length in tokens.
            lora_request: The adapter to score with, as vLLM takes it.
            add_bos_token: As in lm-eval's HFLM; None leaves it to the tokenizer.
            template_args: Further variables of the chat template. The renderer may change this dictionary later.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._llm, self._lora, self._add_bos_token = llm, lora_request, add_bos_token
        self._template_args = {} if template_args is None else template_args

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Part of the name of lm-eval's request cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids as HFLM makes them. A text that begins with the prefix token gets no second one."""
        chosen = self._add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            chosen = False
        special = {} if chosen is None else {"add_special_tokens": chosen}
        return list(self.tokenizer.encode(string, **special))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as the text that is scored."""
        return render(
            lambda: self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self._template_args,
            ),
            refused_chat,
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """Log-probability of each whole text. A text longer than the context is scored in disjoint windows.

        lm-eval 0.5 puts an empty context before each text, and takes pairs as for ``loglikelihood``.
        """
        windows: list[Pair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[-1]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._scored_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[owner] += score
        return [
            (score, False) if len(request.args) > 1 else score for request, score in zip(requests, sums, strict=True)
        ]

    @property
    def _scored_length(self) -> int:
        """Tokens that one request can score: vLLM always generates one token after them."""
        return self.max_length - 1

    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any) -> list[Score]:
        """Score continuations. A context that does not fit loses its beginning, as in HFLM.

        Raises:
            EngineError: If vLLM stops working, or the model's logits are not numbers.
        """
        scores = self._scores(requests, disable_tqdm)
        self._refuse_damaged(scores)
        return scores

    def _refuse_damaged(self, scores: Sequence[Score]) -> None:
        if any(math.isnan(score) for score, _ in scores):
            raise EngineError(damaged_logits(self._llm.llm_engine.model_config.dtype))

    def token_logprobs(self, prompts: Sequence[TokenIds], texts: Sequence[TokenIds], quiet: bool) -> list[list[float]]:
        """The log-probability of each token of each text after its prompt.

        A text that ends at the context length is scored without its last token.

        Raises:
            EngineError: If vLLM stops working, or the model's logits are not numbers.
        """
        rows = [[*prompt, *text][: self._scored_length] for prompt, text in zip(prompts, texts, strict=True)]
        outputs = self._read(rows, 0, quiet)
        logprobs = [
            [
                row[token].logprob
                for token, row in zip(ids[len(prompt) :], output.prompt_logprobs[len(prompt) :], strict=True)
            ]
            for ids, prompt, output in zip(rows, prompts, outputs, strict=True)
        ]
        self._refuse_damaged([(sum(row), False) for row in logprobs])
        return logprobs

    def _scores(self, requests: Sequence[Pair], disable_tqdm: bool) -> list[Score]:
        rows = [(context + continuation)[-self._scored_length :] for _, context, continuation in requests]
        outputs = self._read(rows, 1, disable_tqdm)
        return [
            continuation_score(output, len(continuation))
            for output, (_, _, continuation) in zip(outputs, requests, strict=True)
        ]

    def _read(self, rows: Sequence[list[int]], likeliest: int, quiet: bool) -> list[Any]:
        """Run rows of token ids, with log-probabilities of each token and of so many likeliest ones."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=likeliest, detokenize=False)
        prompts = [{"prompt_token_ids": ids} for ids in rows]
        try:
            with watched(self._llm.llm_engine):
                return list(self._llm.generate(prompts, params, use_tqdm=not quiet, lora_request=self._lora))
        except Exception as error:
            raise EngineError(
                f"vLLM stopped working while it scored ({str(error).strip() or type(error).__name__}): start the same "
                "command again, with a lower max_num_batched_tokens if memory was short."
            ) from error

    def check_logits(self) -> None:
        """Score a short text.

        Raises:
            EngineError: If the model's logits are not numbers.
        """
        token_ids = self.tok_encode(SAMPLE, add_special_tokens=False)[: self._scored_length]
        scores: list[Score] = []
        # A model that cannot score, for example with max_logprobs=0, may still generate.
        with suppress(EngineError):
            scores = self._scores([(None, token_ids[:1], token_ids[1:])], disable_tqdm=True)
        self._refuse_damaged(scores)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not implemented: the engine generates."""
        raise NotImplementedError("PromptLM scores; VLLMEngine.generate generates")


class PromptScorer(LMScorer):
    """Scores requests with ``PromptLM``."""

    lm: PromptLM

    def token_logprobs(
        self, prompts: Sequence[TokenIds], texts: Sequence[TokenIds], *, quiet: bool = False
    ) -> Iterator[tuple[int, list[float]]]:
        """See ``Scorer.token_logprobs``."""
        yield from enumerate(self.lm.token_logprobs(prompts, texts, quiet))


def continuation_score(output: Any, length: int) -> Score:
    """The log-probability of the last ``length`` prompt tokens, and whether each of them is a likeliest token.

    Args:
        output: vLLM's output for a request with ``prompt_logprobs=1``. Each row holds the log-probability of the
            prompt's token and that of the likeliest token. vLLM's ``rank`` cannot be used here, because it counts
            all tokens that are at least as likely.
        length: Tokens of the continuation.
    """
    if not length:
        return 0.0, True
    tokens, rows = output.prompt_token_ids[-length:], output.prompt_logprobs[-length:]
    # The first token of a prompt has no row.
    scored = [(row[token].logprob, row) for row, token in zip(rows, tokens, strict=True) if row]
    greedy = all(logprob >= max(entry.logprob for entry in row.values()) for logprob, row in scored)
    return sum(logprob for logprob, _ in scored), greedy
