"""Which rows may share a batch without a change of their logits. Decided when a model is loaded.

Most causal models give a row the same logits alone, beside other rows, and with pads before it. The exceptions are
found in two ways. A short self-check compares batches with transformers' own ``generate``. What depends on the length
of a text, which a short check cannot show, is read from the config and from the model's cache.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache, GenerationConfig
from transformers.generation import GenerationMixin

from lm_eval_aft.core.engine import TokenIds
from lm_eval_aft.core.loading import named_reason_of
from lm_eval_aft.engines.hf.batching import RowRules, Scoring, left_pad
from lm_eval_aft.engines.hf.cache_layers import GrowingLayer
from lm_eval_aft.engines.hf.forward import (
    DirectForward,
    Forward,
    PreparedForward,
    RestartedForward,
    RowCache,
    base_model,
    rope_changes,
    whole_logits,
)
from lm_eval_aft.engines.hf.memory import is_out_of_memory
from lm_eval_aft.engines.hf.shared_prompts import SharedPromptCache, use_shared_prompts

# Characters of a reason within a sentence.
MAX_REASON = 120
# Any text gives the prompts of the self-check.
SAMPLE = "The quick brown fox jumps over the lazy dog, and 12 more foxes follow it."
# Tokens of the two prompts of the self-check, and tokens generated after each.
LONG, SHORT, STEPS = 11, 5, 3
# The step at which one of the rows leaves the batch.
DROP = 2
# Cache layers whose content is one entry a token, so that pads can be masked whatever the length.
ATTENTION_LAYERS = frozenset({"DynamicLayer", "GrowingLayer", "DynamicSlidingWindowLayer", "DummyLayer"})
# Cache layers that fold tokens into a state of fixed size. If short texts may be padded, so may long ones.
STATE_LAYERS = frozenset(
    {
        "LinearAttentionLayer",
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
    }
)
# Fields of a config from whose value on a layer counts or drops tokens, pads included.
LENGTH_FIELDS = ("floor_scale", "keep_window_size")


@dataclass(frozen=True, slots=True)
class _Reference:
    """A prompt, and what ``generate`` wrote after it.

    Attributes:
        prompt: Token ids.
        written: Token ids, (steps,).
        logits: Of each step, (steps, vocab).
    """

    prompt: tuple[int, ...]
    written: tuple[int, ...]
    logits: torch.Tensor


@torch.inference_mode()
def find_forward(model: Any, sample: TokenIds, max_length: int, device: torch.device) -> tuple[Forward, RowRules]:
    """Find how the model is to be called, and which rows may share a batch.

    Args:
        model: A causal transformers model.
        sample: Token ids of any text.
        max_length: Tokens that the model takes.
        device: The device of its input.

    Raises:
        ValueError: If the model cannot be run as ``generate`` runs it, or its logits are not numbers.
    """
    check = _SelfCheck(model, device)
    long, short = _prompts(sample, max_length)
    references = [check.generate(long), check.generate(short)]
    if not all(reference.logits.amax(-1).isfinite().all() for reference in references):
        raise ValueError(
            "its logits are not numbers (NaN or infinite): the weights are damaged, or overflow the dtype."
        )
    problems = []
    for forward in _forwards(model):
        try:
            return forward, check.rules(forward, *references)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(
        f"engine=hf cannot run it as transformers' generate does ({problems[0]}); use engine=vllm if vLLM has the "
        "architecture."
    )


def _prompts(sample: TokenIds, max_length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A long and a short prompt that fit the model."""
    ids = list(sample) or [0]
    ids *= -(-LONG // len(ids))
    room = max(2, max_length - STEPS)
    long = tuple(ids[: min(LONG, room)])
    return long, tuple(ids[len(long) - min(SHORT, len(long) - 1) : len(long)])


def _forwards(model: Any) -> Iterator[Forward]:
    """The ways to call a model. The first that agrees with ``generate`` is taken."""
    changes = rope_changes(model.config)
    own_inputs = type(base_model(model)).prepare_inputs_for_generation
    prepares = changes or own_inputs is not GenerationMixin.prepare_inputs_for_generation
    for kind in (PreparedForward, DirectForward) if prepares else (DirectForward, PreparedForward):
        yield RestartedForward(model, kind(model)) if changes else kind(model)


def depends_on_length(config: Any) -> bool:
    """Whether some layer computes tokens in another way once a text, pads included, has some length."""
    text = config.get_text_config()
    # Classes with this field start a new cache at this length.
    original = getattr(text, "original_max_position_embeddings", None)
    restarts = original is not None and original < (getattr(text, "max_position_embeddings", None) or original)
    return restarts or rope_changes(config) or any(getattr(text, name, None) for name in LENGTH_FIELDS)


class _SelfCheck:
    """Compares batches of a few tokens with ``generate``.

    Attributes:
        rounding: The largest difference of logits that rounding explains, as a share of their spread.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self._device = model, device
        self._depends_on_length = depends_on_length(model.config)
        # In 16 bits a token may take another expert from batch to batch.
        is_exact = model.dtype.itemsize >= 4
        self.rounding, self._most_rounding = (3e-4, 0.01) if is_exact else (0.05, 0.5)

    def generate(self, prompt: tuple[int, ...]) -> _Reference:
        """Complete a prompt with ``generate``, greedily and alone.

        Raises:
            ValueError: If ``generate`` fails.
        """
        ids = torch.tensor([prompt], device=self._device)
        settings = GenerationConfig(
            **{"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "num_beams": 1},
            **{"output_logits": True, "return_dict_in_generate": True, "use_cache": True, "pad_token_id": 0},
        )
        if getattr(self._model.generation_config, "cache_implementation", None):
            # A static cache would be compiled.
            settings.cache_implementation = "dynamic"
        try:
            # It warns of settings of the checkpoint that the self-check does not use.
            with _quiet("transformers.generation"):
                output = self._model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
                )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"transformers' own generate fails on it ({_reason(error)}); use engine=vllm if vLLM has the "
                "architecture."
            ) from error
        written = tuple(output.sequences[0, len(prompt) :].tolist())
        return _Reference(prompt, written, torch.stack([logits[0] for logits in output.logits]))

    def rules(self, forward: Forward, long: _Reference, short: _Reference) -> RowRules:
        """The rules under which a way to call the model gives the logits of ``generate``.

        Raises:
            ValueError: If it does so under none.
        """
        cache = RowCache()
        mixed = self._difference(forward, [long, short], [0, 0, 1], cache)
        layers = _layer_kinds(cache.content)
        rounding, has_rows = self.rounding, mixed < self.rounding
        if not has_rows:
            # Either pads change the logits, or every batch does, or rounding is strong on this device.
            if self._difference(forward, [long], [0], RowCache()) >= rounding:
                raise ValueError(self._problem or "its logits differ")
            batch = self._difference(forward, [long, self.generate(long.prompt[::-1])], [0, 0, 1], RowCache())
            has_rows = batch < self._most_rounding
            rounding = max(rounding, 4 * batch) if has_rows else rounding
        by_mask = layers <= ATTENTION_LAYERS | STATE_LAYERS and not self._depends_on_length
        scoring = self._scoring(forward, long, layers <= ATTENTION_LAYERS, rounding) if has_rows else "whole"
        any_lengths = has_rows and by_mask and mixed < rounding
        # A layer has room if it is transformers' own layer of full attention.
        is_plain = any_lengths and layers == {GrowingLayer.__name__} and isinstance(forward, DirectForward)
        shares = is_plain and self._shares_prompts(forward, [long, short])
        looks_ahead = shares and self._looks_ahead(forward, [long, short])
        return RowRules(any_lengths, has_rows, scoring, shares, looks_ahead)

    def _shares_prompts(self, forward: Forward, references: Sequence[_Reference]) -> bool:
        """Let the rows of a prompt share its keys and values, if that gives the logits of ``generate``."""
        model = base_model(self._model)
        config = model.config
        if config._attn_implementation != "sdpa" or config.get_text_config() is not config:
            return False
        # transformers warns of models whose attention function cannot be replaced.
        with _quiet("transformers.modeling_utils"):
            is_used = use_shared_prompts(model)
        if is_used and self._difference(forward, references, [0, 0, 1], SharedPromptCache()) < self.rounding:
            return True
        if is_used:
            model.set_attn_implementation("sdpa")
        return False

    def _looks_ahead(self, forward: Forward, references: Sequence[_Reference]) -> bool:
        """Whether rows may have several tokens in a forward pass, and different numbers of them."""
        try:
            rows = self._run_ahead(forward, references)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return False
        distances = (_distance(row, each.logits[1:]) for row, each in zip(rows, references, strict=True))
        return max(distances) < self.rounding

    def _run_ahead(self, forward: Forward, references: Sequence[_Reference]) -> list[torch.Tensor]:
        """The logits of two rows after their prompts: one runs two tokens at once, one runs a token that it forgets."""
        ids, mask = left_pad([reference.prompt for reference in references], self._device)
        cache = SharedPromptCache()
        forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        cache.fan_out(torch.arange(2, device=self._device), mask)
        (first, second), sizes = [each.written for each in references], [len(each.prompt) for each in references]

        def run(tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
            ids, places = torch.tensor([tokens, positions], device=self._device)[:, :, None]  # (tokens, 1) each
            return forward(ids, mask, places, cache)[:, -1]

        cache.begin([0, 0], [2, 2])
        wrong = int(not second[1])
        both = run([*first[:2], second[0], wrong], [sizes[0], sizes[0] + 1, sizes[1], sizes[1] + 1])
        cache.begin([2, 1], [1, 1])
        later = run([first[2], second[1]], [sizes[0] + 2, sizes[1] + 1])
        return [both[:2], torch.stack([both[2], later[1]])]

    def _difference(
        self, forward: Forward, references: Sequence[_Reference], owners: Sequence[int], cache: RowCache
    ) -> float:
        """The largest difference of a batch's logits from those of ``generate``. Infinity if the batch fails."""
        self._problem = ""
        try:
            rows = self._run(forward, references, owners, cache)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._problem = _reason(error)
            return math.inf
        return max(_distance(row, references[owner].logits) for row, owner in zip(rows, owners, strict=True))

    def _run(
        self, forward: Forward, references: Sequence[_Reference], owners: Sequence[int], cache: RowCache
    ) -> list[torch.Tensor]:
        """The logits of each row, (steps, vocab) each: prompts, copied to rows, of which the first ends early."""
        ids, mask = left_pad([reference.prompt for reference in references], self._device)
        logits = forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)[:, -1]  # (prompts, vocab)
        rows = list(range(len(owners)))
        owner = torch.tensor(owners, device=self._device)
        cache.fan_out(owner, mask)
        logits, mask = logits[owner], mask[owner]
        outputs: list[list[torch.Tensor]] = [[] for _ in rows]
        steps = min(len(reference.written) for reference in references)
        written = torch.tensor([references[owner].written[:steps] for owner in owners], device=self._device)
        for step in range(steps):
            if step == DROP and len(rows) > 1:
                rows = rows[1:]
                kept = torch.arange(1, len(mask), device=self._device)
                cache.select(kept)
                mask = mask[kept]
            if step:
                cache.begin([step - 1] * len(rows), [1] * len(rows))
                lengths = mask.sum(-1, keepdim=True)  # (rows, 1)
                mask = torch.cat([mask, torch.ones_like(lengths)], dim=-1)
                logits = forward(written[rows, step - 1 : step], mask, lengths, cache)[:, -1]
            for index, row in enumerate(rows):
                outputs[row].append(logits[index])
        return [torch.stack(row) for row in outputs]

    def _scoring(self, forward: Forward, long: _Reference, is_attention: bool, rounding: float) -> Scoring:
        """How the tokens of a continuation may be computed, so that a score is that of the whole text at once."""
        steps = len(long.written)
        ids = torch.tensor([long.prompt], device=self._device)  # (1, tokens)
        continuation = torch.tensor([long.written[:-1]], device=self._device)  # (1, steps - 1)
        try:
            whole = whole_logits(self._model, torch.cat([ids, continuation], dim=-1), steps)[0]
            if self._depends_on_length or _distance(whole, long.logits) >= rounding:
                return "whole"
            if is_attention and steps > 1:
                mask = torch.ones(1, ids.shape[1] + steps - 1, dtype=torch.long, device=self._device)
                places, seen, cache = mask.cumsum(-1) - 1, ids.shape[1], RowCache()
                forward(ids, mask[:, :seen], places[:, :seen], cache)
                logits = forward(continuation, mask, places[:, seen:], cache, steps - 1)[0]
                if _distance(logits, long.logits[1:]) < rounding:
                    return "at_once"
        except Exception as error:
            if is_out_of_memory(error):
                raise
        return "stepwise"


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger from showing warnings."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The difference of logits as a share of their spread, of the step where it is largest.

    Args:
        logits: (steps, vocab).
        expected: The same of all steps, (all steps, vocab).
    """
    expected = expected[: len(logits)].float()
    logits = logits.to(expected.device).float()
    # Tokens that a model rules out are -inf in both.
    difference = torch.where(logits == expected, 0.0, logits - expected)
    numbers = expected.masked_fill(expected.isinf(), math.nan)
    spread = (numbers - numbers.nanmean(-1, keepdim=True)).nan_to_num(0.0)
    share = difference.norm(dim=-1) / spread.norm(dim=-1)
    return float(share.nan_to_num(math.inf).max())


def _layer_kinds(content: Any) -> set[str]:
    """The class names of the layers of a cache, and of the cache itself if the model has its own class."""
    if isinstance(content, EncoderDecoderCache):
        content = content.self_attention_cache
    if isinstance(content, Cache):
        own = set() if type(content) is DynamicCache else {type(content).__name__}
        return own | {type(layer).__name__ for layer in content.layers}
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return {kind for part in parts for kind in _layer_kinds(part)}


def _reason(error: BaseException) -> str:
    """What an error says, after its kind, short enough for a sentence around it."""
    return named_reason_of(error)[:MAX_REASON]
