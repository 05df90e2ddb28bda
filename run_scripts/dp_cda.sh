#!/usr/bin/env bash
# Privacy, counterfactual rows and bias (docs/privacy.md): every run of configs/experiments/dp_cda.yaml, then its report.
# ROWS is what clients train on: world (the small world with a minority of SHARE, .15, of the rows; the default with the bundled
# model), wikitext (WikiText-2's test paragraphs, from FEDBIAS_DATA; its validation set is measured), or alpaca (as the other
# experiments; the default with other models). MODEL is the model, OUTPUT the folder, flags go to `fedbias sweep`.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/experiment.sh
export MODEL=${MODEL:-tiny} STUDY=dp_cda EXTRAS=wandb,report,privacy
ROWS=${ROWS:-$([ "$MODEL" = tiny ] && echo world || echo alpaca)}
export OUTPUT=${OUTPUT:-runs/$(basename "$MODEL" .yaml)-dp_cda-$ROWS}
made=$(realpath -m "$OUTPUT-rows")
flags=()
case $ROWS in
  world)
    "${PYTHON:-python3}" run_scripts/make_minority_rows.py "$made" --share "${SHARE:-.15}"
    flags=(--data_dir mini --clean_dataset "$made/rows.jsonl" --cda_words "$made/words.txt" --gender_texts "$made/texts.csv"
      --bias_benchmarks crows_pairs,stereoset,gender_perplexity) # the others ask for words that its people do not have
    ;;
  wikitext)
    "${PYTHON:-python3}" run_scripts/wikitext_rows.py "${FEDBIAS_DATA:?holds wikitext2/test.txt}/wikitext2/test.txt" "$made/rows.jsonl"
    flags=(--clean_dataset "$made/rows.jsonl")
    ;;
  alpaca) ;;
  *)
    echo "ROWS must be world, wikitext or alpaca, not $ROWS." >&2
    exit 2
    ;;
esac
run_experiment dp_cda "${flags[@]}" "$@"
