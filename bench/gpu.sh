#!/bin/sh
# How fast the GPU of this machine runs synthetic checkpoints, from the bundle that tests/gpu.sh packs.
#
#     sh bench/gpu.sh [SHAPE...]     default: 7b 13b
set -eu
cd "$(dirname "$0")/.."
blas=$(find /usr/local /opt -name 'libcublasLt.so.*' 2>/dev/null | head -n 1)
export LD_LIBRARY_PATH="$PWD/.bundle/lib:$(dirname "${blas:-/}"):${LD_LIBRARY_PATH:-}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for shape in ${*:-7b 13b}; do
  .bundle/bin/guanaco-synth --shape "$shape" "$folder/$shape" 2>/dev/null
  echo "== $shape, 4 bit, groups of 128"
  .bundle/bin/guanaco-bench --model "$folder/$shape" --device cuda --depth 2000 2>/dev/null
  rm -rf "${folder:?}/$shape"
done
