# Everything comes from the distribution's packages (cmake/packages.sh names them); nothing is downloaded.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json 3.10 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)  # it ships no CMake files
if(GUANACO_EXAMPLES OR GUANACO_TESTS OR GUANACO_BENCH)
  find_package(CLI11 REQUIRED)
endif()
if(GUANACO_TESTS)
  find_package(doctest REQUIRED)
endif()
