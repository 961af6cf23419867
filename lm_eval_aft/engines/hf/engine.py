"""The transformers engine: our own decode loop around a model that lm-eval's HFLM has loaded.

The engine prefills each distinct prompt once. Its samples share the prompt's cache, or get copies of it. Rows leave the
batch as they end. ``generate`` of transformers does neither, and it uses one random generator for a whole batch.
With ``look_ahead`` a forward pass may give a text several tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import __version__

from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.engine import HostArgs, Processes, Scorer
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.loading import loading
from lm_eval_aft.core.log import log
from lm_eval_aft.core.model_checks import embedding_rows, foreign_token
from lm_eval_aft.core.model_shape import model_shape
from lm_eval_aft.core.records import Completion, Confidence, Request
from lm_eval_aft.engines.cpu_types import warn_of_software
from lm_eval_aft.engines.ending import find_stop_ids, has_ended, text_before_stop
from lm_eval_aft.engines.hf.batching import Group, cut_batches
from lm_eval_aft.engines.hf.beam_search import beam_search
from lm_eval_aft.engines.hf.choice_scoring import SharedPromptScorer
from lm_eval_aft.engines.hf.decoding import Row, decode, rows_of
from lm_eval_aft.engines.hf.forward import RowCache, rope_changes
from lm_eval_aft.engines.hf.loading import HFArgs, HFProcesses, load_failure, load_lm
from lm_eval_aft.engines.hf.memory import MEMORY_ERRORS, BatchLimits, is_out_of_memory, measured_tokens
from lm_eval_aft.engines.hf.self_check import SAMPLE, find_forward
from lm_eval_aft.engines.hf.shared_prompts import SharedPromptCache
from lm_eval_aft.storage.fingerprint import checkpoint_fingerprint


class HFEngine:
    """Runs a causal transformers model on a CPU, a GPU, or the devices on which HFLM places it.

    Attributes:
        lm: lm-eval's HFLM, which loaded the model.
        model: The transformers model.
        tokenizer: Its tokenizer.
        stop_ids: Token ids that end a text.
        limits: What one batch may hold.
        rules: Which rows may share a batch.
        spare_pads: Pads before the longest prompt of a batch.
        looks_ahead: Whether the tokens that a prompt shows are proposed.
    """

    counts_shared_prefill = True
    seed_advice = ""
    no_confidence = ""
    commits_each = False

    def __init__(self, lm: HFLM, args: HFArgs) -> None:
        """Wrap a loaded HFLM.

        Args:
            lm: lm-eval's loader and scorer.
            args: What it was loaded with.
        """
        self.lm, self.model, self.tokenizer = lm, lm.model, lm.tokenizer
        self.renderer = TokenizerRenderer(
            lm.tokenizer, add_bos_token=lm.add_bos_token, template_args=lm.chat_template_args
        )
        # lm-eval's model renders the chats whose continuations it scores. It must use the same template.
        lm.chat_template_args = self.renderer.template_args
        self.max_length = int(lm.max_length)
        self.shape = model_shape(self.model)
        self._embedding_rows = embedding_rows(self.model)
        self.device: torch.device = lm.device
        self.processes: Processes = HFProcesses(lm)
        self.stop_ids = self._find_stop_ids()
        tokens = args.batch_tokens or measured_tokens(self.model, self.device)
        self.limits = BatchLimits(tokens, args.batch_prompts)
        sample = lm.tok_encode(SAMPLE, add_special_tokens=False)
        self._forward, self.rules = find_forward(self.model, sample, self.max_length, self.device)
        if rope_changes(self.model.config):
            log.warning(
                "The rope of this model changes with the length of a text: only prompts of one length share a batch, "
                "and plain loglikelihood scores depend on the longest text of their batch, as with --model hf."
            )
        self.looks_ahead = args.look_ahead and self.rules.look_ahead
        if args.look_ahead and not self.rules.look_ahead:
            log.warning("look_ahead=true has no effect: the cache of this model cannot forget tokens.")
        if self.device.type == "cpu":
            warn_of_software(self.model.dtype)
        # Without a pad in a batch transformers drops the mask. scaled_dot_product_attention then takes a path for
        # grouped heads that is slow in bf16 on a CPU: 134 against 57 ms a step (5 rows of 1,200 tokens, 135M model).
        slow_without_pads = self.device.type == "cpu" and self.model.dtype == torch.bfloat16
        self.spare_pads = int(slow_without_pads and self.rules.mixed_lengths and not self.rules.shared_prompts)
        self.scorer: Scorer = SharedPromptScorer(lm, self.renderer, self._forward, self.limits, self.rules)
        self._finishing = False
        self._text_settings = args.text_settings
        self.fingerprint = self._fingerprint(args.text_settings)
        self.info: Mapping[str, Any] = {
            "torch": torch.__version__,
            "transformers": __version__,
            "device": str(self.device),
        }

    @classmethod
    def load(cls, engine_args: Mapping[str, Any], host: HostArgs) -> HFEngine:
        """Check the arguments against HFLM's constructor, then load.

        Raises:
            ConfigError: If an argument is unknown or ``pretrained`` is missing.
            EngineError: If the checkpoint cannot be loaded.
        """
        args = HFArgs.of(engine_args, host)
        with loading(lambda error: load_failure(error, args)):
            return cls(load_lm(args), args)

    def use_chat_template(self, name: str | None) -> None:
        """See ``Engine.use_chat_template``. Another template may end its messages with another token."""
        self.renderer.use_template(name)
        self.stop_ids = self._find_stop_ids()
        self.fingerprint = self._fingerprint(self._text_settings)

    def model_info(self) -> dict[str, Any]:
        """See ``Engine.model_info``."""
        return dict(self.lm.get_model_info())

    def finish(self) -> None:
        """See ``Engine.finish``."""
        self._finishing = True

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``. Batches run longest first; a batch that does not fit the memory is halved."""
        self._refuse_foreign_tokens(requests)
        self._finishing = False
        waiting = deque(self._cut(requests, range(len(requests))))
        while waiting and not self._finishing:
            batch = waiting.popleft()
            left = {position for group in batch for position in group.positions}
            try:
                for position, completion in self._complete(requests, batch):
                    left.discard(position)
                    yield position, completion
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                if sum(len(group.positions) for group in batch) == 1:
                    raise EngineError(
                        f"one sequence of {_longest(requests, left)} tokens does not fit into the memory "
                        f"of {self.device}: lower max_gen_toks, or use a smaller dtype or more devices."
                    ) from error
            if left and not self._finishing:
                rest = [Group(tuple(left.intersection(each.positions)), each.token_ids) for each in batch]
                rest = [group for group in rest if group.positions]
                self.limits.lower(self.rules.tokens(rest, requests[batch[0].positions[0]].sampling) // 2)
                later = [position for other in waiting for group in other for position in group.positions]
                waiting = deque(self._cut(requests, [*sorted(left), *later]))

    def _refuse_foreign_tokens(self, requests: Sequence[Request]) -> None:
        """Refuse prompts with tokens that the model has no embedding for.

        Raises:
            EngineError: If there is one.
        """
        highest = max((max(request.prompt.token_ids or (0,)) for request in requests), default=0)
        if reason := foreign_token(highest, self._embedding_rows):
            raise EngineError(reason)

    def _cut(self, requests: Sequence[Request], positions: Sequence[int]) -> Iterator[list[Group]]:
        return cut_batches(requests, positions, self.limits.tokens, self.limits.prompts, self.rules)

    def _complete(self, requests: Sequence[Request], batch: Sequence[Group]) -> Iterator[tuple[int, Completion]]:
        """Complete the requests of a batch, by sampling or by beam search."""
        if requests[batch[0].positions[0]].sampling.beams == 1:
            yield from self._decode(requests, batch)
            return
        if not self.rules.many_rows:
            raise EngineError("strategy=beam cannot be used: this model runs one row at a time.")
        for position, token_ids in beam_search(self.model, requests, batch, self.stop_ids):
            yield position, self._completion(requests[position], token_ids, True)

    def _decode(self, requests: Sequence[Request], batch: Sequence[Group]) -> Iterator[tuple[int, Completion]]:
        """Complete the requests of a batch by sampling."""
        cache = SharedPromptCache() if self.rules.shared_prompts else RowCache()
        rows = rows_of(requests, batch, looks_ahead=self.looks_ahead)
        decoded = decode(
            self._forward,
            cache,
            batch,
            rows,
            has_ended=self._has_ended,
            is_finishing=lambda: self._finishing,
            device=self.device,
            spare_pads=self.spare_pads,
        )
        for row in decoded:
            completion = self._completion(row.request, row.token_ids, row.computes_prompt, row.logprobs)
            yield row.position, replace(completion, look_ahead=row.look_ahead)

    def _has_ended(self, row: Row) -> bool:
        return has_ended(self.tokenizer, row.token_ids, self.stop_ids, row.request.sampling)

    def _completion(
        self, request: Request, token_ids: list[int], computed_prompt: bool, logprobs: Sequence[float] = ()
    ) -> Completion:
        sampling, prompt_tokens = request.sampling, request.prompt.prompt_tokens
        shown = self.renderer.thought_ids
        text, stopped = text_before_stop(self.tokenizer, token_ids, self.stop_ids, sampling.until, shown)
        return Completion(
            text=text,
            token_ids=tuple(token_ids),
            finish_reason="stop" if stopped else "length",
            prompt_tokens=prompt_tokens,
            computed_prompt_tokens=prompt_tokens if computed_prompt else 0,
            generated_tokens=len(token_ids) * sampling.beams,
            confidence=Confidence.of(logprobs),
        )

    def _find_stop_ids(self) -> frozenset[int]:
        return find_stop_ids(getattr(self.model.generation_config, "eos_token_id", None), self.renderer)

    def _fingerprint(self, text_settings: Mapping[str, Any]) -> str:
        """See ``Engine.fingerprint``. Store keys depend on the order and the form of these parts."""
        lm, config = self.lm, self.model.config
        commit = getattr(config, "_commit_hash", None)
        quantisation = getattr(config, "quantization_config", None)
        parts = [
            "hf",
            checkpoint_fingerprint(_weights_folder(lm.pretrained, text_settings.get("subfolder")), lm.revision, commit)
            if isinstance(lm.pretrained, str)
            else "given",
            *(checkpoint_fingerprint(name, lm.revision, None) for name in (lm.peft, lm.delta) if name),
            str(self.model.dtype),
            str(quantisation) if quantisation else "",
            ",".join(map(str, sorted(self.stop_ids))),
            *(f"{name}={value}" for name, value in sorted(text_settings.items())),
            *(["thoughts shown"] if self.renderer.thought_ids else []),
        ]
        return "|".join(parts)


def _longest(requests: Sequence[Request], positions: set[int]) -> int:
    """Tokens of the longest prompt with its completion."""
    return max(requests[i].prompt.prompt_tokens + requests[i].sampling.max_tokens for i in positions)


def _weights_folder(pretrained: str, subfolder: str | None) -> str:
    """The folder that holds the weights. The name of a hub repository is returned as it is."""
    return str(Path(pretrained, subfolder)) if subfolder and Path(pretrained).is_dir() else pretrained
