#!/usr/bin/env bash
# Static checks alone: format, lint, types, documentation; then known vulnerabilities of the installed packages, where they can be asked
# for (they fail only with AUDIT=1).
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
mypy
lint-imports --no-cache
run_scripts/check_docs.sh
python run_scripts/audit.py
