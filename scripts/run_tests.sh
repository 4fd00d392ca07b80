#!/usr/bin/env bash
# What `make test` runs, on two cores: whole runs, the page and the simulated GPU in front, unit tests behind them.
# Every program has one thread: two of them on each core would wait for one another most of the time.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
python=.venv/bin/python
mkdir -p build
log=build/unit-tests.log

"$python" -m pytest -m "not slow and not gpu" tests/unit > "$log" 2>&1 &
"$python" -m pytest -m "not slow and not gpu" --ignore=tests/unit --ignore=tests/gpu
front=$?
"$python" -m pytest -p tests.support.simulated_gpu.plugin -m "gpu and not slow" tests/gpu
gpu=$?
wait $!
units=$?
cat "$log"
[ "$front" = 0 ] && [ "$gpu" = 0 ] && [ "$units" = 0 ]
