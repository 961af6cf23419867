"""How many tokens a batch of the hf engine may hold, and what happens if they do not fit the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lm_eval_aft.core.log import log
from lm_eval_aft.core.model_shape import SHAPE_ERRORS, attention_width

# Keys and values of a 135M model then take 1.5 GB. More rows are no faster on two cores.
CPU_BATCH_TOKENS = 65_536
# The exceptions that may say that memory ran out; ``is_out_of_memory`` tells whether one does.
MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)


@dataclass
class BatchLimits:
    """What one batch may hold.

    Attributes:
        tokens: Tokens of prompts and completions. ``RowRules.tokens`` counts those of a batch.
        prompts: Distinct prompts, each with all its samples. None is no limit.
    """

    tokens: int
    prompts: int | None = None

    def lower(self, tokens: int) -> None:
        """Lower the token limit after memory ran out.

        Call it outside the except block: the exception there keeps tensors alive, whose memory could not be freed.
        """
        self.tokens = max(1, tokens)
        torch.cuda.empty_cache()
        log.warning("Out of memory: batches now hold %d tokens.", self.tokens)


def measured_tokens(model: Any, device: torch.device) -> int:
    """The number of tokens whose keys and values fit into a third of the free GPU memory.

    Growing the cache copies it, so a third is used. A CPU gets ``CPU_BATCH_TOKENS``.
    """
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    config = model.config.get_text_config()
    try:
        width = attention_width(config, keys=True)
        token_bytes = 2 * config.num_hidden_layers * width * model.dtype.itemsize
    except SHAPE_ERRORS:
        # A model without attention keeps no keys and values.
        return CPU_BATCH_TOKENS
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return max(CPU_BATCH_TOKENS, int(free_bytes) // 3 // int(token_bytes))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
