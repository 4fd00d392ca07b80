#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU: the GPU tests, the benchmarks of kernels and decoding, and a quick run of
# training. Needs no network. Each part stays under ten minutes; name parts to run only those:
#     scripts/gpu_check.sh tests kernels decode training
#
# OUT               folder for tables, JSON and plots (default: build/gpu)
# PYTHON            the interpreter (default: .venv's). One that lacks packages can be completed from ...
# WHEELS            ... a folder of wheels, all of which are installed without their dependencies
# UPQ_MODEL         what to train on: a folder, a GGUF file or "bundled" (default)
# UPQ_MODEL_PARTS   "a b ...": files that make the GGUF file when they are joined in this order, such as those that
#                   `split -b 48M model.gguf part-` makes where large files cannot be carried
# UPQ_PRESET        the preset of that run (default: smoke)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-build/gpu}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch sees no NVIDIA GPU here; gpu-check needs one." >&2
    exit 1
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"

model=${UPQ_MODEL:-bundled}
if [ -n "${UPQ_MODEL_PARTS:-}" ]; then
    model="$work/model.gguf"
    # shellcheck disable=SC2086  # the parts are words
    cat $UPQ_MODEL_PARTS > "$model"
fi

run_part() {
    case $1 in
        tests) "$python" -m pytest -q -m gpu tests/integration | tee "$out/tests.txt" ;;
        kernels) "$python" -m bench.gpu_kernels --json "$out/kernels.json" --plot "$out/kernels.svg" |
            tee "$out/kernels.md" ;;
        decode) "$python" -m bench.gpu_decode --json "$out/decode.json" --plot "$out/decode.svg" |
            tee "$out/decode.md" ;;
        training) "$python" -m bench.quantization --model "$model" --preset "${UPQ_PRESET:-smoke}" \
            --json "$out/quantization.json" | tee "$out/quantization.md" ;;
        *) echo "Unknown part $1: tests, kernels, decode or training." >&2; exit 2 ;;
    esac
}

[ $# -gt 0 ] || set -- tests kernels decode training
for part in "$@"; do
    SECONDS=0
    run_part "$part"
    echo "$part: $SECONDS s" | tee -a "$out/seconds.txt"
done
