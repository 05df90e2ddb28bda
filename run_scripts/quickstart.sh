#!/usr/bin/env bash
# Sets up .venv and runs the main job on the bundled small world, once with plain FedAvg and once with FedAvg + BAMA, then
# shows both bias curves side by side: `fedbias quickstart [FOLDER]`. No GPU, no network beyond the package index.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/environment.sh
make_venv .venv
fedbias quickstart "$@"
echo "For the command itself: source .venv/bin/activate"
