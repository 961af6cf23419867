"""The vLLM engine: all requests of a layer at once, each completion yielded as it ends.

``LLM.generate`` returns when the last text of a layer has ended. This engine therefore adds its requests to the
``LLMEngine`` inside and steps that itself. Each generation is a request of its own, with its own seed. The prefix
cache shares the prompt among them as ``n=k`` would, and each text keeps its own end and counts. One code path serves
GPU builds (0.22 and newer) and the CPU build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.engine import HostArgs, Processes, Scorer, SingleProcess
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.loading import load_reason, loading
from lm_eval_aft.core.log import log
from lm_eval_aft.core.model_checks import damaged_logits, missing_weights
from lm_eval_aft.core.model_shape import model_shape
from lm_eval_aft.core.records import Completion, Confidence, Request
from lm_eval_aft.core.shards import shards
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.engines.ending import find_stop_ids, text_before_stop
from lm_eval_aft.engines.vllm.arguments import VLLMArgs, import_vllm
from lm_eval_aft.engines.vllm.prompt_lm import PromptLM, PromptScorer
from lm_eval_aft.engines.vllm.watchdog import watched
from lm_eval_aft.storage.fingerprint import checkpoint_fingerprint


class VLLMEngine:
    """Runs a model that ``vllm.LLM`` has loaded, on one machine's GPUs or on a CPU.

    Attributes:
        llm: The loaded ``vllm.LLM``.
        args: What it was loaded with.
        tokenizer: The model's tokenizer.
        stop_ids: Token ids that end a text.
    """

    # vLLM may evict cached blocks and never shares the last partial block, so a shared prompt can be computed more
    # than once.
    counts_shared_prefill = False
    seed_advice = ""
    commits_each = False
    device: Any = None
    processes: Processes = SingleProcess()

    def __init__(self, llm: Any, args: VLLMArgs) -> None:
        """Wrap a loaded ``vllm.LLM``.

        Args:
            llm: The engine.
            args: What it was loaded with.
        """
        self.llm, self.args = llm, args
        self._model_config = llm.llm_engine.model_config
        self._lora = args.lora_request()
        self.tokenizer = llm.get_tokenizer()
        self.renderer = TokenizerRenderer(
            self.tokenizer, add_bos_token=args.add_bos_token, template_args=args.template_args
        )
        self.max_length = int(self._model_config.max_model_len)
        self.shape = config_shape(self._model_config.hf_config)
        self._prompt_lm = PromptLM(
            llm,
            self.tokenizer,
            max_length=self.max_length,
            lora_request=self._lora,
            add_bos_token=args.add_bos_token,
            template_args=self.renderer.template_args,
        )
        self.scorer: Scorer = PromptScorer(self._prompt_lm, self.renderer)
        self.no_confidence = args.no_confidence
        self.stop_ids = self._find_stop_ids()
        self._calls = count()
        self._finishing = False
        self.fingerprint = self._fingerprint()
        self.info: Mapping[str, Any] = {
            "vllm": import_vllm().__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": args.device,
            "tensor_parallel_size": args.engine.get("tensor_parallel_size", 1),
        }

    @classmethod
    def load(cls, engine_args: Mapping[str, Any], host: HostArgs) -> VLLMEngine:
        """Check the arguments against vLLM's EngineArgs and the machine, then load.

        Raises:
            ConfigError: If an argument is unknown, missing, wrong, or belongs to another engine.
            EngineError: If vLLM is not installed, finds no device, or cannot load the checkpoint, or if the logits are
                not numbers.
        """
        vllm = import_vllm()
        args = VLLMArgs.of(engine_args, host)

        def refuse(error: Exception) -> EngineError:
            # vLLM's own process dies of missing weights, and its error says only that it died.
            if reason := missing_weights(missing_from_files(args.pretrained)):
                return EngineError(f"pretrained={args.pretrained} cannot be loaded: {reason}")
            reason = load_reason(error, args.pretrained)
            return EngineError(
                f"pretrained={args.pretrained} cannot be loaded by vLLM {vllm.__version__}: {reason} (vLLM's own lines "
                "above may say more)."
            )

        with loading(refuse):
            engine = cls(vllm.LLM(**args.for_llm()), args)
        # A model with such logits would write one token again and again.
        engine._prompt_lm.check_logits()
        return engine

    def use_chat_template(self, name: str | None) -> None:
        """See ``Engine.use_chat_template``. Another template may end its messages with another token."""
        self.renderer.use_template(name)
        self.stop_ids = self._find_stop_ids()
        self.fingerprint = self._fingerprint()

    def model_info(self) -> dict[str, Any]:
        """See ``Engine.model_info``."""
        return {}

    def finish(self) -> None:
        """See ``Engine.finish``."""
        self._finishing = True

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``. If the caller stops early, the requests that still run are aborted."""
        engine, call = self.llm.llm_engine, next(self._calls)
        self._finishing = False
        running: dict[str, int] = {}
        try:
            with watched(engine):
                for position, request in enumerate(requests):
                    name = f"aft-{call}-{position}"
                    # "type" marks a prompt that needs no rendering. vLLM's renderer would warn at any other.
                    prompt = {"type": "token", "prompt_token_ids": list(request.prompt.token_ids or ())}
                    with _one_sentence({}, len(requests)):
                        engine.add_request(name, prompt, self.sampling_params(request), lora_request=self._lora)
                    running[name] = position
                while running and not self._finishing:
                    with _one_sentence(running, len(running)):
                        outputs = engine.step()
                    for output in outputs:
                        if output.finished and output.request_id in running:
                            position = running.pop(output.request_id)
                            yield position, self.completion(requests[position], output)
        finally:
            if running:
                engine.abort_request(list(running))

    def sampling_params(self, request: Request) -> Any:
        """The request's sampling as vLLM takes it."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        # A greedy row needs no random generator, and is slower with one.
        seeded = sampling.seeded and sampling.temperature > 0
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=request.seed if seeded else None,
            stop=list(sampling.until) or None,
            **sampling.extras,
            stop_token_ids=sorted(self.stop_ids),
            # A stop string may be a special token.
            skip_special_tokens=False,
            # vLLM needs the text to find stop strings. This engine decodes the final text as engine=hf does.
            detokenize=bool(sampling.until),
            # 0 is the log-probability of the generated token and of no other.
            logprobs=0 if request.confidence else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def completion(self, request: Request, output: Any) -> Completion:
        """The completion in vLLM's output for a finished request.

        Raises:
            EngineError: If vLLM ended the text for another reason than stop or length.
        """
        generated = output.outputs[0]
        if generated.finish_reason not in ("stop", "length"):
            raise EngineError(
                f"vLLM ended a text with {generated.finish_reason!r}, which is neither stop nor length: "
                "see vLLM's messages above, and start the same command again."
            )
        token_ids = tuple(int(token) for token in generated.token_ids)
        shown = self.renderer.thought_ids
        text, _ = text_before_stop(self.tokenizer, token_ids, self.stop_ids, request.sampling.until, shown)
        prompt_tokens = len(output.prompt_token_ids)
        return Completion(
            text=text,
            token_ids=token_ids,
            finish_reason=generated.finish_reason,
            prompt_tokens=prompt_tokens,
            computed_prompt_tokens=prompt_tokens - (output.num_cached_tokens or 0),
            generated_tokens=len(token_ids),
            confidence=self._confidence(token_ids, generated.logprobs),
        )

    def _confidence(self, token_ids: Sequence[int], rows: Any) -> Confidence | None:
        """The confidence in vLLM's rows of log-probabilities, one a token; None if there are none.

        Raises:
            EngineError: If one is NaN.
        """
        if rows is None:
            return None
        try:
            return Confidence.of([row[token].logprob for row, token in zip(rows, token_ids, strict=True)])
        except ValueError as error:
            raise EngineError(damaged_logits(self._model_config.dtype)) from error

    def _find_stop_ids(self) -> frozenset[int]:
        configured = self._model_config.try_get_generation_config().get("eos_token_id")
        return find_stop_ids(configured, self.renderer)

    def _fingerprint(self) -> str:
        """See ``Engine.fingerprint``. Store keys depend on the order and the form of these parts."""
        commit = getattr(self._model_config.hf_config, "_commit_hash", None)
        revision = self.args.engine.get("revision")
        parts = [
            "vllm",
            checkpoint_fingerprint(self.args.pretrained, revision, commit),
            *([checkpoint_fingerprint(self.args.lora_path, None, None)] if self.args.lora_path else []),
            str(self._model_config.dtype),
            str(self._model_config.quantization or ""),
            self.args.text_settings(),
            ",".join(map(str, sorted(self.stop_ids))),
            *(["thoughts shown"] if self.renderer.thought_ids else []),
        ]
        return "|".join(parts)


@contextmanager
def _one_sentence(running: dict[str, int], unfinished: int) -> Iterator[None]:
    """Turn any failure of vLLM into an EngineError, and clear ``running``: a dead engine cannot abort requests."""
    try:
        yield
    except Exception as error:
        running.clear()
        raise EngineError(
            f"vLLM stopped working with {unfinished} texts of this layer unfinished "
            f"({str(error).strip() or type(error).__name__}): those that had ended are kept in the draft store if "
            "there is one (cache= or record=); start the same command again to resume."
        ) from error


def config_shape(config: Any) -> ModelShape | None:
    """The sizes that decide the cost of a token, from a transformers config. None if transformers cannot build it.

    The model is built without weights, so quantised weights count as the weights that they stand for.
    """
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except (ValueError, ImportError, OSError, AttributeError, KeyError) as error:
        log.warning("FLOPs are not counted, since transformers cannot build this model: %s", error)
        return None
    return model_shape(model)


def missing_from_files(name: str) -> list[str]:
    """The weights that a folder's safetensors files lack. Empty if they cannot be compared with the model's names.

    Args:
        name: The folder. The name of a hub repository has no files here.
    """
    folder = Path(name)
    files = sorted({*folder.glob("*.safetensors"), *(path for path in shards(folder) if path.suffix == ".safetensors")})
    if not files:
        return []
    try:
        found: set[str] = set()
        for file in files:
            with safe_open(file, "pt") as weights:
                found.update(weights.keys())
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(name))
    except Exception:
        # Something else is wrong with the checkpoint, and the loader says what.
        return []
    owners: dict[int, set[str]] = {}
    for weight_name, weight in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(weight), set()).add(weight_name)
    # Names that the model does not have mean that a loader renames them.
    if found - set().union(*owners.values()):
        return []
    # Tied weights are in the files once.
    return [min(names) for names in owners.values() if not names & found]
