#!/bin/sh
# The Debian packages: what is in them, and that installing and removing them leaves nothing behind. Needs no root: it
# unpacks into a root of its own.
#
#     deb_test.sh SOURCE_DIR BUILD_DIR CC MODEL
set -eu
source=$1 build=$2 cc=$3 model=$4
for tool in dpkg dpkg-deb dpkg-shlibdeps; do
  command -v "$tool" >/dev/null || { echo "[skipped] $tool is not installed"; exit 0; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

(cd "$scratch" && cpack -G DEB --config "$build/CPackConfig.cmake" -B "$scratch/debs" >cpack.log 2>&1) ||
  { cat "$scratch/cpack.log"; exit 1; }
runtime=$(ls "$scratch"/debs/libguanaco1_*.deb)
development=$(ls "$scratch"/debs/libguanaco-dev_*.deb)
dpkg-deb --info "$runtime" | grep -E 'Package:|Version:|Depends:'
dpkg-deb --info "$runtime" | grep -q 'Depends:.*libsentencepiece0' || { echo 'it does not depend on libsentencepiece0'; exit 1; }
dpkg-deb --contents "$runtime" | grep -v '/$' | awk '{print $6, $7, $8}' >"$scratch/files"
cat "$scratch/files"
[ -z "$(grep -v 'libguanaco\.so\.1' "$scratch/files")" ] || { echo 'more than the library is in it'; exit 1; }
dpkg-deb --contents "$development" | grep -q 'include/guanaco/c\.h' || { echo 'no c.h in libguanaco-dev'; exit 1; }
for needed in 'libguanaco1 (= ' libsentencepiece-dev pkg-config; do
  dpkg-deb --field "$development" Depends | grep -qF "$needed" || { echo "libguanaco-dev does not depend on $needed"; exit 1; }
done
dpkg-deb --ctrl-tarfile "$runtime" | tar -xO ./triggers | grep -q ldconfig || { echo 'no trigger for ldconfig'; exit 1; }

root=$scratch/root
mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates" "$root/var/lib/dpkg/triggers"
: >"$root/var/lib/dpkg/status"
into() {
  dpkg --root="$root" --log="$scratch/dpkg.log" --force-not-root --force-depends --force-bad-path --force-script-chrootless "$@" >"$scratch/out" 2>&1 ||
    { cat "$scratch/out"; exit 1; }
}
into --install "$runtime" "$development"
(cd "$root" && find . -path ./var -prune -o -type f -print) | sort
program=$scratch/hello
export PKG_CONFIG_PATH=$(dirname "$(find "$root" -name guanaco-c.pc)")
"$cc" -std=c99 "$source/examples/hello.c" $(pkg-config --cflags --libs guanaco-c) -o "$program"
LD_LIBRARY_PATH=$(dirname "$(find "$root" -name 'libguanaco.so.1')") "$program" "$model"
# guanaco::c needs none of what guanaco::guanaco is built on.
mkdir "$scratch/project"
cat >"$scratch/project/CMakeLists.txt" <<EOF
cmake_minimum_required(VERSION 3.25)
project(stranger C)
find_package(guanaco QUIET)
if(guanaco_FOUND)
  message(FATAL_ERROR "found without what guanaco::guanaco needs")
endif()
find_package(guanaco)
find_package(guanaco REQUIRED COMPONENTS c)
add_executable(hello $source/examples/hello.c)
target_link_libraries(hello guanaco::c)
EOF
cmake -S "$scratch/project" -B "$scratch/project/build" -DCMAKE_C_COMPILER="$cc" -DCMAKE_PREFIX_PATH="$root/usr" \
  -DCMAKE_DISABLE_FIND_PACKAGE_PkgConfig=ON >"$scratch/out" 2>&1 && cmake --build "$scratch/project/build" >>"$scratch/out" ||
  { cat "$scratch/out"; exit 1; }
grep 'guanaco::guanaco, for C++, lacks PkgConfig::sentencepiece' "$scratch/out"
"$scratch/project/build/hello" "$model"
into --purge libguanaco-dev libguanaco1
left=$(cd "$root" && find . -path ./var -prune -o -type f -print)
[ -z "$left" ] || { echo "left behind: $left"; exit 1; }
