#!/bin/sh
# The same programs in every language, against an installed library: hello has to print the same bytes as in C++, built by
# README.md's line, too, and as a program of a project that copied the wrapper; check those of check.c, with the tokens of
# the reference implementation; chat, where there is one, two replies; and overhead what a token costs to pull, which has
# to be less than 5 us.
#
#     bindings_test.sh LANGUAGE SOURCE_DIR PREFIX MODEL CC CXX
set -eu
language=$1 source=$2 prefix=$3 model=$4 cc=$5 cxx=$6
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name guanaco-c.pc)")
LD_LIBRARY_PATH=$(dirname "$(find "$prefix" -name libguanaco.so.1)")
export LD_LIBRARY_PATH PYTHONDONTWRITEBYTECODE=1
PATH=/usr/bin:$PATH  # Debian's own tools, not what a user may have put before them
export HOME="${HOME:-$scratch}"
skip() {
  echo "[skipped] $*"
  exit 0
}

examples=$source/examples
clone=$scratch/clone  # where README.md's lines are run
mkdir -p "$clone/build" "$scratch/app"
ln -s "$examples" "$clone/examples"
c_program() {
  "$cc" -std=c99 -O2 -Wall -Wextra -pedantic -Werror "$examples/$1.c" $(pkg-config --cflags --libs guanaco-c) -o "$scratch/$1_c"
}
c_program check
c_program overhead
chat= copied=
case $language in
  C)
    shown='examples/hello\.c '
    c_program hello
    hello="$scratch/hello_c" check="$scratch/check_c" overhead="$scratch/overhead_c"
    ;;
  Rust)
    shown='cargo run'
    command -v cargo >/dev/null || skip 'cargo is not installed (Debian: cargo)'
    export CARGO_HOME="$scratch/cargo" CARGO_NET_OFFLINE=true
    programs=$clone/build/rust/release
    cargo build --release --quiet --manifest-path "$examples/rust/Cargo.toml" --target-dir "$clone/build/rust"
    cp -r "$examples/rust" "$scratch/app/guanaco"
    mkdir "$scratch/app/src"
    cp "$examples/rust/hello.rs" "$scratch/app/src/main.rs"
    printf '%s\n' '[package]' 'name = "app"' 'version = "0.1.0"' 'edition = "2021"' \
      '[dependencies]' 'guanaco = { path = "guanaco" }' >"$scratch/app/Cargo.toml"
    cargo build --quiet --manifest-path "$scratch/app/Cargo.toml"
    copied="$scratch/app/target/debug/app"
    hello="$programs/hello" check="$programs/check" chat="$programs/chat" overhead="$programs/overhead"
    ;;
  Go)
    shown='cd examples/go'
    command -v go >/dev/null || skip 'go is not installed (Debian: golang-go)'
    export GOPROXY=off GOFLAGS=-mod=mod GOCACHE="${GUANACO_GOCACHE:-$scratch/cache}" GOPATH="$scratch/go" CC="$cc"
    (cd "$examples/go" && go vet ./... && go build -o "$scratch/" ./hello ./check ./overhead)
    mkdir "$scratch/app/guanaco"
    cp "$examples/go/"*.go "$scratch/app/guanaco"
    sed 's,"guanaco"$,"app/guanaco",' "$examples/go/hello/main.go" >"$scratch/app/main.go"
    printf 'module app\n\ngo 1.19\n' >"$scratch/app/go.mod"
    (cd "$scratch/app" && go build)
    copied="$scratch/app/app"
    hello="$scratch/hello" check="$scratch/check" overhead="$scratch/overhead"
    ;;
  CSharp)
    shown='mcs '
    command -v mcs >/dev/null || skip 'mcs is not installed (Debian: mono-mcs)'
    command -v mono >/dev/null || skip 'mono is not installed (Debian: mono-runtime)'
    cd "$scratch"
    for program in Hello Check Chat Overhead; do
      mcs -langversion:7 -unsafe -warnaserror -out:"$program.exe" "$examples/csharp/Guanaco.cs" \
        "$examples/csharp/Native.cs" "$examples/csharp/$program.cs"
    done
    hello="mono $scratch/Hello.exe" check="mono $scratch/Check.exe"
    chat="mono $scratch/Chat.exe" overhead="mono $scratch/Overhead.exe"
    ;;
  Python)
    shown='examples/python'
    command -v python3 >/dev/null || skip 'python3 is not installed'
    python="python3 $examples/python"
    hello="$python/hello.py" check="$python/check.py" overhead="$python/overhead.py"
    ;;
esac

PKG_CONFIG_PATH=$PKG_CONFIG_PATH "$cxx" -std=c++20 "$examples/hello.cc" $(pkg-config --cflags --libs guanaco) -o "$scratch/hello_cc"
"$scratch/hello_cc" "$model" >"$scratch/wanted"
[ -s "$scratch/wanted" ] || { echo 'hello.cc prints nothing'; exit 1; }
for program in "$hello" ${copied:+"$copied"}; do
  $program "$model" >"$scratch/found"
  cat "$scratch/found"
  cmp "$scratch/wanted" "$scratch/found"
done
awk '/^```sh$/ {on = 1; next} /^```/ {on = 0} on' "$source/README.md" | grep -E "^export .*LD_LIBRARY_PATH|$shown" |
  sed "s,\$HOME/\.local/lib,$LD_LIBRARY_PATH,g" >"$scratch/lines"
cat "$scratch/lines"
[ "$(wc -l <"$scratch/lines")" -eq 2 ] || { echo 'README.md does not say how hello is built and run'; exit 1; }
(unset LD_LIBRARY_PATH PKG_CONFIG_PATH && cd "$clone" && sh -e "$scratch/lines") >"$scratch/found"
cmp "$scratch/wanted" "$scratch/found"
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

# A busy machine says nothing about the binding: of several runs one is enough, and where C takes longer than on an idle
# machine, 0.06 us, others may, too: 80 times as long as C did just before.
for pause in 0 0 1 1 2 2 4 4 8 8; do
  sleep $pause
  in_c=$([ "$language" = C ] || "$scratch/overhead_c" "$model")
  line=$($overhead "$model")
  echo "$line ${in_c:+($in_c)}"
  printf '%s\n' "$line" | awk -v in_c="$in_c" '
    $(NF - 2) == "us" {cost = $(NF - 3)}
    END {
      words = split(in_c, word)
      exit !(cost != "" && (cost < 5 || (words > 3 && cost < 80 * word[words - 3])))
    }' && exit 0
done
echo 'more than 5 us a token, and 80 times more than in C'
exit 1
