"""The vLLM engine: all requests of a layer at once, each completion handed on as it ends.

``LLM.generate`` returns when the last text of a layer has ended, so requests go to the engine inside it and we step
that. Each generation is a request of its own, with its own seed: the prefix cache shares the prompt among them just as
``n=k`` would, and every text keeps its own end and counts. One code path serves GPU builds (0.22 and newer) and the CPU
build. Knows nothing of drafts. Loaded by ``engine=vllm``; its arguments are checked in ``vllm_args``.
A little over 200 lines, as every way in which vLLM ends or dies is told apart here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
import transformers

from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.records import Completion, Request
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.engines.base import HostArgs
from lm_eval_aft.engines.vllm.arguments import LOAD_ERRORS, VLLMArgs, import_vllm
from lm_eval_aft.engines.vllm.scorer import PromptScorer
from lm_eval_aft.engines.vllm.watchdog import watched
from lm_eval_aft.storage.fingerprint import checkpoint_fingerprint


class VLLMEngine:
    """Runs a model that ``vllm.LLM`` has loaded, on one machine's GPUs or on a CPU."""

    counts_shared_prefill = False  # what its prefix cache has given up by then, and the last block, it computes again

    def __init__(self, llm: Any, args: VLLMArgs) -> None:
        """Wrap a loaded ``vllm.LLM``.

        Args:
            llm: The engine.
            args: What it was loaded with.
        """
        self._llm, self._args = llm, args
        self._model_config = llm.llm_engine.model_config
        self._lora = args.lora_request()
        self.tokenizer = llm.get_tokenizer()
        self.renderer = TokenizerRenderer(
            self.tokenizer, add_bos_token=args.add_bos_token, template_args=args.template_args
        )
        self.max_length = int(self._model_config.max_model_len)
        self.shape = config_shape(self._model_config.hf_config)
        self.scorer = PromptScorer(
            llm,
            self.tokenizer,
            max_length=self.max_length,
            lora_request=self._lora,
            add_bos_token=args.add_bos_token,
            template_args=args.template_args,
        )
        self._stops = self._stop_ids()
        self._calls = count()
        self.fingerprint = self._identify()
        self.info: Mapping[str, Any] = {
            "vllm": import_vllm().__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": args.device,
            "tensor_parallel_size": args.engine.get("tensor_parallel_size", 1),
        }

    @classmethod
    def load(cls, engine_args: dict[str, Any], host: HostArgs) -> VLLMEngine:
        """Check the arguments against vLLM's EngineArgs and the machine, then load.

        Raises:
            ConfigError: If an argument is unknown, missing, wrong, or belongs to another engine.
            EngineError: If vLLM is not installed, finds no device, or cannot load the checkpoint.
        """
        vllm = import_vllm()
        args = VLLMArgs.of(engine_args, host)
        try:
            llm = vllm.LLM(**args.for_llm())
        except LOAD_ERRORS as error:
            reason = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise EngineError(
                f"pretrained={args.pretrained} cannot be loaded by vLLM {vllm.__version__}: {reason} (vLLM's own lines "
                "above may say more)."
            ) from error
        return cls(llm, args)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``: left early, what is still running is taken out of vLLM."""
        engine, call = self._llm.llm_engine, next(self._calls)
        waiting: dict[str, int] = {}
        try:
            with watched(engine):
                for position, request in enumerate(requests):
                    name = f"aft-{call}-{position}"
                    # "type" marks a prompt that needs no rendering: vLLM's renderer would warn at every other
                    prompt = {"type": "token", "prompt_token_ids": list(request.prompt.token_ids or ())}
                    with _one_sentence({}, len(requests)):
                        engine.add_request(name, prompt, self._params(request), lora_request=self._lora)
                    waiting[name] = position
                while waiting:
                    with _one_sentence(waiting, len(waiting)):
                        outputs = engine.step()
                    for output in outputs:
                        if output.finished and output.request_id in waiting:
                            position = waiting.pop(output.request_id)
                            yield position, self._completion(requests[position], output)
        finally:
            if waiting:
                engine.abort_request(list(waiting))

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        drawn = sampling.seeded and sampling.temperature > 0  # a greedy row with a generator is only slower
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=request.seed if drawn else None,
            stop=list(sampling.until) or None,
            stop_token_ids=sorted(self._stops),
            skip_special_tokens=False,  # a stop string may be one
            detokenize=bool(sampling.until),  # vLLM needs the text for stop strings only: we decode as engine=hf does
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, request: Request, output: Any) -> Completion:
        child = output.outputs[0]
        if child.finish_reason not in ("stop", "length"):
            raise EngineError(
                f"vLLM ended a text with {child.finish_reason!r}, which is neither stop nor length: see its lines "
                "above, and start again."
            )
        token_ids = tuple(int(token) for token in child.token_ids)
        body = token_ids[:-1] if token_ids and token_ids[-1] in self._stops else token_ids
        text = str(self.tokenizer.decode(list(body), skip_special_tokens=True))
        cut = min((text.index(stop) for stop in request.sampling.until if stop in text), default=None)
        prompt_tokens = len(output.prompt_token_ids)
        return Completion(
            text=text[:cut],
            token_ids=token_ids,
            finish_reason=child.finish_reason,
            prompt_tokens=prompt_tokens,
            computed_prompt_tokens=prompt_tokens - (output.num_cached_tokens or 0),
            generated_tokens=len(token_ids),
        )

    def _stop_ids(self) -> frozenset[int]:
        """Ids that end a text: the generation config's, the tokenizer's, and the chat template's turn end."""
        configured = self._model_config.try_get_generation_config().get("eos_token_id")
        ids = [*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id]
        return frozenset(int(token) for token in ids if token is not None) | self.renderer.turn_end_ids

    def _identify(self) -> str:
        commit = getattr(self._model_config.hf_config, "_commit_hash", None)
        revision = self._args.engine.get("revision")
        parts = [
            "vllm",
            checkpoint_fingerprint(self._args.pretrained, revision, commit),
            *([checkpoint_fingerprint(self._args.lora_path, None, None)] if self._args.lora_path else []),
            str(self._model_config.dtype),
            str(self._model_config.quantization or ""),
            self._args.text_settings(),
            ",".join(map(str, sorted(self._stops))),
        ]
        return "|".join(parts)


@contextmanager
def _one_sentence(waiting: dict[str, int], unfinished: int) -> Iterator[None]:
    """Say what it means that vLLM failed; what waited there can no longer be taken out, so it is forgotten."""
    try:
        yield
    except Exception as error:  # whatever a worker died of
        waiting.clear()
        raise EngineError(
            f"vLLM stopped working with {unfinished} texts of this layer unfinished "
            f"({str(error).strip() or type(error).__name__}): those that had ended are kept in the draft store if "
            "there is one (cache= or record=); start the same command again to go on."
        ) from error


def config_shape(config: Any) -> ModelShape | None:
    """The sizes that decide what a token costs, from a model without weights; None where transformers knows it not.

    The same definition as ``hf.model_shape``, by the same function. Quantised weights count as what they stand for.
    """
    from lm_eval_aft.engines.hf.engine import model_shape

    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except (ValueError, ImportError, OSError, AttributeError, KeyError) as error:
        log.warning("Operations are not counted, as transformers cannot lay this model out: %s", error)
        return None
    return model_shape(model)
