#pragma once

#include <atomic>
#include <cstdlib>
#include <new>
#include <span>

#include <guanaco/guanaco.h>

// Counts the allocations of the program that includes it, once, so that a test can show that steady
// decoding makes none.
namespace guanaco {
inline std::atomic<long> allocations = 0;
inline thread_local bool counting = true;  ///< false: of the test's own, on this thread

/// Steps of the generations, each taking its tokens.
inline void steps(std::span<Generation* const> generations, int count) {
  for (int i = 0; i < count; ++i) {
    step(generations);
    for (Generation* const generation : generations) generation->next();
  }
}
}  // namespace guanaco

// Not inlined, or the compiler sees a malloc where it expects this operator new.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (guanaco::counting) ++guanaco::allocations;
  if (void* const memory = std::malloc(size != 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
