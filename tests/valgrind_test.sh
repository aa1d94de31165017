#!/bin/sh
# Runs a test of the C ABI under valgrind: nothing is lost, nothing is read before it is written.
#
#     valgrind_test.sh PROGRAM MODEL
set -eu
command -v valgrind >/dev/null || { echo '[skipped] valgrind is not installed'; exit 0; }
GUANACO_SHORT=1 exec valgrind --quiet --leak-check=full --errors-for-leak-kinds=definite,indirect \
  --error-exitcode=9 --fair-sched=yes "$@"
