#!/usr/bin/env bash
# Builds the documentation as a site, where a broken link or an unknown name is an error. Without an argument into a folder
# that is deleted afterwards: run_scripts/check_docs.sh [FOLDER]. Needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! python -c 'import material, mkdocstrings_handlers.python' 2>/dev/null; then
  python -c 'import sys; sys.exit(sys.version_info < (3, 11))' && {
    echo "mkdocs-material or mkdocstrings is missing: pip install -c constraints.txt -e '.[dev]'" >&2
    exit 1
  }
  echo "SKIPPED: the documentation is built with Python 3.11 and newer." >&2
  exit
fi
site=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -rf "$site"' EXIT
NO_MKDOCS_2_WARNING=1 PYTHONDONTWRITEBYTECODE=1 \
  python -m mkdocs build --strict --quiet --site-dir "$site"
