#!/usr/bin/env bash
#SBATCH --job-name=aft-shards
#SBATCH --array=1-4
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
# Each job of the array answers a part of the questions: sbatch slurm_shards.sh
# Two minutes before its time limit a job stops in order. Submit the array again to resume.
set -euo pipefail
# The number of shards stays the same if you submit a part of the array again.
shards=${SHARDS:-4} shard=$SLURM_ARRAY_TASK_ID out=${OUT:-out}
model_args=${MODEL_ARGS:-engine=vllm,pretrained=MODEL,k=5,layers=2}

# With exec the signal of Slurm reaches lm_eval itself.
exec lm_eval --model aft --model_args "$model_args,record=$out/shard$shard,shard=$shard/$shards" \
	--tasks "${TASKS:-gsm8k}" --apply_chat_template --batch_size auto ${MORE:-}
