#!/bin/sh
# The library's ABI is that of the last release, or more. capi/libguanaco.so.1.abi is what abidw saw then; a release
# that adds functions writes it anew:
#
#     abi_test.sh SOURCE_DIR LIBRARY          compares
#     abi_test.sh SOURCE_DIR LIBRARY record   writes it
set -eu
source=$1 library=$2 recorded=$1/capi/libguanaco.so.1.abi
command -v abidiff >/dev/null || { echo '[skipped] abidiff is not installed (Debian: abigail-tools)'; exit 0; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
abidw --headers-dir "$source/include" --drop-private-types --no-corpus-path --no-comp-dir-path --no-show-locs \
  --short-locs --exported-interfaces-only --no-elf-needed --out-file "$scratch/now.abi" "$library"
if [ "${3:-}" = record ]; then
  cp "$scratch/now.abi" "$recorded"
  exit 0
fi
# Exit status: a bit set; 8 is an incompatible change, 4 a change, 1 and 2 are errors.
status=0
abidiff --no-added-syms "$recorded" "$scratch/now.abi" || status=$?
[ "$status" -eq 0 ] || { echo "the ABI is not that of the last release (abidiff: $status)"; exit 1; }
