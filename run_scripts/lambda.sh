#!/usr/bin/env bash
# BAMA's alpha and lambda, with both weightings.
# MODEL is the model (tiny; gemma2_2b, ... or a file), OUTPUT the folder (runs/MODEL, which the experiments share), flags go
# to `fedbias sweep`. A sweep that was cut off goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/experiment.sh
run_experiment lambda "$@"
