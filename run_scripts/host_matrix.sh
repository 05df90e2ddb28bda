#!/usr/bin/env bash
# What works in your OpenFedLLM checkouts: patches a copy of each, runs it with the bundled model on both sets of libraries,
# kills a run, resumes it, unpatches, and prints a table. CHECKOUT@COMMIT takes a commit of its history.
#   run_scripts/host_matrix.sh ~/OpenFedLLM ~/OpenFedLLM@9ee5d04 ~/FedLLM-Bench
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/environment.sh
[ $# -gt 0 ] || {
  sed -n '2,4s/^# *//p' "$0" >&2
  exit 2
}
make_venv .venv wandb,workspace,tensorboard,report,slurm,rouge,quantization,openfedllm,dev # as test.sh
stacks=(current=.venv/bin/python)
pinned=0
make_pinned_venv .venv-openfedllm-pinned || pinned=$?
if [ "$pinned" = 0 ]; then stacks+=(pinned=.venv-openfedllm-pinned/bin/python); fi
python run_scripts/host_matrix.py "${stacks[@]}" -- "$@"
