# Sourced by table1.sh and its like: every run of an experiment, then the report over all runs of the model. STUDY is the study file
# where it is not the paper's, EXTRAS are those of the package that the runs need.

run_experiment() { # run_experiment NAME [FLAG...]: flags go to `fedbias sweep`, such as --jobs 4 or --client_samples 60
  local name=$1 model=${MODEL:-tiny} output
  shift
  output=${OUTPUT:-runs/$(basename "$model" .yaml)}
  source run_scripts/environment.sh
  make_venv .venv "${EXTRAS:-wandb,report}"
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the bundled model gains nothing from a second thread
  local code=0
  fedbias sweep "$name" --model "$model" --output "$output" "$@" || code=$?
  [ $code -le 1 ] || return $code # 1: some run failed, and the report is of the others
  fedbias report "$output" ${STUDY:+--study "$STUDY"}
  return $code
}
