#!/usr/bin/env bash
# Sets up .venv and runs every check: formatting, lint, types, unit tests, whole runs. FEDBIAS_DATA, when set, adds the
# tests on the real data sets.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/environment.sh
make_venv .venv wandb,quantization,dev
run_scripts/check.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -m pytest "$@"
