#!/usr/bin/env bash
# Every rule against every cell (docs/predictive.md): nobody attacks, a large poisoned client, an honest minority, attacks, one by an attacker
# who knows the seed, ten clients; then their report and every rule's worst regret. OUTPUT is the folder, flags go to `fedbias sweep`, such as
# --jobs 4. More than 1,000 runs: many hours.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/experiment.sh
export OUTPUT=${OUTPUT:-runs/defence} STUDY=defence
made=$(realpath -m "$OUTPUT-rows")
"${PYTHON:-python3}" run_scripts/make_uneven_rows.py "$made"
run_experiment defence --data_dir mini "$@"
run_experiment defence_sizes --data_dir mini --clean_dataset "$made/sizes.jsonl" "$@"
run_experiment defence_dialects --data_dir mini --clean_dataset "$made/dialects.jsonl" "$@"
run_experiment defence_attacks --data_dir mini "$@"
run_experiment defence_insider --data_dir mini "$@"
run_experiment defence_clients --data_dir mini "$@"
python run_scripts/worst_regret.py "$OUTPUT"
