// Runs a fuzz target over the files of a folder and some thousands of mutations of them, the same
// ones every time.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <guanaco/error.h>

#include "io/file.h"
#include "synthetic_weights.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

void run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

class Mutator {
 public:
  explicit Mutator(const std::vector<std::string>& seeds) : seeds_(seeds) {}

  std::string next() {
    std::string text = seeds_[below(seeds_.size())];
    for (std::uint64_t changes = 1 + below(4); changes > 0; --changes) change(text);
    return text;
  }

 private:
  std::size_t below(std::size_t bound) {
    return std::size_t(guanaco::random_bits(1, draws_++) % bound);
  }

  void change(std::string& text) {
    const std::size_t at = below(text.size() + 1), length = below(text.size() - at + 1);
    const std::string& other = seeds_[below(seeds_.size())];
    const std::size_t from = below(other.size() + 1);
    constexpr const char* kTokens[] = {
        "0", "-1",    "1e999", "18446744073709551615", "null",   "true", "\"\"", "[", "]", "{",
        "}", "\"\\u", "\xff",  "281474976710655",      ",\"a\":"};
    switch (below(6)) {
      case 0:  // one bit
        if (at < text.size()) text[at] = char(text[at] ^ 1 << below(8));
        break;
      case 1:  // one byte
        if (at < text.size()) text[at] = char(below(256));
        break;
      case 2:
        text.erase(at, length);
        break;
      case 3:  // doubled
        if (text.size() < 10'000) text.insert(at, text.substr(at, length));
        break;
      case 4:
        text.insert(at, kTokens[below(std::size(kTokens))]);
        break;
      default:  // a part of another seed
        text.replace(at, length, other.substr(from, below(other.size() - from + 1)));
    }
  }

  const std::vector<std::string>& seeds_;
  std::uint64_t draws_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: %s SEEDS [MUTATIONS]\n", argv[0]);
    return 1;
  }
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1]))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());  // the order of a folder is not the same everywhere
  std::vector<std::string> seeds;
  for (const auto& path : paths) seeds.push_back(guanaco::read_text(path, 1u << 20));
  if (seeds.empty()) {
    std::fprintf(stderr, "%s: no seeds\n", argv[1]);
    return 1;
  }
  std::string input;
  try {
    for (const std::string& seed : seeds) run(input = seed);
    Mutator mutator(seeds);
    const int mutations = argc > 2 ? std::atoi(argv[2]) : 5000;
    for (int i = 0; i < mutations; ++i) run(input = mutator.next());
    std::printf("%zu seeds and %d mutations\n", seeds.size(), mutations);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\nthe input was, in hexadecimal:", error.what());
    for (const char c : input) std::fprintf(stderr, " %02x", std::uint8_t(c));
    std::fprintf(stderr, "\n");
    return 1;
  }
}
