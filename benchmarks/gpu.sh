#!/usr/bin/env bash
# The table of one GPU, in at most 15 minutes: training and scoring of 1B and 8B in bfloat16, 8 and 4 bit.
# Flags go to gpu.py, as in: benchmarks/gpu.sh --sizes 1B --json gpu.json
set -euo pipefail
exec python "$(dirname "$0")/gpu.py" "$@"
