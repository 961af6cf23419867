"""The transformers engine: an own decode loop around a model that lm-eval's HFLM has loaded.

Each distinct prompt is prefilled once and its cache fanned out to its samples; rows leave the batch as they end.
``generate`` of transformers does neither, and has one generator for a whole batch. Knows nothing of drafts. Loaded
by ``engine=hf``; HFLM is held as the loader and for loglikelihood requests. Over 200 lines because loading, decoding
and counting share the model's state.
"""

from __future__ import annotations

import inspect
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from safetensors import SafetensorError
from transformers import DynamicCache, __version__

from lm_eval_aft.core.arguments import integer, mapping
from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.config import refuse_unknown
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.records import Completion, Request, Sampling
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.engines.base import HostArgs
from lm_eval_aft.engines.hf.batching import Group, cut_batches, left_pad
from lm_eval_aft.engines.hf.beam_search import beam_search
from lm_eval_aft.engines.hf.choice_scoring import cut_prompts, score_batch
from lm_eval_aft.engines.hf.sampling import RowSampler
from lm_eval_aft.inference.interrupts import leave_group_at_exit
from lm_eval_aft.storage.fingerprint import checkpoint_fingerprint

CPU_BATCH_TOKENS = 65_536  # 1.5 GB of keys and values for a 135M model; more rows no longer help two cores
PICKLES = (
    ": weights in pickle files can run code and are refused; what trusts them is --model_args "
    """'{"pretrained":"FOLDER","model_kwargs":{"use_safetensors":false}}'."""
)
OWN_ARGS = {"batch_tokens", "model_kwargs"}
TEXT_ARGS = ("gguf_file", "subfolder")  # what decides the text besides the folder and the revision
PROCESSORS: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None}
UNUSED = {"mixed_precision_dtype", "truncation"}
LOAD_ERRORS = (  # seen, of checkpoints and arguments that do not fit
    *(OSError, ValueError, ImportError, AttributeError, TypeError, KeyError, RuntimeError, AssertionError),
    SafetensorError,
)
SAME_TEXT = ("attn_implementation", "use_safetensors")  # of model_kwargs: these decide how it is computed or read


