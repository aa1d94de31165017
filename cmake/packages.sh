# The packages that libguanaco is built with, on Debian 12, Ubuntu 24.04 and later. Sourced by
# examples/quickstart.sh and tests/run.sh.
packages='cmake ninja-build g++ pkg-config libsentencepiece-dev nlohmann-json3-dev libfmt-dev
          libcli11-dev doctest-dev libbenchmark-dev'
# And those that only the tests need: the languages of the examples, and what looks at the C library.
test_packages='rustc cargo golang-go mono-mcs mono-runtime python3 valgrind abigail-tools dpkg-dev file'

say() { printf '%s\n' "== $*" >&2; }
stop() {
  printf '%s\n' "$(basename "$0"): $*" >&2
  exit 1
}

# Prints the packages that are not installed.
missing_packages() {
  for package in $packages; do
    case $(dpkg-query -W -f '${db:Status-Status} ' "$package" 2>/dev/null) in
      *installed\ *) ;;
      *) printf '%s ' "$package" ;;
    esac
  done
}

# Installs what is missing; asks for root's rights only if something is.
install_packages() {
  command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
    stop "this system has no apt-get. Install CMake 3.25, Ninja, a C++20 compiler, pkg-config," \
      "sentencepiece, nlohmann-json, fmt, CLI11, doctest and Google Benchmark by its own means," \
      "then run: cmake --preset release && cmake --build --preset release"
  missing=$(missing_packages)
  missing=${missing% }
  if [ -n "$missing" ]; then
    if [ "$(id -u)" -eq 0 ]; then
      root=
    elif command -v sudo >/dev/null; then
      root=sudo
      sudo true || stop "sudo refused. Have root install: apt-get install $missing"
    else
      stop "run this as root, or have root install: apt-get install $missing"
    fi
    say "installing $missing"
    $root apt-get update -q >&2 ||
      stop "apt-get update failed: is there a network? Wanted: $missing"
    $root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -q -y --no-install-recommends $missing >&2 ||
      stop "apt-get could not install $missing: see its message above"
  fi
  # A package may be older than needed, and another cmake may come first in PATH.
  version=$(cmake --version | sed -n 's/^cmake version \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  [ "${version% *}" -gt 3 ] || { [ "${version% *}" -eq 3 ] && [ "${version#* }" -ge 25 ]; } ||
    stop "$(command -v cmake) is CMake ${version% *}.${version#* }, but 3.25 or later is needed:" \
      "use Debian 12, Ubuntu 24.04 or later, or install it from https://cmake.org/download"
}

# Configures (with $configure_options) and builds a preset: build_preset NAME [cmake --build arguments]
build_preset() {
  preset=$1
  shift
  if [ ! -f "build/$preset/build.ninja" ]; then
    say "configuring build/$preset"
    cmake --preset "$preset" ${configure_options:-} >&2 || stop "cmake could not configure: see its message above"
  fi
  say "building build/$preset"
  cmake --build --preset "$preset" "$@" >&2 ||
    stop "the build failed: see above. After an update, removing build/$preset may help"
}
