"""Beam search by transformers: the text of the highest mean log-probability that it finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from lm_eval_aft.core.records import Request
from lm_eval_aft.engines.hf.batching import Group, left_pad
from lm_eval_aft.engines.hf.forward import restart_rope, rope_changes
from lm_eval_aft.engines.hf.penalties import BeamPenalties
from lm_eval_aft.engines.hf.sampling import refuse_damaged


@torch.inference_mode()
def beam_search(
    model: Any, requests: Sequence[Request], batch: Sequence[Group], stop_ids: Set[int]
) -> Iterator[tuple[int, list[int]]]:
    """Yield the position and the generated token ids of each request of a batch, the end token included.

    Args:
        model: A causal transformers model.
        requests: All requests of a layer.
        batch: The requests to run, of one sampling.
        stop_ids: Ids that end a text.
    """
    sampling = requests[batch[0].positions[0]].sampling
    ids, mask = left_pad([group.token_ids for group in batch], model.device)  # (prompts, longest) each
    # transformers takes every setting that is left out here from the checkpoint's own generation config.
    settings = GenerationConfig(
        num_beams=sampling.beams,
        do_sample=False,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=sorted(stop_ids),
        pad_token_id=min(stop_ids),
        early_stopping=False,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
    )
    if rope_changes(model.config):
        restart_rope(model, ids)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=LogitsProcessorList([_refuse_damaged, BeamPenalties(sampling, mask)]),
    )
    for group, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
        end = next((index for index, token in enumerate(row) if token in stop_ids), len(row) - 1)
        yield from ((position, row[: end + 1]) for position in group.positions)


def _refuse_damaged(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A logits processor that changes nothing: (rows, vocab) in and out."""
    refuse_damaged(scores.amax(-1))
    return scores
