#!/usr/bin/env bash
# Sets up .venv and runs the main job on the bundled small world: scenario 1B2C (one client of three holds biased
# rows) with plain FedAvg and with FedAvg + BAMA, then shows both bias curves side by side. No GPU, no network beyond
# the package index.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/quickstart}
if [ -e "$out" ]; then
  echo "$out is there already; remove it or give another folder: run_scripts/quickstart.sh FOLDER" >&2
  exit 2
fi
source run_scripts/environment.sh
make_venv .venv
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a model this small gains nothing from a second thread
fedbias run --config configs/quickstart.yaml --aggregation host --output_dir "$out/fedavg"
fedbias run --config configs/quickstart.yaml --aggregation bama --output_dir "$out/fedavg_bama"
fedbias compare "$out/fedavg" "$out/fedavg_bama"
echo "Files: $out/fedavg and $out/fedavg_bama (metrics.jsonl, summary.json, manifest.json, adapter/, ...: see README.md). For the command itself: source .venv/bin/activate"
