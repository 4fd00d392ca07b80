#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go: the GPU tests, then a quick run on the bundled model or on
# the model in $UPQ_MODEL. Figures go to $OUT (default: build/gpu). PYTHON: the interpreter (default: .venv's).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-build/gpu}
mkdir -p "$out"
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch sees no NVIDIA GPU here; gpu-check needs one." >&2
    exit 1
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"
"$python" -m pytest -q -m gpu | tee "$out/tests.txt"
"$python" -m bench.quantization --model "${UPQ_MODEL:-bundled}" --preset "${UPQ_PRESET:-quick}" \
    --json "$out/quantization.json" | tee "$out/quantization.md"
