#!/bin/sh
# The names of the C ABI are the same everywhere: exported by the library, listed in exports.map, declared in c.h and
# in every binding; and the numbers and the parameters of c.h are those of every binding.
#
#     exports_test.sh SOURCE_DIR LIBRARY CC
set -eu
source=$1 library=$2 cc=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
status=0
same() { # WHAT FIRST SECOND: two sorted lists
  diff "$2" "$3" >difference || { echo "$1 differ:"; cat difference; status=1; }
}

nm -D --defined-only "$library" | awk '$2 != "A" {sub(/@.*/, "", $3); print $3}' | sort >exported
sed -n 's/^ *\(guanaco_[a-z_]*\);$/\1/p' "$source/capi/exports.map" | sort >listed
# Declarations go over several lines: one line each, then the name before the first parenthesis.
sed 's,/\*.*\*/,,' "$source/include/guanaco/c.h" | tr '\n' ' ' | sed 's/GUANACO_API/\n&/g' |
  sed -n 's/^GUANACO_API [^(]*\(guanaco_[a-z_]*\)(.*/\1/p' | sort >declared
[ -s declared ] || { echo 'c.h declares nothing'; exit 1; }
same 'what the library exports and exports.map' exported listed
same 'exports.map and c.h' listed declared
[ -z "$(grep -v '^guanaco_' exported)" ] || { echo 'exported, but not ours:'; grep -v '^guanaco_' exported; status=1; }

names() { # prints the functions that some files name
  cat "$@" | grep -oE 'guanaco_[a-z_]+' | sort -u | comm -12 - declared
}
for binding in rust go csharp python; do
  case $binding in
    rust) files=$(find "$source/examples/rust" -name '*.rs') ;;
    go) files=$(find "$source/examples/go" -name '*.go') ;;
    csharp) files=$(find "$source/examples/csharp" -name '*.cs') ;;
    python) files=$(find "$source/examples/python" -name '*.py') ;;
  esac
  names $files >named
  same "c.h and the names in the binding for $binding" declared named
done

# Numbers: the compiler says what c.h means, NAME VALUE; a binding has them as NAME = VALUE in its own spelling.
grep -oE 'GUANACO_[A-Z0-9_]+ = -?[0-9]+|^#define GUANACO_ABI [0-9]+' "$source/include/guanaco/c.h" |
  sed 's/ = / /; s/#define //' | sort >constants
grep -q '^GUANACO_ABI ' constants || { echo 'c.h defines no GUANACO_ABI'; exit 1; }
{
  echo '#include <guanaco/c.h>'
  echo '#include <stdio.h>'
  echo 'int main(void) {'
  while read -r name value; do printf '  printf("%%s %%d\\n", "%s", (int)%s);\n' "$name" "$name"; done <constants
  echo '  return 0; }'
} >constants.c
"$cc" -std=c99 -I"$source/include" constants.c -o constants_program
./constants_program | sort >compiled
same 'the text of c.h and what the compiler makes of it' constants compiled
# Names are compared without GUANACO_, underscores and case.
plain() { sed -E 's/_//g' | tr 'A-Z' 'a-z'; }
sed 's/^GUANACO_//' constants | while read -r name value; do echo "$(echo "$name" | plain) $value"; done | sort >wanted
check_numbers() { # BINDING FILE...: every one of c.h's numbers is there under its name
  binding=$1
  shift
  # Members of an enum get its name in front, but for those of Status.
  cat "$@" | awk '
    match($0, /enum [A-Za-z]+/) { prefix = substr($0, RSTART + 5, RLENGTH - 5); if (prefix == "Status") prefix = "" }
    { line = $0; sub(/.*enum [A-Za-z]+/, "", line)
      while (match(line, /[A-Za-z_][A-Za-z0-9_]*(: *[A-Za-z0-9_]+)? *= *-?[0-9]+/)) {
        found = substr(line, RSTART, RLENGTH); line = substr(line, RSTART + RLENGTH)
        value = found; sub(/.*= */, "", value); name = found; sub(/[: =].*/, "", name)
        gsub(/_/, "", name); print tolower(prefix name), value } }
    /}/ { prefix = "" }' | sort -u >numbers
  comm -23 wanted numbers >missing
  [ ! -s missing ] || { echo "numbers that the binding for $binding lacks or has otherwise:"; cat missing; status=1; }
}
check_numbers rust $(find "$source/examples/rust" -name '*.rs')
check_numbers csharp $(find "$source/examples/csharp" -name '*.cs')
check_numbers python $(find "$source/examples/python" -name '*.py')

# Parameters: how each is passed, in their order: p a pointer, 4 and 8 an integer of so many bytes, s a size_t, d a double.
# What they mean beyond that is for check to find. One "name(type name, ...)" a line, of any language.
shapes() {
  sed -E 's/\(void\)/()/; s/, *\)/)/; s/\)$//' | awk '
    function shape(p) {
      if (p ~ /[*[<]| out |POINTER/) return "p"
      if (p ~ / (int32_t|guanaco_option|guanaco_status|i32|c_int32|int|Status|Option|Info|Text|Role) /) return "4"
      if (p ~ / (int64_t|i64|c_int64|long) /) return "8"
      if (p ~ / (size_t|usize|c_size_t|Size) /) return "s"
      return p ~ / (double|f64|c_double) / ? "d" : "p"
    }
    { at = index($0, "("); shapes = ""
      count = split(substr($0, at + 1), parameters, ",")
      for (i = 1; i <= count; ++i) shapes = shapes shape(" " parameters[i] " ")
      print substr($0, 1, at - 1), shapes }' | sort
}
declarations() { # MARK FILE: what stands behind a mark, up to the closing parenthesis
  sed 's,/\*.*\*/,,' "$2" | tr '\n' ' ' | sed "s/$1/\n&/g" | sed -nE "s/^$1 [^(]*\b(guanaco_[a-z_]*\([^)]*\)).*/\1/p"
}
declarations GUANACO_API "$source/include/guanaco/c.h" | shapes >wanted
[ "$(wc -l <wanted)" -eq "$(wc -l <declared)" ] || { echo 'not all of c.h was understood'; status=1; }
declarations 'pub fn' "$source/examples/rust/sys.rs" | shapes >found
same 'parameters in c.h and sys.rs' wanted found
declarations 'static extern' "$source/examples/csharp/Native.cs" | shapes >found
same 'parameters in c.h and Native.cs' wanted found
tr '\n' ' ' <"$source/examples/python/guanaco.py" | grep -oE 'guanaco_[a-z_]+=\(([^()]|\([^()]*\))*\)' |
  sed 's/=//' | shapes >found
[ "$(wc -l <found)" -ge 40 ] &&
  [ "$(wc -l <found)" -eq "$(grep -oE 'guanaco_[a-z_]+=\(' "$source/examples/python/guanaco.py" | wc -l)" ] ||
  { echo 'not all of guanaco.py was understood'; status=1; }
sed 's/ .*//' found | join - wanted >some  # those that are declared one by one
same 'parameters in c.h and guanaco.py' some found
exit "$status"  # cgo takes numbers and parameters from c.h itself
