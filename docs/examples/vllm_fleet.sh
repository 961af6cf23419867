#!/usr/bin/env bash
# Serve one model from two machines with four GPUs each, behind the address of the first machine.
# On the first machine:  bash vllm_fleet.sh first MODEL FIRST_IP
# On the second machine: bash vllm_fleet.sh second MODEL FIRST_IP
set -euo pipefail
role=$1 model=$2 first_ip=$3

# Four replicas of two GPUs each, two replicas a machine.
fleet=(
	--tensor-parallel-size 2 --data-parallel-size 4 --data-parallel-size-local 2
	--data-parallel-address "$first_ip" --data-parallel-rpc-port 13345
)
case $role in
first) exec vllm serve "$model" "${fleet[@]}" --enable-prompt-tokens-details --port 8000 ;;
second) exec vllm serve "$model" "${fleet[@]}" --headless --data-parallel-start-rank 2 ;;
*) echo "vllm_fleet.sh: give first or second, not $role" >&2 && exit 2 ;;
esac
