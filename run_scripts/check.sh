#!/usr/bin/env bash
# Static checks alone: format, lint, types.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
mypy
