# Sourced by the other scripts: virtual environments with the tested versions and this package.

make_venv() { # make_venv FOLDER [EXTRA...]: create FOLDER with constraints.txt, activate it; quick when nothing changed
  local venv=$1 extras=${2:-wandb} python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; $("$python" --version) was found. Set PYTHON=/path/to/python3.11." >&2
    return 1
  }
  install_into "$venv" "$python" constraints.txt -e ".[$extras]"
  export PATH="$PWD/$venv/bin:$PATH" VIRTUAL_ENV="$PWD/$venv"
}

make_pinned_venv() { # make_pinned_venv FOLDER: the libraries OpenFedLLM pins; 1 where no Python has them
  local venv=$1 python found=
  for python in "${PYTHON:-python3}" python3.11 python3.10; do
    command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' &&
      { found=$python; break; }
  done
  [ -n "$found" ] || return 1
  install_into "$venv" "$found" constraints-openfedllm-pinned.txt bitsandbytes scipy pytest pytest-xdist hypothesis -e ".[openfedllm]"
}

install_into() { # install_into FOLDER PYTHON CONSTRAINTS REQUIREMENT...: skipped when the same was installed before
  local venv=$1 python=$2 constraints=$3 stamp
  local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints")
  shift 3
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  stamp="$* $(cat "$constraints" setup.py | cksum)"
  if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$stamp" ]; then
    echo "Installing into $venv (the first time takes some minutes) ..."
    "${pip[@]}" torch numpy # first, so that nothing else decides which build of torch comes
    "${pip[@]}" "$@"
    echo "$stamp" >"$venv/.installed"
  fi
}
