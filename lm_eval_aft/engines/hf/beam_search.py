"""Beam search, as transformers does it: the text of the highest mean log-probability that it finds.

Called by the hf engine for ``strategy=beam``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch
from transformers import GenerationConfig

from lm_eval_aft.core.records import Request
from lm_eval_aft.engines.hf.batching import Group, left_pad


@torch.inference_mode()
def beam_search(
    model: Any, requests: Sequence[Request], batch: Sequence[Group], stops: Set[int]
) -> Iterator[tuple[int, list[int]]]:
    """Yield the position and the token ids of each request of a batch, the end token included.

    Args:
        model: A causal transformers model.
        requests: All requests of a layer.
        batch: Those to run, of one sampling.
        stops: Ids that end a text.
    """
    sampling = requests[batch[0].positions[0]].sampling
    ids, mask = left_pad([group.token_ids for group in batch], model.device)  # (prompts, longest) each
    settings = GenerationConfig(
        num_beams=sampling.beams,
        do_sample=False,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=min(stops),
        early_stopping=False,
        repetition_penalty=1.0,  # what is left open here is filled in from the checkpoint's own generation config
        no_repeat_ngram_size=0,
        length_penalty=1.0,
    )
    written = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    for group, row in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
        end = next((place for place, token in enumerate(row) if token in stops), len(row) - 1)
        yield from ((position, row[: end + 1]) for position in group.positions)
