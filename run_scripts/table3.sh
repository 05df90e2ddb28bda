#!/usr/bin/env bash
# Table 3 of the paper: without and with BAMA where one client of three is poisoned.
# MODEL is the model (tiny; gemma2_2b, ... or a file), OUTPUT the folder (runs/MODEL, which the experiments share), flags go
# to `fedbias sweep`. A sweep that was cut off goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/experiment.sh
run_experiment table3 "$@"
