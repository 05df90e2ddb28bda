#!/usr/bin/env bash
# Every attack against every way to aggregate, on the bundled small world (1 attacker that holds biased rows, 2 clean
# clients), for the seeds given: run_scripts/attacks.sh FOLDER [SEED...]. A run that was cut off is resumed, one that is
# finished is left alone. `fedbias compare FOLDER/SEED-ATTACK-*` then shows an attack's row of docs/attacks.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?give a folder for the runs}
shift
source run_scripts/environment.sh
make_venv .venv
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
for seed in "${@:-2023}"; do
  for attack in none sign_flip model_replacement gaussian_noise probe_gaming; do
    for rule in host bama median trimmed_mean krum multi_krum norm_clip; do
      run="$out/$seed-$attack-$rule"
      if [ -f "$run/checkpoints/start/SHA256SUMS" ] || [ -f "$run/summary.json" ]; then
        fedbias run --resume "$run"
      else
        fedbias run --config configs/quickstart.yaml --seed "$seed" --attack "$attack" --aggregation "$rule" \
          --output_dir "$run"
      fi
    done
  done
done
