#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace guanaco::cuda {

/// Runs in a block of 128 positions that let no run straddle two groups without padding, where
/// groups allow that: 1, 2 or 4. One group is one run however long it is.
int runs_per_block(int group_size, int groups);

/// The input row at each packed position of a GPTQ weight, -1 where there is none: rows sorted by
/// group, stably, each group filled up to whole runs of `run` positions and all of them to whole
/// blocks of 128. Empty if that is the identity up to padding at the end. `group`: [inputs], each
/// in [0, groups).
std::vector<std::int32_t> packed_order(std::span<const std::int32_t> group, int groups, int run);

}  // namespace guanaco::cuda
