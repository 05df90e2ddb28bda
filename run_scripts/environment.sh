# Sourced by the other scripts: virtual environments with the tested versions and this package.

make_venv() { # make_venv FOLDER [EXTRA...]: create FOLDER with constraints.txt, activate it; quick when nothing changed
  local venv=$1 extras=${2:-wandb} python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; $("$python" --version) was found. Set PYTHON=/path/to/python3.11." >&2
    return 1
  }
  install_into "$venv" "$python" constraints.txt -e ".[$extras]" || return
  export PATH="$PWD/$venv/bin:$PATH" VIRTUAL_ENV="$PWD/$venv"
}

make_test_venv() { # the one that the checks and tests run in
  make_venv .venv wandb,workspace,tensorboard,report,slurm,flower,rouge,harness,sentiment,privacy,quantization,openfedllm,dev
}

make_pinned_venv() { # make_pinned_venv FOLDER: as docs/openfedllm.md says, by its own lines; 1 where no Python has it
  local venv=$1 python found= line lines
  for python in "${PYTHON:-python3}" python3.11 python3.10; do
    command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' &&
      { found=$python; break; }
  done
  [ -n "$found" ] || return 1
  mapfile -t lines < <(grep -E '^pip install (torch==|-c constraints-openfedllm-pinned)' docs/openfedllm.md)
  [ ${#lines[@]} -eq 2 ] || {
    echo "docs/openfedllm.md does not hold the two lines that install what OpenFedLLM pins." >&2
    return 2
  }
  [ -x "$venv/bin/python" ] || "$found" -m venv "$venv"
  if is_new "$venv" "${lines[*]} $(cat constraints-openfedllm-pinned.txt setup.py)"; then
    for line in "${lines[@]}" "pip install -c constraints-openfedllm-pinned.txt pytest pytest-xdist hypothesis"; do
      eval "$venv/bin/python -m pip install --quiet --disable-pip-version-check ${line#pip install }" || return 2
    done
    mark_installed "$venv"
  fi
}

install_into() { # install_into FOLDER PYTHON CONSTRAINTS REQUIREMENT...: skipped when the same was installed before
  local venv=$1 python=$2 constraints=$3
  local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints")
  shift 3
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  if is_new "$venv" "$* $(cat "$constraints" setup.py)"; then
    "${pip[@]}" torch numpy || return 2 # first, so that nothing else decides which build of torch comes
    "${pip[@]}" "$@" || return 2
    mark_installed "$venv"
  fi
}

is_new() { # is_new FOLDER WHAT: whether something else than WHAT was installed into FOLDER; says so
  stamp=$(cksum <<<"$2")
  [ "$(cat "$1/.installed" 2>/dev/null)" != "$stamp" ] && echo "Installing into $1 (the first time takes some minutes) ..."
}

mark_installed() { # mark_installed FOLDER: WHAT of is_new is there now
  echo "$stamp" >"$1/.installed"
}
