#!/usr/bin/env bash
# Prepares what scripts/gpu_check.sh needs on a machine that has torch, transformers and little else, such as a borrowed
# GPU without a network, and prints the two calls to make there, with what each has to carry:
#     scripts/gpu_payload.sh FOLDER
#
# FOLDER/tree       this tree without the shipped models, which nothing there reads
# FOLDER/wheels     the packages that a plain CUDA image lacks
# FOLDER/one, two   the bundled model's GGUF file in two parts, for two calls where one may not carry it whole
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?the folder to fill}
python=${PYTHON:-.venv/bin/python}
target=${UPQ_PYTHON_VERSION:-3.12}
most=64 # MiB that a call to the lent machine may carry
packages="platformdirs sqlite-utils sqlite-fts4 click-default-group click gguf hypothesis sortedcontainers tabulate
    pluggy python-dateutil six pytest pytest-timeout pytest-xdist execnet iniconfig pygments packaging"
whole="pydantic" # with what it requires, whose versions it names
rm -rf "${folder:?}/tree" "$folder/wheels" "$folder/one" "$folder/two"
mapfile -d '' files < <(git ls-files --cached --others --exclude-standard --deduplicate -z |
    grep -zv '^upq/resources/demo/.*npz$')
wait $! # fails where git did
mkdir -p "$folder/tree" "$folder/wheels" "$folder/one" "$folder/two"
for file in "${files[@]}"; do
    [ ! -f "$file" ] || cp --parents "$file" "$folder/tree" # a file that was deleted is still listed
done
download() {
    "$python" -m pip download --quiet --only-binary=:all: --python-version "$target" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --dest "$folder/wheels" "$@"
}
# shellcheck disable=SC2086  # the packages are words
download --no-deps $packages
# shellcheck disable=SC2086
download $whole
gguf=$("$python" -c "
from upq.models.source import resolve
print(resolve('bundled').path)")
first=$((($(stat -c %s "$gguf") - $(cat "$folder"/wheels/* | wc -c)) / 2)) # both calls carry the same
head -c "$first" "$gguf" > "$folder/one/model"
tail -c +"$((first + 1))" "$gguf" > "$folder/two/model"
cat "$folder/one/model" "$folder/two/model" | cmp - "$gguf"

mebibytes() { # of the files in parts of FOLDER
    (cd "$folder" && find "$@" -type f -printf '%s\n') | awk '{ sum += $1 } END { printf "%.1f", sum / 2 ^ 20 }'
}

print_call() { # its number and the parts of FOLDER that it carries; the command comes on standard input
    local number=$1 size
    shift
    size=$(mebibytes "$@")
    echo
    echo "Call $number carries $size MiB, of $folder: $*"
    if awk "BEGIN { exit $size <= $most }"; then
        echo "That is above the $most MiB that a call to the lent machine may carry."
    fi
    sed "s|^|    |"
}

# Limits and arguments: docs/gpu.md, "A borrowed GPU". The second call finds the wheels unpacked.
print_call 1 tree wheels one <<END
cd $folder/tree && WHEELS=../wheels UPQ_KEEP=../one/model PYTHON=python3 UPQ_RUN=/tmp/upq \\
    UPQ_LIMITS="tests=120 kernels=30 decode=60 scale=90" \\
    UPQ_KERNELS="--shapes 4096x4096 14336x4096 28672x8192 --rows 1 16" \\
    UPQ_DECODE="--contexts 128 --batches 1 16" \\
    UPQ_SCALE='--models Llama-3.1-8B --stages "Block-AP, INT2" "LDLQ, INT2" "JSD, INT4 teacher" E2E-QP' \\
    scripts/gpu_check.sh tests kernels decode scale
END
print_call 2 tree two <<END
cd $folder/tree && WHEELS=../wheels UPQ_MODEL_PARTS="/tmp/upq/model ../two/model" \\
    PYTHON=python3 UPQ_RUN=/tmp/upq UPQ_LIMITS="training=545" \\
    UPQ_TRAINING="--method portable_upq --carry INT4 INT2 --reserve 45" \\
    scripts/gpu_check.sh training
END
echo
echo "Where the checkout itself travels with every call, move upq/resources/demo/*.npz out of it until both are done."
echo "It adds $(mebibytes tree) MiB to each then."
