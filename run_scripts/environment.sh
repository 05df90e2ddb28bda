# Sourced by the other scripts: a virtual environment with the tested versions (constraints.txt) and this package.

make_venv() { # make_venv FOLDER [EXTRA...]: create FOLDER, install, activate; quick when nothing changed
  local venv=$1 extras=${2:-wandb} python=${PYTHON:-python3} stamp
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; $("$python" --version) was found. Set PYTHON=/path/to/python3.11." >&2
    return 1
  }
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  stamp="$extras $(cat constraints.txt setup.py | cksum)"
  if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$stamp" ]; then
    echo "Installing into $venv (the first time takes some minutes) ..."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
    echo "$stamp" >"$venv/.installed"
  fi
  export PATH="$PWD/$venv/bin:$PATH" VIRTUAL_ENV="$PWD/$venv"
}
