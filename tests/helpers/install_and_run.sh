#!/usr/bin/env bash
# Installs an sdist or a wheel into a clean environment, and runs the demo there: install_and_run.sh PYTHON FILE
set -euo pipefail
python=$1 file=$(realpath "$2") pins=$(realpath constraints.txt)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --constraint "$pins" "$file[report]"
cd "$folder"
env/bin/aft --version
env/bin/python -m lm_eval_aft.cli.demo
echo "installed and run: $(basename "$file")"
