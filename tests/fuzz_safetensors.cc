// Fuzz target: a safetensors file of any bytes is read or refused with an Error.
//
// With fuzz_main.cc it is an ordinary test. To search for more, with clang:
//     clang++ -std=c++20 -g -fsanitize=fuzzer,address,undefined -Iinclude -Ilib
//         tests/fuzz_safetensors.cc lib/io/*.cc -lfmt -o fuzz_safetensors
//     ./fuzz_safetensors tests/seeds/safetensors
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>
#include <guanaco/error.h>

#include "io/safetensors.h"

namespace {

void expect(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

/// Reads a file of these bytes, which never touches a disk.
void read(std::string_view bytes) {
  const int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  expect(descriptor >= 0 && write(descriptor, bytes.data(), bytes.size()) == ssize_t(bytes.size()),
         "cannot make a file in memory");
  try {
    const guanaco::SafetensorsFile file(fmt::format("/proc/self/fd/{}", descriptor));
    std::vector<bool> taken(bytes.size());
    for (const guanaco::TensorEntry& entry : file.tensors()) {
      expect(file.find(entry.name) == &entry, "a tensor is not found by its name");
      expect(entry.offset <= bytes.size() && entry.bytes <= bytes.size() - entry.offset,
             "a tensor lies outside the file");
      std::string data(std::size_t(entry.bytes), '\0');
      file.file().read(entry.offset, std::as_writable_bytes(std::span(data)));
      for (std::uint64_t at = entry.offset; at < entry.offset + entry.bytes; ++at) {
        expect(!taken[at], "two tensors share a byte");
        taken[at] = true;
      }
    }
  } catch (const guanaco::Error& error) {
    expect(std::string_view(error.what()).find('\n') == std::string_view::npos,
           "a message of several lines");
  }
  close(descriptor);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  read(bytes);
  // And as the header of a file without data, so that a mutation need not guess the length.
  if (size >= 8) {
    const std::uint64_t length = size - 8;
    std::string header(reinterpret_cast<const char*>(&length), sizeof length);
    read(header.append(bytes, 8));
  }
  return 0;
}
