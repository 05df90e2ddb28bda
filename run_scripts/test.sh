#!/usr/bin/env bash
# Sets up .venv and runs every check: formatting, lint, types, unit tests, whole runs. Beside them, in one more process
# and shown at the end, the tests of OpenFedLLM once more with the old libraries that OpenFedLLM itself pins, in
# .venv-openfedllm-pinned. FEDBIAS_DATA, when set, adds the tests on the real data sets; OPENFEDLLM_HOME, a checkout of
# OpenFedLLM, those on the real host; TEST_PROCESSES is how many run at once (2). --quick is the checks and the units
# alone, without whole runs. Other arguments go to pytest (and then OpenFedLLM's libraries are left out).
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
pinned_part() { # it installs while the checks run, and then takes the time in which the other tests wait for processes
  local venv=.venv-openfedllm-pinned made=0
  make_pinned_venv $venv || made=$?
  case $made in
  0) $venv/bin/python -m pytest tests/hosts/openfedllm ;;
  1) echo "SKIPPED: the libraries OpenFedLLM pins need Python 3.10 or 3.11, and none was found." >&2 ;;
  *) return "$made" ;;
  esac
}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
make_test_venv
python -m compileall -q fedbias_plugin # under PYTHONDONTWRITEBYTECODE each of some hundred processes would do it again
if [ $# = 0 ]; then
  log=$(mktemp)
  set -m # a group of its own, to be ended as a whole
  pinned_part >"$log" 2>&1 </dev/null &
  pinned=$!
  set +m
  trap 'kill -- "-$pinned" 2>/dev/null || true; echo "With the libraries that OpenFedLLM pins:"; cat "$log"; rm "$log"' EXIT
fi
run_scripts/check.sh
in_processes=(-n "${TEST_PROCESSES:-2}" --dist loadfile) # each loads the libraries and takes about 2 GiB
python -m pytest "${in_processes[@]}" --no-loadscope-reorder "$@" # or long files of few tests would come last
[ $# -gt 0 ] || wait "$pinned"
