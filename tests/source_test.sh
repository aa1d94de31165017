#!/bin/sh
# What the source promises and no program can test.
#
#     source_test.sh headers|includes|readme SOURCE_DIR CXX
set -eu
cd "$2"
cxx="$3 -std=c++20 -pedantic -Wall -Wextra -Werror -fsyntax-only -Iinclude"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Every public header compiles alone and includes nothing of the libraries it is built on.
headers() {
  for header in include/guanaco/*.h; do
    echo "#include <${header#include/}>" >"$scratch/alone.cc"
    $cxx "$scratch/alone.cc"
  done
  echo '#include <guanaco/c.h>' >"$scratch/alone.c"
  cc -std=c99 -pedantic -Wall -Wextra -Werror -fsyntax-only -Iinclude "$scratch/alone.c"
  if grep -nE '#include *[<"]' include/guanaco/*.h | grep -vE '<(guanaco/[a-z]+\.h|[a-z_]+|std(def|int)\.h)>'; then
    echo 'public headers may include guanaco and the standard library only'
    exit 1
  fi
}

# Inside lib/, includes point only upstream, in the order of the data.
includes() {
  grep -rn '#include "' lib | awk -F'[/:"]' '
    BEGIN {
      upstream["support"] = " support "
      upstream["io"] = " support io "
      upstream["checkpoint"] = upstream["io"] "checkpoint "
      upstream["backend"] = upstream["checkpoint"] "backend "
      upstream["model"] = upstream["backend"] "model "
      upstream["session"] = upstream["model"] "session "
      upstream["text"] = " support io text "
    }
    {
      from = $2
      to = $0
      sub(/.*#include "/, "", to)
      sub(/\/.*/, "", to)
      seen++
      if (index(upstream[from], " " to " ") == 0) { print "not upstream: " $0; bad = 1 }
    }
    END {
      if (seen < 20) { print "only " seen + 0 " includes were found in lib/"; bad = 1 }
      exit bad
    }'
}

# README.md begins with hello.cc as it is, and its other C++ compiles behind "using namespace
# guanaco" with a model at hand. What it shows in other languages stands in their hello, which other
# tests build and run.
readme() {
  awk -v out="$scratch" '
    /^```cpp$/ { file = sprintf("%s/block%02d.cc", out, ++blocks); next }
    /^```/ { file = "" }
    file { print > file }' README.md
  cmp "$scratch/block01.cc" examples/hello.cc
  for block in "$scratch"/block*.cc; do
    if ! grep -q '#include <guanaco' "$block"; then
      {
        printf '#include <iostream>\n#include <thread>\n#include <guanaco/guanaco.h>\n'
        printf 'using namespace guanaco;\nvoid block(const Model& model) {\n(void)model;\n'
        cat "$block"
        printf '}\n'
      } >"$scratch/whole.cc"
      mv "$scratch/whole.cc" "$block"
    fi
    $cxx "$block" || { cat "$block"; exit 1; }
  done
  echo "$(ls "$scratch"/block*.cc | wc -l) blocks compile"
  for language in c rust go csharp python; do
    case $language in
      c) hello=examples/hello.c ;;
      rust) hello=examples/rust/hello.rs ;;
      go) hello=examples/go/hello/main.go ;;
      csharp) hello=examples/csharp/Hello.cs ;;
      python) hello=examples/python/hello.py ;;
    esac
    shown=$(awk -v fence="\`\`\`$language" '$0 == fence { on = 1; next } /^```/ { on = 0 } on' README.md | tr '\n' '\001')
    [ -n "$shown" ] || { echo "README.md shows nothing in $language"; exit 1; }
    tr '\n' '\001' <"$hello" | grep -qF "$shown" || { echo "README.md and $hello differ"; exit 1; }
  done
}

"$1"
