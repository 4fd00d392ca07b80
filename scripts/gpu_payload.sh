#!/usr/bin/env bash
# Prepares what scripts/gpu_check.sh needs on a machine that has torch, transformers and little else, such as a borrowed
# GPU without a network: scripts/gpu_payload.sh FOLDER
#
# FOLDER/wheels     the packages that a plain CUDA image lacks
# FOLDER/one, two   the halves of the bundled model's GGUF file, for two calls where one may not carry it whole
# The tree itself is small without upq/resources/demo, which nothing here needs.
#
#     WHEELS=FOLDER/wheels UPQ_KEEP=FOLDER/one/model PYTHON=python3 UPQ_RUN=/tmp/upq scripts/gpu_check.sh tests kernels decode
#     WHEELS=FOLDER/wheels UPQ_MODEL_PARTS="/tmp/upq/model FOLDER/two/model" PYTHON=python3 UPQ_RUN=/tmp/upq \
#         scripts/gpu_check.sh training scale
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?the folder to fill}
python=${PYTHON:-.venv/bin/python}
target=${UPQ_PYTHON_VERSION:-3.12}
packages="platformdirs sqlite-utils sqlite-fts4 click-default-group click gguf hypothesis sortedcontainers tabulate
    pluggy python-dateutil six pytest pytest-timeout pytest-xdist execnet iniconfig pygments packaging"
whole="pydantic" # with what it requires, whose versions it names
rm -rf "${folder:?}/wheels" "$folder/one" "$folder/two"
mkdir -p "$folder/wheels" "$folder/one" "$folder/two"
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
half=$(($(stat -c %s "$gguf") / 2))
head -c "$half" "$gguf" > "$folder/one/model"
tail -c +"$((half + 1))" "$gguf" > "$folder/two/model"
cat "$folder/one/model" "$folder/two/model" | cmp - "$gguf"
du -sh "$folder"/*
echo "tree: $(git ls-files --cached --others --exclude-standard -z | grep -zv '^upq/resources/demo/.*npz$' |
    xargs -0 du -cb | tail -n 1 | cut -f 1) bytes without the shipped models"
