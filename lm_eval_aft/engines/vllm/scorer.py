"""Loglikelihoods from an engine that vLLM has loaded, so that scoring tasks need no second copy of the weights.

lm-eval's own VLLM class loads a model itself, and cannot be imported beside vLLM's CPU build (it asks for the version
of a distribution called vllm). Encoding follows lm-eval's HFLM: same contexts, same prefix token, same windows. Knows
nothing of drafts. Held by the vllm engine as its ``scorer``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.engines.vllm.watchdog import watched

Pair = tuple[Any, list[int], list[int]]  # lm-eval's: cache key, context ids, continuation ids


class PromptScorer(TemplateLM):
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
            template_args: Further variables of the chat template.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._llm, self._lora, self._add_bos_token = llm, lora_request, add_bos_token
        self._template_args = dict(template_args or {})

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
        """Token ids as HFLM makes them: a text that begins with the prefix token gets no second one."""
        chosen = self._add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            chosen = False
        special = {} if chosen is None else {"add_special_tokens": chosen}
        return list(self.tokenizer.encode(string, **special))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as the text that is scored."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self._template_args,
        )
        return str(text)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in disjoint windows where it is longer than the context."""
        windows: list[Pair] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,  # vLLM generates a token after what it scores
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owner.append(number)
        sums = [0.0] * len(requests)
        for number, (score, _) in zip(owner, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[number] += score
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; contexts lose their beginning where they do not fit, as in HFLM.

        Raises:
            EngineError: If vLLM stops working.
        """
        from vllm import SamplingParams

        room = self.max_length - 1  # of the context, and one token to generate
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        prompts = [{"prompt_token_ids": (context + continuation)[-room:]} for _, context, continuation in requests]
        try:
            with watched(self._llm.llm_engine):
                outputs = self._llm.generate(prompts, params, use_tqdm=not disable_tqdm, lora_request=self._lora)
        except Exception as error:  # whatever a worker died of
            raise EngineError(
                f"vLLM stopped working while it scored ({str(error).strip() or type(error).__name__}): start the same "
                "command again, with a lower max_num_batched_tokens if memory was short."
            ) from error
        return [
            _score(output, len(continuation)) for output, (_, _, continuation) in zip(outputs, requests, strict=True)
        ]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not here: texts come from the engine."""
        raise NotImplementedError("PromptScorer scores; texts come from VLLMEngine.generate")


def _score(output: Any, length: int) -> tuple[float, bool]:
    """Sum over the last ``length`` tokens, and whether each of them was the likeliest, or one of several.

    A row holds the token and the likeliest. Its rank would not do: vLLM counts the tokens that are at least as likely.
    """
    if not length:
        return 0.0, True
    tokens, rows = output.prompt_token_ids[-length:], output.prompt_logprobs[-length:]
    known = [(row[token].logprob, row) for row, token in zip(rows, tokens, strict=True) if row]  # not the very first
    greedy = all(own >= max(entry.logprob for entry in row.values()) for own, row in known)
    return sum(own for own, _ in known), greedy
