#pragma once

// The version of these headers; CMake reads it from here. From 1.0 on, C++ source written for one
// major version keeps compiling for all of it (CHANGELOG.md lists what changed).
#define GUANACO_VERSION_MAJOR 0
#define GUANACO_VERSION_MINOR 1
#define GUANACO_VERSION_PATCH 0

namespace guanaco {

/// The version of the linked library, "major.minor.patch". Static; any thread.
const char* version() noexcept;

}  // namespace guanaco
