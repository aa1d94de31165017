#!/bin/sh
# From a fresh Debian 12 or Ubuntu 24.04 to a passed test suite: installs what is missing, builds the
# preset ci, and runs its tests. Arguments go to ctest.
#
#     sh tests/run.sh [-R REGEX...]
set -eu
cd "$(dirname "$0")/.."
. cmake/packages.sh

packages="$packages $test_packages"
install_packages
if command -v nvcc >/dev/null; then
  # Where CUDA is, it has to compile; for one architecture, to be quick. What needs a GPU is skipped without one.
  configure_options='-DGUANACO_CUDA=ON -DGUANACO_CUDA_ARCHITECTURES=90a'
fi
build_preset ci

say 'testing'
log=build/ci/ctest.log
status=0
ctest --preset ci --output-log "$log" "$@" || status=$?

# ctest names the tests it skipped, but not why.
skipped=$(grep -h '^\[skipped\]' build/ci/Testing/Temporary/LastTest.log | sort | uniq -c || true)
if [ -n "$skipped" ]; then
  printf '\nWhy tests were skipped, and how many for each reason:\n%s\n' "$skipped"
fi
printf '\n'
grep 'tests passed' "$log" || printf '%s\n' "no test ran: see $log"
exit "$status"
