#!/usr/bin/env bash
#SBATCH --job-name=aft-join
#SBATCH --gpus-per-node=1
#SBATCH --time=01:00:00
# Join the shards and score them: sbatch --dependency=afterok:ARRAY_JOB slurm_join.sh
set -euo pipefail
out=${OUT:-out}
model_args=${MODEL_ARGS:-engine=vllm,pretrained=MODEL,k=5,layers=2}

aft merge "$out"/shard*/drafts.sqlite --output "$out/all.sqlite"
exec lm_eval --model aft --model_args "$model_args,record=$out/joined/traces,cache=$out/all.sqlite" \
	--tasks "${TASKS:-gsm8k}" --apply_chat_template --batch_size auto --output_path "$out/joined" --log_samples ${MORE:-}
