#include "packed_order.h"

#include <cstddef>

#include "layout.h"

namespace guanaco::cuda {
namespace {

std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

int runs_per_block(int group_size, int groups) {
  if (groups == 1 || group_size % kBlockInputs == 0) return 1;
  return group_size % (kBlockInputs / 2) == 0 ? 2 : 4;
}

std::vector<std::int32_t> packed_order(std::span<const std::int32_t> group, int groups, int run) {
  std::vector<std::size_t> next(std::size_t(groups) + 1);  // where the next row of a group goes
  for (std::int32_t g : group) ++next[std::size_t(g) + 1];
  for (std::size_t g = 1; g < next.size(); ++g)
    next[g] = next[g - 1] + round_up(next[g], std::size_t(run));
  std::vector<std::int32_t> order(round_up(next.back(), kBlockInputs), -1);

  bool identity = true;
  for (std::size_t row = 0; row < group.size(); ++row) {
    const std::size_t position = next[std::size_t(group[row])]++;
    order[position] = std::int32_t(row);
    identity &= position == row;
  }
  if (identity) order.clear();
  return order;
}

}  // namespace guanaco::cuda
