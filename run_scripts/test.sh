#!/usr/bin/env bash
# Sets up .venv and runs every check: formatting, lint, types, unit tests, whole runs. Then the tests of OpenFedLLM once
# more with the old libraries that OpenFedLLM itself pins, in .venv-openfedllm-pinned. FEDBIAS_DATA, when set, adds the
# tests on the real data sets; OPENFEDLLM_HOME, a checkout of OpenFedLLM, those on the real host; TEST_PROCESSES is how
# many run at once (2). --quick is the checks and the units alone, without whole runs. Other arguments go to pytest (and
# then only the first part runs).
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/environment.sh
whole_runs=(tests/hosts tests/contract tests/sweep tests/cli tests/hostile_data tests/study tests/test_by_hand.py
  tests/test_examples.py tests/test_front_door.py tests/slurm)
if [ "${1:-}" = --quick ]; then
  shift
  set -- "${whole_runs[@]/#/--ignore=}" "$@"
  echo "The checks and the units: about 2 minutes on 2 cores, after set-up."
elif [ $# = 0 ]; then
  echo "All checks and tests: about 20 minutes on 2 cores, after set-up (--quick: 2)."
fi
make_venv .venv wandb,workspace,tensorboard,report,slurm,flower,rouge,sentiment,privacy,quantization,openfedllm,dev
run_scripts/check.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
in_processes=(-n "${TEST_PROCESSES:-2}" --dist loadfile) # each loads the libraries and takes about 2 GiB
python -m pytest "${in_processes[@]}" --no-loadscope-reorder "$@" # or long files of few tests would come last
if [ $# -gt 0 ]; then exit; fi
pinned=0
make_pinned_venv .venv-openfedllm-pinned || pinned=$?
case $pinned in
0) .venv-openfedllm-pinned/bin/python -m pytest "${in_processes[@]}" tests/hosts/openfedllm ;;
1) echo "SKIPPED: the libraries OpenFedLLM pins need Python 3.10 or 3.11, and none was found." >&2 ;;
*) exit "$pinned" ;;
esac
