"""Log-probabilities of several continuations of one prompt, which runs through the model once.

lm-eval's own scoring computes a prompt again for each continuation of more than one token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from lm_eval.models.huggingface import HFLM

from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.engine import Score, TokenIds
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.progress import Bar
from lm_eval_aft.engines.hf.batching import left_pad
from lm_eval_aft.engines.hf.forward import Forward
from lm_eval_aft.engines.hf.memory import MEMORY_ERRORS, BatchLimits, is_out_of_memory
from lm_eval_aft.engines.lm_scorer import LMScorer


class SharedPromptScorer(LMScorer):
    """Scores requests with HFLM, and the choices of a question with one computation of their prompt."""

    shares_prompts = True

    def __init__(self, lm: HFLM, renderer: TokenizerRenderer, forward: Forward, limits: BatchLimits) -> None:
        """Wrap a loaded model.

        Args:
            lm: lm-eval's model.
            renderer: The engine's renderer.
            forward: Runs the same model.
            limits: What a batch may hold, shared with generation.
        """
        super().__init__(lm, renderer)
        self._forward, self._limits = forward, limits

    def score_choices(
        self, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]], *, quiet: bool = False
    ) -> Iterator[tuple[int, list[Score]]]:
        """See ``Scorer.score_choices``. A batch that does not fit the memory is halved."""
        left = list(range(len(prompts)))
        with Bar(desc="choices", total=len(prompts), disable=quiet, unit="prompt", smoothing=0) as bar:
            while left:
                # Scoring holds the logits of every position of a choice, so a batch gets a quarter of the tokens.
                batch = next(cut_prompts(prompts, choices, self._limits.tokens // 4, left))
                scores = self._score([prompts[index] for index in batch], [choices[index] for index in batch])
                if scores is None:
                    self._limits.lower(self._limits.tokens // 2)
                    continue
                left = [index for index in left if index not in batch]
                for scored in zip(batch, scores, strict=True):
                    bar.update()
                    yield scored

    def _score(self, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]]) -> list[list[Score]] | None:
        """The scores of a batch, or None if it does not fit the memory.

        Raises:
            EngineError: If the batch holds one prompt only.
        """
        try:
            scores: list[list[Score]] = score_batch(self._forward, prompts, choices, self.lm.device)
            return scores
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            if len(prompts) > 1:
                return None
            raise EngineError(
                f"one question of {len(prompts[0])} tokens with {len(choices[0])} choices does not fit the memory of "
                f"{self.lm.device}: use a smaller dtype, fewer drafts or more devices."
            ) from error


def cut_prompts(
    prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]], batch_tokens: int, indices: Iterable[int]
) -> Iterator[list[int]]:
    """Yield batches of prompt indices, longest first; a batch costs rows x its longest row.

    Args:
        prompts: Token ids of all prompts.
        choices: Token ids of each prompt's continuations. Each makes a row.
        batch_tokens: Maximum tokens of a batch. A batch of one prompt may exceed it.
        indices: The prompts to cut into batches.
    """
    order = sorted(indices, key=lambda index: -len(prompts[index]))
    batch: list[int] = []
    rows = longest = 0
    for index in order:
        length = len(prompts[index]) + max(map(len, choices[index]))
        if batch and (rows + len(choices[index])) * max(longest, length) > batch_tokens:
            yield batch
            batch, rows, longest = [], 0, 0
        batch.append(index)
        rows, longest = rows + len(choices[index]), max(longest, length)
    if batch:
        yield batch


@torch.inference_mode()
def score_batch(
    forward: Forward, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]], device: torch.device
) -> list[list[Score]]:
    """The log-probability of each continuation, and whether greedy decoding would write it.

    Args:
        forward: Runs the model.
        prompts: Token ids.
        choices: Token ids of each prompt's continuations. An empty one has probability 1.
        device: The device of the model.
    """
    ids, mask = left_pad(prompts, device)  # (prompts, longest) each
    cache = forward.new_cache()
    first_logits = forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)  # (prompts, 1, vocab)
    owner = torch.tensor([number for number, own in enumerate(choices) for _ in own], device=device)  # (rows,)
    rows = [list(continuation) for own in choices for continuation in own]
    width = max(1, *map(len, rows))
    targets = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)  # (rows, width)
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)  # (rows, width)
    logits = first_logits[owner]  # (rows, 1, vocab)
    if width > 1:
        cache.batch_select_indices(owner)
        positions = mask[owner].sum(-1, keepdim=True) + torch.arange(width - 1, device=device)  # (rows, width - 1)
        full_mask = torch.cat([mask[owner], real[:, :-1]], dim=-1)  # (rows, longest + width - 1)
        later_logits = forward(targets[:, :-1], full_mask, positions, cache, width - 1)
        logits = torch.cat([logits, later_logits], dim=1)
    log_probabilities = logits.float().log_softmax(-1)  # (rows, width, vocab)
    of_targets = log_probabilities.gather(-1, targets[..., None])[..., 0] * real  # (rows, width)
    greedy = ((logits.argmax(-1) == targets) | (real == 0)).all(-1)  # (rows,)
    scores = iter(zip(of_targets.sum(-1).tolist(), greedy.tolist(), strict=True))
    return [[next(scores) for _ in own] for own in choices]
