#!/bin/sh
# Installs the library into a temporary prefix and uses it like a stranger: builds examples/ with find_package, hello.cc
# with pkg-config, and hello.c with either against the static library; all must talk. Configures the library alone, too.
#
#     install_test.sh SOURCE_DIR BUILD_DIR MODEL CXX BUILD_TYPE SANITIZERS
set -eu
source=$1 build=$2 model=$3 cxx=$4 build_type=$5 sanitizers=$6

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
prefix=$scratch/prefix

cmake --install "$build" --prefix "$prefix" >/dev/null
[ -z "$(find "$prefix" -type f ! -path '*/include/guanaco/*' ! -path '*/cmake/guanaco/*' \
  ! -name guanaco.pc ! -name guanaco-c.pc ! -name libguanaco.a ! -name 'libguanaco.so.1*')" ] ||
  { echo 'more was installed than the library:'; find "$prefix" -type f; exit 1; }

echo '== find_package'
cmake -G Ninja -S "$source/examples" -B "$scratch/build" -DCMAKE_PREFIX_PATH="$prefix" \
  -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE="$build_type"
cmake --build "$scratch/build"
for program in hello guanaco-chat guanaco-perplexity guanaco-inspect; do
  [ -x "$scratch/build/bin/$program" ] || { echo "no bin/$program was built"; exit 1; }
done
"$scratch/build/bin/hello" "$model" >"$scratch/first.txt"
cat "$scratch/first.txt"

echo '== pkg-config'
pc=$(find "$prefix" -name guanaco.pc)
export PKG_CONFIG_PATH="${pc%/*}"
"$cxx" -std=c++20 ${sanitizers:+-fsanitize="$sanitizers"} "$source/examples/hello.cc" \
  $(pkg-config --cflags --libs guanaco) -o "$scratch/hello"
"$scratch/hello" "$model" >"$scratch/second.txt"

[ -s "$scratch/first.txt" ] || { echo 'hello printed nothing'; exit 1; }
cmp "$scratch/first.txt" "$scratch/second.txt"

if [ -z "$sanitizers" ]; then
  echo '== C, without a shared library'
  cc -std=c99 "$source/examples/hello.c" $(pkg-config --cflags --libs guanaco) -o "$scratch/hello_c"
  mkdir "$scratch/project"
  cat >"$scratch/project/CMakeLists.txt" <<EOF
cmake_minimum_required(VERSION 3.25)
project(stranger C)
find_package(guanaco REQUIRED)
add_executable(hello $source/examples/hello.c)
target_link_libraries(hello guanaco::guanaco)
EOF
  cmake -G Ninja -S "$scratch/project" -B "$scratch/project/build" -DCMAKE_PREFIX_PATH="$prefix"
  cmake --build "$scratch/project/build"
  for hello in "$scratch/hello_c" "$scratch/project/build/hello"; do
    ! ldd "$hello" | grep libguanaco || { echo "$hello has a shared library"; exit 1; }
    "$hello" "$model" | cmp - "$scratch/first.txt"
  done
fi

echo '== the library alone'  # the preset, without what README.md says it does not need
(cd "$source" && cmake --preset library -B "$scratch/alone" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_DISABLE_FIND_PACKAGE_CLI11=ON \
  -DCMAKE_DISABLE_FIND_PACKAGE_doctest=ON -DCMAKE_DISABLE_FIND_PACKAGE_benchmark=ON)
ninja -C "$scratch/alone" -n >"$scratch/steps"
! grep -E 'Linking CXX executable|tests/|bench/' "$scratch/steps" || { echo 'more than the library would be built'; exit 1; }
tail -n 1 "$scratch/steps"
