#include "ceilings.h"

#include "support/bandwidth.h"

namespace bench {

Ceilings measure_host_ceilings(int threads) {
  Ceilings ceilings;
  ceilings.read = support::measure_read_bandwidth(threads);
  ceilings.cache = std::size_t(32) << 20;
  ceilings.reads = {{"widest loads", ceilings.read}};
  return ceilings;
}

}  // namespace bench
