"""Training beside TRL's SFTTrainer: the same examples, LoRA, batch and steps, each run in its own process, in turn.

    pip install "lm_eval_aft[bench]"
    python benchmarks/train.py --model MODEL --data ROWS.jsonl --out benchmarks/results

Both get the same token ids and loss masks. Figures: seconds and processor seconds of the training steps alone, tokens a
second, and the largest memory (of the GPU where there is one, else of the process).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import write

SYSTEMS = ("ours", "trl")


def main() -> None:
    """Start the runs in turn and write their figures."""
    options = _options()
    if options.system:
        print("RESULT " + json.dumps(_run(options)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for _ in range(options.turns):
        for name in SYSTEMS:
            command = [sys.executable, *sys.argv, "--system", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
            if line is None:
                sys.exit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
            runs[name].append(json.loads(line.removeprefix("RESULT ")))
    write("train", {"settings": _settings(options), "runs": runs, "median": _medians(runs)}, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    shown = {name: value for name, value in vars(options).items() if name not in ("system", "out")}
    return {**shown, "model": Path(options.model).name, "data": Path(options.data).name, "lora_rank": 8}


def _medians(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        system: {key: round(statistics.median(run[key] for run in done), 3) for key in done[0]}
        for system, done in runs.items()
    }


def _run(options: argparse.Namespace) -> dict[str, float]:
    """One training run in this process."""
    import torch

    from lm_eval_aft.core.prompts import Template
    from trainers.fitting.examples import Encoder
    from trainers.fitting.model import load_tokenizer
    from trainers.rows.row import load_rows
    from trainers.rows.samples import make_samples
    from trainers.settings import TrainConfig

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model=options.model, data=options.data, output=f"{folder}/run", k=(options.k,), plain_share=0.0
        )
        config = replace(config, batch_size=options.batch, max_steps=options.steps, bf16=options.bf16, log_every=1000)
        encoder = Encoder(load_tokenizer(config), Template.load(None), config.max_length)
        samples = make_samples(load_rows(config.data), "aft", config)
        # the same examples for both, whatever the order in which a trainer takes them: all of them, once
        examples = encoder.encode_all(samples).examples[: options.steps * options.batch]
        trainer = (_ours if options.system == "ours" else _trl)(config, encoder, examples)
        started, processor = time.monotonic(), time.process_time()
        trainer.train()
        elapsed_s, processor_s = time.monotonic() - started, time.process_time() - processor
    tokens = sum(len(example.token_ids) for example in examples)
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "elapsed_s": elapsed_s,
        "processor_s": processor_s,
        "tokens": tokens,
        "tokens_per_s": tokens / elapsed_s,
        "tokens_per_processor_s": tokens / processor_s,
        "peak_gib": peak / 2**30,
        "loss": trainer.state.log_history[-1]["train_loss"],
    }


def _ours(config: Any, encoder: Any, examples: Any) -> Any:
    from trainers.fitting import loop
    from trainers.fitting.batching import Collator, trims_logits
    from trainers.fitting.callbacks import RunLog
    from trainers.fitting.model import load_model
    from trainers.fitting.run import TrainingRun
    from trainers.train import checkpoint_config

    model = load_model(config)
    run = TrainingRun("aft", config, "", encoder.template, processes=1)
    arguments = loop.arguments(config, validated=False)
    arguments.save_strategy = "no"
    collator = Collator(encoder.end_id, trims_logits(model.get_base_model()))
    log = RunLog(run, checkpoint_config(run, config.k), [], print)
    return loop.AFTTrainer(log, model=model, args=arguments, train_dataset=examples, data_collator=collator)


def _trl(config: Any, encoder: Any, examples: Any) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    rows = {
        "input_ids": [list(example.token_ids) for example in examples],
        "completion_mask": [[int(label >= 0) for label in example.labels] for example in examples],
    }
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype)
    arguments = SFTConfig(
        output_dir=config.output,
        per_device_train_batch_size=config.batch_size,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        max_length=config.max_length,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_steps=1000,
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )
    adapter = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=encoder.renderer.tokenizer,
        peft_config=adapter,
    )


if __name__ == "__main__":
    main()
