#!/bin/sh
# The same programs in every language, against an installed library: hello has to print the same bytes as in C++, check
# those of check.c, with the tokens of the reference implementation, chat, where there is one, two replies, and overhead
# what a token costs to pull, which has to be less than 5 us.
#
#     bindings_test.sh LANGUAGE SOURCE_DIR PREFIX MODEL CC CXX
set -eu
language=$1 source=$2 prefix=$3 model=$4 cc=$5 cxx=$6
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name guanaco-c.pc)")
LD_LIBRARY_PATH=$(dirname "$(find "$prefix" -name libguanaco.so.1)")
export LD_LIBRARY_PATH
export HOME="${HOME:-$scratch}"
skip() {
  echo "[skipped] $*"
  exit 0
}
# Debian's own tools, not what a user may have put before them.
tool() { [ -x "/usr/bin/$1" ] && echo "/usr/bin/$1" || command -v "$1"; }

examples=$source/examples
c_program() {
  "$cc" -std=c99 -O2 -Wall -Wextra -pedantic -Werror "$examples/$1.c" $(pkg-config --cflags --libs guanaco-c) -o "$scratch/$1_c"
}
c_program check
chat=
case $language in
  C)
    c_program hello
    c_program overhead
    hello="$scratch/hello_c" check="$scratch/check_c" overhead="$scratch/overhead_c"
    ;;
  Rust)
    cargo=$(tool cargo) || skip 'cargo is not installed (Debian: cargo)'
    RUSTC=$(tool rustc) CARGO_HOME="$scratch/cargo" "$cargo" build --offline --release --quiet \
      --manifest-path "$examples/rust/Cargo.toml" --target-dir "$scratch/target"
    programs=$scratch/target/release
    hello="$programs/hello" check="$programs/check" chat="$programs/chat" overhead="$programs/overhead"
    ;;
  Go)
    go=$(tool go) || skip 'go is not installed (Debian: golang-go)'
    export GOPROXY=off GOFLAGS=-mod=mod GOCACHE="${GUANACO_GOCACHE:-$scratch/cache}" GOPATH="$scratch/go" CC="$cc"
    (cd "$examples/go" && "$go" vet ./... && "$go" build -o "$scratch/" ./hello ./check ./overhead)
    hello="$scratch/hello" check="$scratch/check" overhead="$scratch/overhead"
    ;;
  CSharp)
    mcs=$(tool mcs) || skip 'mcs is not installed (Debian: mono-mcs)'
    command -v mono >/dev/null || skip 'mono is not installed (Debian: mono-runtime)'
    cd "$scratch"
    for program in Hello Check Chat Overhead; do
      "$mcs" -langversion:7 -unsafe -warnaserror -out:"$program.exe" "$examples/csharp/Guanaco.cs" \
        "$examples/csharp/Native.cs" "$examples/csharp/$program.cs"
    done
    hello="mono $scratch/Hello.exe" check="mono $scratch/Check.exe"
    chat="mono $scratch/Chat.exe" overhead="mono $scratch/Overhead.exe"
    ;;
  Python)
    python=$(tool python3) || skip 'python3 is not installed'
    python="$python -B $examples/python"
    hello="$python/hello.py" check="$python/check.py" overhead="$python/overhead.py"
    ;;
esac

PKG_CONFIG_PATH=$PKG_CONFIG_PATH "$cxx" -std=c++20 "$examples/hello.cc" $(pkg-config --cflags --libs guanaco) -o "$scratch/hello_cc"
"$scratch/hello_cc" "$model" >"$scratch/wanted"
$hello "$model" >"$scratch/found"
cat "$scratch/found"
[ -s "$scratch/wanted" ] && cmp "$scratch/wanted" "$scratch/found" || exit 1
if $hello "$scratch/nothing" >"$scratch/out" 2>"$scratch/err"; then
  echo 'a missing folder is no error'
  exit 1
fi
[ ! -s "$scratch/out" ] && [ "$(wc -l <"$scratch/err")" -eq 1 ] && grep -q "$scratch/nothing" "$scratch/err" ||
  { echo 'the error is not one line that names the folder:'; cat "$scratch/err"; exit 1; }

"$scratch/check_c" "$model" >"$scratch/wanted"
$check "$model" >"$scratch/found"
diff "$scratch/wanted" "$scratch/found" || { echo 'check prints other lines than check.c'; exit 1; }
golden() { # LINE KEY: the numbers of a line of check begin, or are, a list of the reference implementation's
  numbers=$(sed -n "s/^$1: \([0-9 ]*[0-9]\).*/\1/p" "$scratch/found" | tr ' ' ',')
  [ -n "$numbers" ] && grep -q "\"$2\":\[$numbers[],]" "$source/tests/data/gptq-4bit-128g.json" ||
    { echo "$1: $numbers is not the reference implementation's"; exit 1; }
}
golden encode input_ids
golden reply greedy_ids

if [ -n "$chat" ]; then
  printf 'What colour is the sky?\nWhy?\n' | $chat "$model" >"$scratch/replies"
  cat "$scratch/replies"
  [ "$(grep -c . "$scratch/replies")" -ge 2 ] || { echo 'chat does not answer'; exit 1; }
fi

# Of several runs one is enough: a busy machine says nothing about the binding.
for run in 1 2 3 4 5 6 7 8 9 10; do
  line=$($overhead "$model")
  echo "$line"
  echo "$line" | awk '$(NF - 2) == "us" {cost = $(NF - 3)} END {exit !(cost != "" && cost < 5)}' && exit 0
done
echo 'more than 5 us a token'
exit 1
