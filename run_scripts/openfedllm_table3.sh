#!/usr/bin/env bash
# Table 3 of the paper as plain OpenFedLLM commands, for a checkout that `fedbias patch` has been through:
#   OPENFEDLLM_HOME=~/OpenFedLLM run_scripts/openfedllm_table3.sh OUTPUT [FLAG...]
# MODEL is a hub name or a folder; SEEDS and ALGORITHMS narrow the table; flags go to main_sft.py. To be run in the environment of
# OpenFedLLM. A run that is finished is left alone, one that was cut off goes on.
set -euo pipefail
output=$(realpath -m "${1:?give a folder for the runs}")
shift
cd "${OPENFEDLLM_HOME:?give the checkout of OpenFedLLM}"
model=${MODEL:-meta-llama/Meta-Llama-3-8B}
common=(--model_name_or_path "$model" --use_peft --template alpaca --num_clients 3 --sample_clients 3 --num_rounds 5
  --local_epochs 2 --prox_mu 0.1 --scenario 1B2C --learning_rate 5e-5 --batch_size 16 --seq_length 512
  --peft_lora_r 32 --peft_lora_alpha 64 --checkpoint_every 1)
if [ "$(python -c 'import torch; print(torch.cuda.is_available())')" = True ]; then common+=(--load_in_8bit); fi

one() { # one NAME FLAG...: begin, go on with, or leave alone; OpenFedLLM gives the run's folder a name of its own
  local folder=$output/$1 run
  shift
  run=$(find "$folder" -mindepth 2 -maxdepth 2 -name run.json -printf '%h\n' -quit 2>/dev/null || true)
  if [ -z "$run" ]; then
    python main_sft.py "${common[@]}" "$@" --output_dir "$folder"
  elif [ ! -f "$run/summary.json" ]; then
    python main_sft.py "${common[@]}" "$@" --output_dir "$folder" --resume_from "$run"
  fi
}

for seed in ${SEEDS:-2023 2024 2025}; do
  for algorithm in ${ALGORITHMS:-fedavg fedadam fedprox}; do
    one "${algorithm}_host_seed-$seed" --fed_alg "$algorithm" --seed "$seed" "$@"
    for weighting in normalized paper; do
      one "${algorithm}_bama-${weighting}_seed-$seed" --fed_alg "$algorithm" --seed "$seed" --aggregation bama \
        --bama_weighting "$weighting" "$@"
    done
  done
done
python -m fedbias_plugin report "$output"/*_seed-* --output "$output/report"
