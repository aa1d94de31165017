#!/bin/sh
# All tests that need a GPU, on a machine that has one but no compiler or packages for them.
#
#     sh tests/gpu.sh pack [BUILD]   here: programs and tests of a build with CUDA, and the libraries they need, into .bundle
#     sh tests/gpu.sh [TEST...]      there, in the same folder: runs them all or those named; SANITIZE=1 under compute-sanitizer
set -eu
cd "$(dirname "$0")/.."
tests='cuda_backend_test cuda_repack_test cuda_sample_test cuda_loader_test cuda_prompt_test cuda_model_test cuda_lost_test golden_test'

if [ "${1:-}" = pack ]; then
  build=${2:-build/cuda}
  rm -rf .bundle
  mkdir -p .bundle/bin .bundle/lib
  for program in $tests guanaco-bench guanaco-synth; do
    cp "$build/bin/$program" .bundle/bin/
    strip ".bundle/bin/$program"
    ldd "$build/bin/$program"
  done | awk '/fmt|sentencepiece|protobuf|absl|benchmark/ {print $3}' | sort -u | xargs -I{} cp -L {} .bundle/lib/
  du -sh .bundle
  exit 0
fi

# cuBLASLt comes with the toolkit, which may not be where the loader looks.
blas=$(find /usr/local /opt -name 'libcublasLt.so.*' 2>/dev/null | head -n 1)
LD_LIBRARY_PATH=$PWD/.bundle/lib:$(dirname "${blas:-/}"):${LD_LIBRARY_PATH:-}
GUANACO_MODEL=$PWD/examples/models/tiny-guanaco
GUANACO_TEST_DATA=$PWD/tests/data
GUANACO_SHARED_MODELS=$PWD/.bundle/models
export LD_LIBRARY_PATH GUANACO_MODEL GUANACO_TEST_DATA GUANACO_SHARED_MODELS

status=0
for test in ${*:-$tests}; do
  filter=
  [ "$test" = golden_test ] && filter='-tc=cuda:*'
  if [ -n "${SANITIZE:-}" ]; then
    for tool in memcheck racecheck synccheck initcheck; do
      echo "== $test under $tool"
      log=$(compute-sanitizer --tool $tool --error-exitcode 9 ".bundle/bin/$test" ${filter:+"$filter"} \
        -tce='*timing*,*published width*,*50*,*lost in mid-run*' 2>&1) || status=1
      echo "$log" | tail -n 6
    done
  else
    echo "== $test"
    .bundle/bin/$test ${filter:+"$filter"} -tce='*timing*' || status=1
  fi
done
exit $status
