#include "backend/cpu/lanes_portable.h"
// The loops are over the lanes included above.
#include "backend/cpu/loops_attention.h"

namespace guanaco::cpu {

const Kernels& portable_kernels() { return kTable; }

}  // namespace guanaco::cpu
