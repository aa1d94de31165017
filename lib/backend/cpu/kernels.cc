#include "backend/cpu/kernels.h"

#include "support/check.h"

namespace guanaco::cpu {

bool has(Isa isa) {
#if GUANACO_X86
  __builtin_cpu_init();
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return has(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  }
#endif
  return isa == Isa::portable;
}

Isa best_isa() {
  if (has(Isa::avx512)) return Isa::avx512;
  return has(Isa::avx2) ? Isa::avx2 : Isa::portable;
}

const Kernels& kernels_of(Isa isa) {
  require(has(isa), ErrorCode::unsupported,
          "instruction set {}: this machine does not have it, or the library was built without it",
          isa == Isa::avx512 ? "AVX-512" : "AVX2");
#if GUANACO_X86
  if (isa == Isa::avx512) return avx512_kernels();
  if (isa == Isa::avx2) return avx2_kernels();
#endif
  return portable_kernels();
}

}  // namespace guanaco::cpu