class HFEngine:
    """Runs a causal transformers model on CPU, GPU or whatever HFLM places it on."""

    counts_shared_prefill = True

    def __init__(
        self,
        lm: HFLM,
        *,
        batch_size: int | str = "auto",
        batch_tokens: int | None = None,
        loaded_with: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a loaded HFLM.

        Args:
            lm: lm-eval's loader and scorer.
            batch_size: Distinct prompts a batch may hold, each with all its samples; "auto" is no such bound.
            batch_tokens: Tokens (prompts and completions, every row counted) a batch may hold; None measures.
            loaded_with: Arguments of the loader that decide the text and that HFLM does not remember.
        """
        self.scorer = lm
        self.model, self.tokenizer = lm.model, lm.tokenizer
        self.renderer = TokenizerRenderer(
            lm.tokenizer, add_bos_token=lm.add_bos_token, template_args=lm.chat_template_args
        )
        self.max_length = int(lm.max_length)
        self.shape = model_shape(self.model)
        self._stops = self._stop_ids()
        self._batch_prompts = batch_size if isinstance(batch_size, int) else None
        self._batch_tokens = batch_tokens or self._measured_tokens()
        # Without a pad in sight transformers drops the mask, and scaled_dot_product_attention then takes a path for
        # grouped heads that is slow in bf16 on a CPU: 134 against 57 ms a step (5 rows of 1,200 tokens, 135M model).
        self._spare = int(lm.device.type == "cpu" and self.model.dtype == torch.bfloat16)
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self._accepts = set(inspect.signature(inner.forward).parameters)  # an adapter's takes anything and says nothing
        self.fingerprint = self._identify(lm, loaded_with or {})
        self.info: Mapping[str, Any] = {
            "torch": torch.__version__,
            "transformers": __version__,
            "device": str(lm.device),
        }

    @classmethod
    def load(cls, engine_args: dict[str, Any], host: HostArgs) -> HFEngine:
        """Check the arguments against HFLM's constructor, then load.

        Raises:
            ConfigError: If an argument is unknown or ``pretrained`` is missing.
            EngineError: If the checkpoint cannot be loaded.
        """
        allowed = set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs", "think_end_token"} | OWN_ARGS
        refuse_unknown(engine_args, allowed, "hf")
        if "pretrained" not in engine_args:
            raise ConfigError("pretrained is missing: give --model_args pretrained=FOLDER_OR_HUB_NAME.")
        batch_tokens = engine_args.pop("batch_tokens", None)
        batch_tokens = None if batch_tokens is None else integer(1)("batch_tokens", batch_tokens)
        model_kwargs = mapping("model_kwargs", engine_args.pop("model_kwargs", {}))
        batch_size = _batch_size(host.batch_size)
        safely = {} if "gguf_file" in engine_args else {"use_safetensors": True}  # a pickle can run code
        loader = {**safely, "device": host.device, "max_batch_size": host.max_batch_size, **engine_args, **model_kwargs}
        loader = {name: value for name, value in loader.items() if value is not None}
        if loader.get("enable_thinking"):
            loader["think_end_token"] = "</think>"  # HFLM insists on one, for its own generation, which is not used
        if loader.get("use_safetensors"):
            _refuse_pickles(loader.get("peft"))
        if "tokenizer" not in loader and (trained_with := _adapter_tokenizer(loader.get("peft"))):
            loader["tokenizer"] = trained_with
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (host.device == "cpu" or not torch.cuda.is_available()):
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # else accelerate takes each process for the only one
        try:
            lm = HFLM(batch_size=host.batch_size, **loader)
            leave_group_at_exit()
            _share_requests(lm)
            if lm.config.is_encoder_decoder:
                raise ValueError("it is an encoder-decoder model, and engine=hf runs causal ones.")
            loaded_with = {name: engine_args[name] for name in TEXT_ARGS if engine_args.get(name)}
            loaded_with |= {name: value for name, value in model_kwargs.items() if name not in SAME_TEXT}
            engine = cls(lm, batch_size=batch_size, batch_tokens=batch_tokens, loaded_with=loaded_with)
        except LOAD_ERRORS as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            if "safetensors" in reason:
                reason += PICKLES
            raise EngineError(f"pretrained={engine_args['pretrained']} cannot be loaded: {reason}") from error
        _say_unused(lm.model, loader)
        return engine

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``: batches run longest first; one that does not fit memory is halved."""
        waiting = deque(self._cut(requests, range(len(requests))))
        while waiting:
            batch = waiting.popleft()
            left = {position for group in batch for position in group.positions}
            try:
                for position, completion in self._write(requests, batch):
                    left.discard(position)
                    yield position, completion
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if sum(len(group.positions) for group in batch) == 1:
                    raise EngineError(
                        f"one sequence of {self._longest(requests, left)} tokens does not fit the memory of "
                        f"{self.scorer.device}: lower max_gen_toks, or use a smaller dtype or more devices."
                    ) from error
                self._batch_tokens = max(1, self._longest(requests, left) * len(left) // 2)
            if left:
                self._say_smaller()
                later = [position for other in waiting for group in other for position in group.positions]
                waiting = deque(self._cut(requests, [*sorted(left), *later]))

    def score_choices(
        self, prompts: Sequence[Sequence[int]], choices: Sequence[Sequence[Sequence[int]]]
    ) -> Iterator[tuple[int, list[tuple[float, bool]]]]:
        """Yield each prompt's number and, for each of its continuations, log-probability and whether it is greedy.

        Args:
            prompts: Token ids; each runs through the model once.
            choices: Token ids of each prompt's continuations.

        Raises:
            EngineError: If one prompt with its continuations does not fit the memory; batches are halved until then.
        """
        left = list(range(len(prompts)))
        while left:  # a quarter of the tokens, as there are logits of every position of a choice
            batch = next(cut_prompts(prompts, choices, self._batch_tokens // 4, left))
            of_batch = [prompts[number] for number in batch], [choices[number] for number in batch]
            cache = DynamicCache(config=self.model.config)
            try:
                scores = score_batch(self._logits, cache, *of_batch, self.scorer.device)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise EngineError(
                        f"one question of {len(of_batch[0][0])} tokens with {len(of_batch[1][0])} choices does not fit "
                        f"the memory of {self.scorer.device}: use a smaller dtype, fewer drafts or more devices."
                    ) from error
                scores = []
                self._batch_tokens = max(1, self._batch_tokens // 2)
            if scores:
                yield from zip(batch, scores, strict=True)
                left = [number for number in left if number not in batch]
            else:
                self._say_smaller()

    def _say_smaller(self) -> None:
        torch.cuda.empty_cache()  # outside the except block, whose error keeps tensors alive
        log.warning("Out of memory: batches now hold %d tokens.", self._batch_tokens)

    def _cut(self, requests: Sequence[Request], positions: Sequence[int]) -> Iterator[list[Group]]:
        return cut_batches(requests, positions, self._batch_tokens, self._batch_prompts)

    def _write(self, requests: Sequence[Request], batch: Sequence[Group]) -> Iterator[tuple[int, Completion]]:
        if requests[batch[0].positions[0]].sampling.beams == 1:
            yield from self._decode(requests, batch)
            return
        for position, token_ids in beam_search(self.model, requests, batch, self._stops):
            yield position, self._completion(requests[position], token_ids, True)

    @torch.inference_mode()
    def _decode(self, requests: Sequence[Request], batch: Sequence[Group]) -> Iterator[tuple[int, Completion]]:
        """Prefill each prompt once, fan out, then decode all rows until each has ended."""
        device = self.scorer.device
        ids, mask = left_pad([group.token_ids for group in batch], device, self._spare)  # (prompts, longest) each
        cache = DynamicCache(config=self.model.config)
        logits = self._forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)  # (prompts, vocab)
        owner = torch.tensor([number for number, group in enumerate(batch) for _ in group.positions], device=device)
        if len(owner) > len(batch):
            cache.batch_select_indices(owner)
            logits, mask = logits[owner], mask[owner]
        rows = [position for group in batch for position in group.positions]
        payers = {group.positions[0] for group in batch}  # the prefill is counted once a prompt
        sampling = requests[rows[0]].sampling
        sampler = RowSampler(sampling, [requests[row].seed for row in rows], device)
        lengths = mask.sum(-1)  # (rows,)
        written: dict[int, list[int]] = {row: [] for row in rows}
        while True:
            tokens = sampler.draw(logits)  # (rows,)
            keep = []
            for number, token in enumerate(tokens.tolist()):
                row = rows[number]
                written[row].append(token)
                if self._ended(written[row], sampling):
                    yield row, self._completion(requests[row], written.pop(row), row in payers)
                else:
                    keep.append(number)
            if not keep:
                return
            if len(keep) < len(rows):
                kept = torch.tensor(keep, device=device)
                cache.batch_select_indices(kept)
                tokens, mask, lengths = tokens[kept], mask[kept], lengths[kept]
                sampler.keep(keep)
                rows = [rows[number] for number in keep]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
            logits = self._forward(tokens[:, None], mask, lengths[:, None], cache)
            lengths = lengths + 1

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Logits after the last token, (rows, vocab); the cache grows by the tokens given."""
        return self._logits(ids, mask, position_ids, cache, 1)[:, -1]

    def _logits(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: DynamicCache, keep: int
    ) -> torch.Tensor:
        """Logits after each of the last ``keep`` tokens, (rows, keep, vocab)."""
        extras = {"position_ids": position_ids, "logits_to_keep": keep}
        known = {name: value for name, value in extras.items() if name in self._accepts}
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **known)
        logits: torch.Tensor = output.logits[:, -keep:]
        return logits

    def _ended(self, token_ids: list[int], sampling: Sampling) -> bool:
        if token_ids[-1] in self._stops or len(token_ids) >= sampling.max_tokens:
            return True
        if not sampling.until:
            return False
        most = max(len(stop.encode()) for stop in sampling.until)  # a token is a byte at least
        tail = self.tokenizer.decode(token_ids[-most - 4 :])
        return any(stop in tail for stop in sampling.until)

    def _completion(self, request: Request, token_ids: list[int], payer: bool) -> Completion:
        stopped = token_ids[-1] in self._stops
        text = str(self.tokenizer.decode(token_ids[:-1] if stopped else token_ids, skip_special_tokens=True))
        until = request.sampling.until
        cut = min((text.index(stop) for stop in until if stop in text), default=None)
        # a stop string may be a special token, which the text leaves out
        stopped = stopped or cut is not None or any(stop in self.tokenizer.decode(token_ids) for stop in until)
        prompt_tokens = request.prompt.prompt_tokens
        return Completion(
            text=text[:cut],
            token_ids=tuple(token_ids),
            finish_reason="stop" if stopped else "length",
            prompt_tokens=prompt_tokens,
            computed_prompt_tokens=prompt_tokens if payer else 0,
            generated_tokens=len(token_ids) * request.sampling.beams,
        )

    def _stop_ids(self) -> frozenset[int]:
        """Ids that end a text: the generation config's, the tokenizer's, and the chat template's turn end."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = [*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id]
        return frozenset(int(token) for token in ids if token is not None) | self.renderer.turn_end_ids

    def _measured_tokens(self) -> int:
        """Tokens whose keys and values fit: a third of free GPU memory, as growing the cache copies it."""
        if self.scorer.device.type != "cuda":
            return CPU_BATCH_TOKENS
        text = self.model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        token_bytes = 2 * text.num_hidden_layers * heads * size * self.model.dtype.itemsize
        free, _ = torch.cuda.mem_get_info(self.scorer.device)
        return max(CPU_BATCH_TOKENS, int(free) // 3 // int(token_bytes))

    def _longest(self, requests: Sequence[Request], positions: set[int]) -> int:
        return max(requests[i].prompt.prompt_tokens + requests[i].sampling.max_tokens for i in positions)

    def _identify(self, lm: HFLM, loaded_with: Mapping[str, Any]) -> str:
        commit = getattr(self.model.config, "_commit_hash", None)
        quantisation = getattr(self.model.config, "quantization_config", None)
        parts = [
            "hf",
            checkpoint_fingerprint(_within(lm.pretrained, loaded_with.get("subfolder")), lm.revision, commit)
            if isinstance(lm.pretrained, str)
            else "given",
            *(checkpoint_fingerprint(name, lm.revision, None) for name in (lm.peft, lm.delta) if name),
            str(self.model.dtype),
            str(quantisation) if quantisation else "",
            ",".join(map(str, sorted(self._stops))),
            *(f"{name}={value}" for name, value in sorted(loaded_with.items())),
        ]
        return "|".join(parts)


def _say_unused(model: Any, loader: Mapping[str, Any]) -> None:
    """Warn of what ``--model hf`` would apply and our decode loop does not."""
    wanted = {name: getattr(model.generation_config, name, None) for name in PROCESSORS}
    wanted = {name: value for name, value in wanted.items() if value not in (None, PROCESSORS[name])}
    if wanted:
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items())
        log.warning("The generation config asks for %s: --model hf applies it, --model aft does not.", asked)
    for name in UNUSED & set(loader):
        log.warning("%s=%s has no effect on what --model aft generates.", name, loader[name])


def _within(name: str, subfolder: str | None) -> str:
    """The folder that holds the weights; a hub repository as it is."""
    return str(Path(name, subfolder)) if subfolder and Path(name).is_dir() else name


def _adapter_tokenizer(adapter: Any) -> str | None:
    """The folder of an adapter that brings its own tokenizer: training may have given it a chat template."""
    holds_one = isinstance(adapter, str) and Path(adapter, "tokenizer_config.json").is_file()
    return str(adapter) if holds_one else None


def _refuse_pickles(adapter: Any) -> None:
    """Refuse an adapter whose weights are a pickle; a hub adapter's files are not looked at before they are fetched.

    Raises:
        EngineError: If it is one.
    """
    folder = Path(str(adapter or ""))
    if adapter and folder.is_dir() and not (folder / "adapter_model.safetensors").is_file():
        raise EngineError(f"peft={adapter} holds no adapter_model.safetensors{PICKLES}")


def _share_requests(lm: HFLM) -> None:
    """Let CPU processes of one launch share the requests: HFLM numbers its processes only where it sees GPUs."""
    accelerator = getattr(lm, "accelerator", None)
    if accelerator is not None and lm.world_size == 1:
        lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes


def model_shape(model: Any) -> ModelShape:
    """The sizes that decide what a token costs; embeddings and the output head are left out."""
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    outside = {id(w): w for w in (model.get_input_embeddings().weight, getattr(head, "weight", None)) if w is not None}
    used = (w for name, w in model.named_parameters() if ".original_module." not in name)  # peft's, of what it replaced
    parameters = sum(w.numel() for w in used) - sum(w.numel() for w in outside.values())
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(parameters, text.num_hidden_layers, text.num_attention_heads * size)


def _batch_size(value: int | str) -> int | str:
    """lm-eval's --batch_size: a whole number, or auto with or without a suffix."""
    if isinstance(value, str) and value.startswith("auto"):
        return "auto"
    prompts: int = integer(1)("batch_size", value)
    return prompts


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
