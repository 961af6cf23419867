"""How fast do we train, compared with TRL's SFTTrainer?

All sides start from the same weights and adapter, and train with the same token ids and loss masks. Ours and ``trl``
take the same batches in the same order, and both average over the target tokens of a step. Their losses are equal up to
rounding. ``ours packed`` joins the examples of each batch to one sequence, so its loss is that of ``ours``.
``trl packed`` joins examples to sequences of about as many tokens as a batch has, so its steps and its loss differ.
Each run is a process of its own, and the sides take turns.

The figures are wall time and processor time of the training steps, tokens a second, and the peak memory: of the GPU if
there is one, otherwise of the process.

Usage: pip install "lm_eval_aft[bench]"
       python benchmarks/train.py --model MODEL --data ROWS.jsonl [--systems ours "ours packed" trl "trl packed"]
           --out benchmarks/results
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

from common import add_turns, parser, write

SYSTEMS = ("ours", "ours packed", "trl", "trl packed")


def main() -> None:
    """Start the runs in turns and write their figures, or, with ``--system``, be one of them."""
    args = _arguments()
    if args.system:
        print("RESULT " + json.dumps(_run(args)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.systems}
    for _ in range(args.turns):
        for name in args.systems:
            command = [sys.executable, *sys.argv, "--system", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
            if line is None:
                sys.exit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
            runs[name].append(json.loads(line.removeprefix("RESULT ")))
    write("train", {"settings": _settings(args), "runs": runs, "median": _medians(runs)}, args.out)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--model", required=True, help="Folder of the checkpoint.")
    options.add_argument("--data", required=True, help="JSON lines file with training rows.")
    options.add_argument("--k", type=int, default=3, help="Drafts in each prompt (default 3).")
    options.add_argument("--steps", type=int, default=5, help="Training steps (default 5).")
    options.add_argument("--batch", type=int, default=2, help="Examples of a step (default 2).")
    add_turns(options)
    options.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=("ours", "trl"), help="Sides (default ours trl)."
    )
    options.add_argument("--bf16", action="store_true", help="Train in bfloat16 instead of float32.")
    options.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    return options.parse_args()


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    settings = {name: value for name, value in vars(args).items() if name not in ("system", "out")}
    return {**settings, "model": Path(args.model).name, "data": Path(args.data).name, "lora_rank": 8}


def _medians(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        system: {key: round(statistics.median(run[key] for run in turns), 3) for key in turns[0]}
        for system, turns in runs.items()
    }


def _run(args: argparse.Namespace) -> dict[str, float]:
    """Train once in this process. Returns the figures."""
    import torch

    from lm_eval_aft.core.prompts import Template
    from trainers.fitting.examples import Encoder
    from trainers.fitting.model import load_tokenizer
    from trainers.rows.row import read_training_rows
    from trainers.rows.samples import make_samples
    from trainers.settings import TrainConfig

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(model=args.model, data=args.data, output=f"{folder}/run", k=(args.k,), plain_share=0.0)
        config = replace(config, batch_size=args.batch, max_steps=args.steps, bf16=args.bf16, log_every=1000)
        encoder = Encoder(load_tokenizer(config), Template.load(None), config.max_length)
        samples = make_samples(read_training_rows(config.data), "aft", config)
        # Each example is used exactly once.
        examples = encoder.encode_all(samples).examples[: args.steps * args.batch]
        if args.system.startswith("ours"):
            trainer = _ours(replace(config, packing=args.system == "ours packed"), encoder, examples)
        else:
            trainer = _trl(config, encoder, in_our_order(examples, config), packed=args.system == "trl packed")
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


def in_our_order(examples: Any, config: Any) -> list[Any]:
    """The examples in the order in which our trainer takes them."""
    from trainers.fitting.batching import LengthGroupedSampler

    lengths = [len(example.token_ids) for example in examples]
    return [examples[i] for i in LengthGroupedSampler(lengths, config.batch_size, config.seed)]


def _ours(config: Any, encoder: Any, examples: Any) -> Any:
    from trainers.fitting import loop
    from trainers.fitting.batching import Collator, PackingCollator, trims_logits
    from trainers.fitting.callbacks import RunLog
    from trainers.fitting.model import load_model
    from trainers.fitting.run import TrainingRun
    from trainers.train import checkpoint_config

    model = load_model(config)
    run = TrainingRun("aft", config, "", encoder.template, processes=1)
    arguments = loop.arguments(config, validated=False)
    arguments.save_strategy = "no"
    trims = trims_logits(model.get_base_model())
    padded = Collator(encoder.end_id, trims)
    collator = PackingCollator(trims) if config.packing else padded
    log = RunLog(run, checkpoint_config(run, config.k), [], print)
    return loop.AFTTrainer(log, padded, model=model, args=arguments, train_dataset=examples, data_collator=collator)


def _trl(config: Any, encoder: Any, examples: list[Any], packed: bool) -> Any:
    """TRL's trainer of the same model; packed, with about a batch of examples in each sequence."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from trainers.fitting.model import load_model

    rows = {
        "input_ids": [list(example.token_ids) for example in examples],
        "completion_mask": [[int(label >= 0) for label in example.labels] for example in examples],
    }
    lengths = [len(example.token_ids) for example in examples]
    room = max(*lengths, config.batch_size * sum(lengths) // len(lengths))
    size = (
        {"packing": True, "max_length": room, "per_device_train_batch_size": 1, "num_train_epochs": 1}
        if packed
        else {
            "max_length": config.max_length,
            "per_device_train_batch_size": config.batch_size,
            "max_steps": config.max_steps,
        }
    )
    arguments = SFTConfig(
        **size,
        output_dir=config.output,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        # Trainer makes a warm-up of less than a step a whole step at a rate of 0. Ours leaves it out.
        warmup_steps=config.warmup if config.warmup * config.max_steps >= 1 else 0,
        weight_decay=config.weight_decay,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_steps=1000,
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )
    return SFTTrainer(
        model=load_model(config),
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=encoder.renderer.tokenizer,
    )


if __name__ == "__main__":
    main()
