#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU: the GPU tests, the benchmarks of kernels, decoding and training at real scale,
# and a training run. Needs no network. Each part stays under ten minutes; name parts to run only those:
#     scripts/gpu_check.sh tests kernels decode scale training
#
# OUT               folder for tables, JSON, plots and trained layers (default: build/gpu)
# PYTHON            the interpreter (default: .venv's). One that lacks packages can be completed from ...
# WHEELS            ... a folder of wheels, all of which are installed without their dependencies
# UPQ_MODEL         what to train on: a folder, a GGUF file or "bundled" (default)
# UPQ_MODEL_PARTS   "a b ...": files that make the GGUF file when they are joined in this order, such as those that
#                   `split -b 48M model.gguf part-` makes where large files cannot be carried
# UPQ_METHOD        method of the training run (default: rotated_upq)
# UPQ_PRESET        its preset (default: standard)
# UPQ_TOKENS        tokens of its INT2 distillation (default: the preset's)
# UPQ_SECONDS       longest time of a call of part training (default: 480); the run goes on in the next call of it
# UPQ_RUN           folder of that run, kept between calls (default: build/gpu-run)
# UPQ_CARRY         precisions whose trained layers are written to OUT, in parts of 15 MB (default: INT2)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-build/gpu}
run=${UPQ_RUN:-build/gpu-run}
mkdir -p "$out" "$run"
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
    model="$run/model.gguf"  # beside the run, which goes on with the same file in the next call
    # shellcheck disable=SC2086  # the parts are words
    cat $UPQ_MODEL_PARTS > "$model"
fi

train() {
    local settings=()
    [ -z "${UPQ_TOKENS:-}" ] || settings=(--set "int2.distill.tokens=$UPQ_TOKENS")
    # shellcheck disable=SC2086  # the precisions are words
    "$python" -m bench.gpu_training --data-dir "$run/data" --out "$out" --seconds "${UPQ_SECONDS:-480}" \
        --model "$model" --method "${UPQ_METHOD:-rotated_upq}" --preset "${UPQ_PRESET:-standard}" \
        --carry ${UPQ_CARRY:-INT2} "${settings[@]}" | tee "$out/training.md"
}

run_part() {
    case $1 in
        tests) "$python" -m pytest -q -m gpu tests/gpu | tee "$out/tests.txt" ;;
        kernels) "$python" -m bench.gpu_kernels --json "$out/kernels.json" --plot "$out/kernels.svg" |
            tee "$out/kernels.md" ;;
        decode) "$python" -m bench.gpu_decode --json "$out/decode.json" --plot "$out/decode.svg" |
            tee "$out/decode.md" ;;
        scale) "$python" -m bench.gpu_scale --json "$out/scale.json" | tee "$out/scale.md" ;;
        training) train ;;
        *) echo "Unknown part $1: tests, kernels, decode, scale or training." >&2; exit 2 ;;
    esac
}

[ $# -gt 0 ] || set -- tests kernels decode scale training
for part in "$@"; do
    SECONDS=0
    run_part "$part"
    echo "$part: $SECONDS s" | tee -a "$out/seconds.txt"
done
