#!/bin/sh
# The table of guanaco-bench on the GPU of this machine, from the bundle that tests/gpu.sh packs: what the card
# can do, each stage at the four model sizes, and tokens and prompts of synthetic checkpoints.
#
#     sh bench/gpu.sh [SHAPE...] [OPTION...]     default: 7b 13b; also 33b, 65b, 13b-act-order, 13b-fp16; options of
#                                                guanaco-bench, as --quick or --json, after at least one shape
set -eu
cd "$(dirname "$0")/.."
blas=$(find /usr/local /opt -name 'libcublasLt.so.*' 2>/dev/null | head -n 1)
export LD_LIBRARY_PATH="$PWD/.bundle/lib:$(dirname "${blas:-/}"):${LD_LIBRARY_PATH:-}"
[ $# -gt 0 ] || set -- 7b 13b
exec .bundle/bin/guanaco-bench --device cuda --kernels 7b 13b 33b 65b --shape "$@"
