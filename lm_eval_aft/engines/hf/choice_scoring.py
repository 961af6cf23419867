"""Log-probabilities of several continuations of one prompt, which runs through the model once.

lm-eval's own scoring computes a prompt again for each continuation of more than one token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.engine import Score, TokenIds
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.model_checks import embedding_rows, foreign_token
from lm_eval_aft.core.progress import Bar
from lm_eval_aft.engines.hf.batching import RowRules, left_pad
from lm_eval_aft.engines.hf.forward import Forward, RowCache, whole_logits
from lm_eval_aft.engines.hf.logprobs import token_logprobs
from lm_eval_aft.engines.hf.memory import MEMORY_ERRORS, BatchLimits, is_out_of_memory
from lm_eval_aft.engines.hf.sampling import refuse_damaged
from lm_eval_aft.engines.lm_scorer import LMScorer

# Positions whose logits are in memory at a time. With a vocabulary of 152,000 tokens they take 0.6 GB.
LOGIT_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """What the model says of a continuation.

    Attributes:
        score: The sum of the log-probabilities, and whether greedy decoding would write the continuation.
        logprobs: The log-probability of each token.
    """

    score: Score
    logprobs: list[float]


class SharedPromptScorer(LMScorer):
    """Scores requests with HFLM, and the choices of a question with one computation of their prompt.

    Attributes:
        shares_prompts: See ``Scorer``. False for the few models that must read each choice with its whole prompt.
    """

    def __init__(
        self, lm: HFLM, renderer: TokenizerRenderer, forward: Forward, limits: BatchLimits, rules: RowRules
    ) -> None:
        """Wrap a loaded model.

        Args:
            lm: lm-eval's model.
            renderer: The engine's renderer.
            forward: Runs the same model.
            limits: What a batch may hold, shared with generation.
            rules: Which rows may share a batch.
        """
        super().__init__(lm, renderer)
        self._forward, self._limits, self._rules = forward, limits, rules
        self._embedding_rows = embedding_rows(lm.model)
        highest = max(renderer.tokenizer.get_vocab().values(), default=0)
        self._has_foreign_tokens = foreign_token(highest, self._embedding_rows) is not None
        self.shares_prompts = rules.many_rows and rules.scoring != "whole"

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """See ``Scorer.loglikelihood``.

        Raises:
            EngineError: If a token has no embedding, or a score is not a number.
        """
        if self._has_foreign_tokens:
            self._refuse_foreign_tokens([part for request in requests for part in self.encode_pair(*request.args)])
        scores = super().loglikelihood(requests, disable_tqdm)
        self._refuse_damaged([score for score, _ in scores])
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float] | list[Score]:
        """See ``Scorer.loglikelihood_rolling``.

        Raises:
            EngineError: If a token has no embedding, or a score is not a number.
        """
        if self._has_foreign_tokens:
            # lm-eval 0.5 puts an empty context before the text.
            self._refuse_foreign_tokens([self.lm.tok_encode(request.args[-1]) for request in requests])
        scores = super().loglikelihood_rolling(requests, disable_tqdm)
        # lm-eval 0.5 gives pairs, whose second part says whether the text is greedy.
        self._refuse_damaged([score[0] if isinstance(score, tuple) else score for score in scores])
        return scores

    def score_choices(
        self, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]], *, quiet: bool = False
    ) -> Iterator[tuple[int, list[Score]]]:
        """See ``Scorer.score_choices``. A batch that does not fit the memory is halved."""
        for index, scored in self._score_all(prompts, choices, "choices", quiet):
            yield index, [each.score for each in scored]

    def token_logprobs(
        self, prompts: Sequence[TokenIds], texts: Sequence[TokenIds], *, quiet: bool = False
    ) -> Iterator[tuple[int, list[float]]]:
        """See ``Scorer.token_logprobs``. Texts of one prompt share its computation as far as they fit a batch."""
        groups = group_texts(prompts, texts, self._limits.tokens // 4)
        own_texts = [[texts[index] for index in group] for group in groups]
        scored_groups = self._score_all([prompts[group[0]] for group in groups], own_texts, "confidence", quiet)
        for number, scored in scored_groups:
            yield from ((index, each.logprobs) for index, each in zip(groups[number], scored, strict=True))

    def _score_all(
        self, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]], name: str, quiet: bool
    ) -> Iterator[tuple[int, list[ScoredTokens]]]:
        """Score the continuations of all prompts in batches. ``name`` is what the progress bar calls them."""
        self._refuse_foreign_tokens([*prompts, *(choice for own in choices for choice in own)])
        left = list(range(len(prompts)))
        with Bar(desc=name, total=len(prompts), disable=quiet, unit="prompt", smoothing=0) as bar:
            while left:
                # Scoring holds the logits of every position of a choice, so a batch gets a quarter of the tokens.
                batch = next(cut_prompts(prompts, choices, self._limits.tokens // 4, left, self._rules))
                scores = self._score([prompts[index] for index in batch], [choices[index] for index in batch])
                if scores is None:
                    self._limits.lower(self._limits.tokens // 2)
                    continue
                left = [index for index in left if index not in batch]
                for scored in zip(batch, scores, strict=True):
                    bar.update()
                    yield scored

    def _score(
        self, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]]
    ) -> list[list[ScoredTokens]] | None:
        """The scores of a batch, or None if it does not fit the memory.

        Raises:
            EngineError: If the batch holds one prompt only.
        """
        try:
            return self._score_batch(prompts, choices)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            if len(prompts) > 1:
                return None
            raise EngineError(
                f"one question of {len(prompts[0])} tokens with {len(choices[0])} choices does not fit "
                f"into the memory of {self.lm.device}: use a smaller dtype, fewer drafts or more devices."
            ) from error

    def _score_batch(
        self, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]]
    ) -> list[list[ScoredTokens]]:
        device: torch.device = self.lm.device
        if self.shares_prompts:
            at_once: bool = self._rules.scoring == "at_once"
            scores: list[list[ScoredTokens]] = score_batch(self._forward, prompts, choices, device, at_once)
            return scores
        rows = [(prompt, choice) for prompt, own in zip(prompts, choices, strict=True) for choice in own]
        of_rows = score_whole(self.lm.model, rows, device, self._rules.many_rows)
        return [[next(of_rows) for _ in own] for own in choices]

    def _refuse_damaged(self, scores: Sequence[float]) -> None:
        """Refuse scores that are NaN. A probability of 0 is not damage.

        Raises:
            EngineError: If there is one.
        """
        if any(math.isnan(score) for score in scores):
            refuse_damaged(torch.tensor(math.nan, dtype=self.lm.model.dtype))

    def _refuse_foreign_tokens(self, texts: Sequence[TokenIds]) -> None:
        """Refuse tokens that the model has no embedding for.

        Raises:
            EngineError: If there is one.
        """
        if reason := foreign_token(max((max(ids, default=0) for ids in texts), default=0), self._embedding_rows):
            raise EngineError(reason)


def cut_prompts(
    prompts: Sequence[TokenIds],
    choices: Sequence[Sequence[TokenIds]],
    batch_tokens: int,
    indices: Iterable[int],
    rules: RowRules,
) -> Iterator[list[int]]:
    """Yield batches of prompt indices, longest first; a batch costs rows x its longest row.

    Args:
        prompts: Token ids of all prompts.
        choices: Token ids of each prompt's continuations. Each makes a row.
        batch_tokens: Maximum tokens of a batch. A batch of one prompt may exceed it.
        indices: The prompts to cut into batches.
        rules: Which rows may share a batch.
    """
    order = sorted(indices, key=lambda index: -len(prompts[index]))
    batch: list[int] = []
    rows = longest = 0
    for index in order:
        length = len(prompts[index]) + max(map(len, choices[index]))
        full = (rows + len(choices[index])) * max(longest, length) > batch_tokens
        mixed = bool(batch) and len(prompts[index]) != len(prompts[batch[0]])
        if batch and (full or (mixed and not rules.mixed_lengths)):
            yield batch
            batch, rows, longest = [], 0, 0
        batch.append(index)
        rows, longest = rows + len(choices[index]), max(longest, length)
    if batch:
        yield batch


def group_texts(prompts: Sequence[TokenIds], texts: Sequence[TokenIds], batch_tokens: int) -> list[list[int]]:
    """The indices of texts, with texts of one prompt together as far as they fit a batch.

    Args:
        prompts: Token ids of each text's prompt.
        texts: Token ids.
        batch_tokens: Maximum tokens of a group with more than one text: its texts x (prompt + longest text).
    """
    groups: list[list[int]] = []
    newest: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        group = newest.get(tuple(prompt), [])
        longest = max(len(texts[each]) for each in [*group, index])
        if not group or (len(group) + 1) * (len(prompt) + longest) > batch_tokens:
            group = newest[tuple(prompt)] = []
            groups.append(group)
        group.append(index)
    return groups


@torch.inference_mode()
def score_batch(
    forward: Forward,
    prompts: Sequence[TokenIds],
    choices: Sequence[Sequence[TokenIds]],
    device: torch.device,
    at_once: bool = True,
) -> list[list[ScoredTokens]]:
    """Score each continuation.

    Args:
        forward: Runs the model.
        prompts: Token ids. Each runs through the model once.
        choices: Token ids of each prompt's continuations. An empty one has probability 1.
        device: The device of the model.
        at_once: Whether many tokens of a continuation run through the model at once, or one after the other.
    """
    ids, mask = left_pad(prompts, device)  # (prompts, longest) each
    cache = RowCache()
    first_logits = forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)  # (prompts, 1, vocab)
    owner = torch.tensor([number for number, own in enumerate(choices) for _ in own], device=device)  # (rows,)
    rows = [list(continuation) for own in choices for continuation in own]
    width = max(1, *map(len, rows))
    targets = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)  # (rows, width)
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)  # (rows, width)
    parts = [_read(first_logits[owner], targets[:, :1])]
    if width > 1:
        cache.select(owner)
        full_mask = torch.cat([mask[owner], real[:, :-1]], dim=-1)  # (rows, longest + width - 1)
        positions = mask[owner].sum(-1, keepdim=True) + torch.arange(width - 1, device=device)  # (rows, width - 1)
        size = max(1, LOGIT_POSITIONS // len(rows)) if at_once else 1
        for start in range(0, width - 1, size):
            end = min(start + size, width - 1)
            seen = full_mask[:, : ids.shape[1] + end]
            logits = forward(targets[:, start:end], seen, positions[:, start:end], cache, end - start)
            parts.append(_read(logits, targets[:, start + 1 : end + 1]))
    scored = iter(_scored(parts, real))
    return [[next(scored) for _ in own] for own in choices]


@torch.inference_mode()
def score_whole(
    model: Any, rows: Sequence[tuple[TokenIds, TokenIds]], device: torch.device, many_rows: bool
) -> Iterator[ScoredTokens]:
    """Score continuations, each with its whole prompt in one forward pass. Rows of one pass have equal lengths.

    Args:
        model: A causal transformers model.
        rows: Token ids of prompt and continuation.
        device: The device of the model.
        many_rows: Whether a pass may have several rows.
    """
    by_length: dict[int, list[int]] = {}
    for index, (prompt, choice) in enumerate(rows):
        by_length.setdefault(len(prompt) + len(choice) if many_rows else -index, []).append(index)
    scores: dict[int, ScoredTokens] = {}
    for indices in by_length.values():
        ids = torch.tensor([[*rows[index][0], *rows[index][1]] for index in indices], device=device)  # (rows, tokens)
        sizes = torch.tensor([len(rows[index][1]) for index in indices], device=device)  # (rows,)
        width = int(sizes.max())
        logits = whole_logits(model, ids, width + 1)[:, :-1]  # (rows, width, vocab)
        real = (torch.arange(width, device=device) >= width - sizes[:, None]).long()  # (rows, width)
        parts = [_read(logits, ids[:, ids.shape[1] - width :])]
        scores |= zip(indices, _scored(parts, real), strict=True)
    return iter([scores[index] for index in range(len(rows))])


def _read(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each target, and whether it is the likeliest token.

    Args:
        logits: (rows, tokens, vocab).
        targets: Token ids, (rows, tokens).

    Returns:
        (rows, tokens) each.

    Raises:
        EngineError: If a log-probability is NaN.
    """
    logprobs = token_logprobs(logits, targets)
    if bool(logprobs.isnan().any()):
        refuse_damaged(logits.amax(-1))
    return logprobs, logits.argmax(-1) == targets


def _scored(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], real: torch.Tensor) -> list[ScoredTokens]:
    """What each row scores.

    Args:
        parts: What ``_read`` returned for consecutive tokens.
        real: 1 for tokens of the continuation and 0 for others, (rows, width).
    """
    logprobs, likeliest = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))  # (rows, width) each
    # A token that the model rules out has -inf, and 0 times that is NaN.
    sums = logprobs.masked_fill(real == 0, 0).sum(-1).tolist()
    greedy = (likeliest | (real == 0)).all(-1).tolist()
    kept = [row[mask].tolist() for row, mask in zip(logprobs, real.bool(), strict=True)]
    return [ScoredTokens(score, row) for score, row in zip(zip(sums, greedy, strict=True), kept, strict=True)]
