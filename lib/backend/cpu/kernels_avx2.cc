#include "backend/cpu/lanes_avx2.h"
// The loops are over the lanes included above.
#include "backend/cpu/loops_attention.h"

namespace guanaco::cpu {

const Kernels& avx2_kernels() { return kTable; }

}  // namespace guanaco::cpu
