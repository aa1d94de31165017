// How a pass of few rows is shared out (cuda/pass_plan.cc): a matter of the host, tested without a
// GPU.

#include <doctest/doctest.h>

#include <string>

#include "layout.h"
#include "pass.h"

using namespace guanaco::cuda;

namespace {

struct Card {
  const char* name;
  int multiprocessors, shared_bytes_block, shared_bytes_multiprocessor;
};
// CUDA C++ programming guide, table of compute capabilities.
constexpr Card kCards[] = {{"8.0", 108, 166912, 167936},
                           {"8.6", 84, 101376, 102400},
                           {"8.9", 128, 101376, 102400},
                           {"9.0", 132, 232448, 233472}};
struct Size {
  const char* name;
  int hidden, ffn, heads;
};
constexpr Size kSizes[] = {{"7b", 4096, 11008, 32},
                           {"13b", 5120, 13824, 40},
                           {"33b", 6656, 17920, 52},
                           {"65b", 8192, 22016, 64}};

DeviceLimits limits_of(const Card& card) {
  DeviceLimits limits;
  limits.multiprocessors = card.multiprocessors;
  limits.shared_bytes_block = card.shared_bytes_block;
  limits.shared_bytes_multiprocessor = card.shared_bytes_multiprocessor;
  return limits;
}

StreamedWeight weight(WeightKind kind, int runs, bool float_scales, int inputs, int outputs) {
  StreamedWeight weight;
  weight.kind = kind;
  weight.runs = runs;
  weight.float_scales = float_scales;
  weight.inputs = inputs;
  weight.strip_blocks = (inputs + kBlockInputs - 1) / kBlockInputs;
  weight.strips = (outputs + kStripOutputs - 1) / kStripOutputs;
  weight.block_bytes = block_bytes(kind, runs, float_scales, weight.strip_blocks);
  return weight;
}

std::vector<LinearPlan> plans_of(const Size& size, WeightKind kind, int runs, bool float_scales,
                                 int tokens, const DeviceLimits& limits) {
  const auto plan = [&](int inputs, int outputs) {
    return plan_linear(weight(kind, runs, float_scales, inputs, outputs), tokens, limits);
  };
  const WeightKind head = kind == WeightKind::single ? kind : WeightKind::half;
  return {plan(size.hidden, 3 * size.hidden), plan(size.hidden, size.hidden),
          plan(size.hidden, 2 * size.ffn), plan(size.ffn, size.hidden),
          plan_linear(weight(head, 1, false, size.hidden, 32000), tokens, limits)};
}

PassLayout layout_of(const Size& size, const std::vector<LinearPlan>& plans, int tokens,
                     const DeviceLimits& limits) {
  AttentionShape shape;
  shape.layers = 1;
  shape.heads = shape.kv_heads = size.heads;
  shape.head_dim = 128;
  return plan_pass(plans, tokens, shape, limits);
}

}  // namespace

TEST_CASE("plans: units can be copied, cover a strip, and do not cross a group") {
  for (const Card& card : kCards)
    for (const Size& size : kSizes)
      for (const WeightKind kind : {WeightKind::nibble, WeightKind::byte, WeightKind::half,
                                    WeightKind::bfloat, WeightKind::single})
        for (const int runs : {1, 2, 4})
          for (const bool float_scales : {false, true}) {
            CAPTURE(std::string(card.name));
            CAPTURE(std::string(size.name));
            CAPTURE(int(kind));
            CAPTURE(runs);
            const auto plans = [&](int tokens) {
              return plans_of(size, kind, runs, float_scales, tokens, limits_of(card));
            };
            const std::vector<LinearPlan> eight = plans(kStreamRows), one = plans(1);
            // Sums are the same for one token and for eight, so what they are made of is, too.
            for (std::size_t i = 0; i < one.size(); ++i) {
              CHECK(one[i].unit_pieces == eight[i].unit_pieces);
              CHECK(one[i].sum_units == eight[i].sum_units);
              CHECK(eight[i].sum_units == eight[i].strip_units());
              CHECK((one[i].groups == 1 || one[i].sum_units == one[i].strip_units()));
            }
            for (const int tokens : {1, kStreamRows})
              for (const LinearPlan& plan : tokens == 1 ? one : eight) {
                CHECK(plan.unit_pieces >= 1);
                CHECK(plan.group_blocks * plan.groups >= plan.shape.strip_blocks);
                CHECK(plan.group_blocks * (plan.groups - 1) < plan.shape.strip_blocks);
                CHECK(plan.groups <= card.multiprocessors);
                // Where a unit begins: in its group, and a group in its strip.
                CHECK(plan.unit_pieces * plan.piece_bytes % 16 == 0);
                CHECK(plan.group_blocks * plan.pieces * plan.piece_bytes % 16 == 0);
                CHECK(std::size_t(plan.shape.strip_blocks) * plan.shape.block_bytes % 16 == 0);
                CHECK(plan.strip_units() * plan.unit_pieces >= plan.group_blocks * plan.pieces);
              }
          }
}

TEST_CASE("plans: one row of an fp32 checkpoint keeps its ring where shared memory is 163 KB") {
  const DeviceLimits limits = limits_of(kCards[0]);
  for (const Size& size : {Size{"1b", 2048, 5632, 16}, kSizes[1]}) {
    CAPTURE(std::string(size.name));
    const auto plans = plans_of(size, WeightKind::single, 1, false, 1, limits);
    CHECK(layout_of(size, plans, 1, limits).slots >= kPassWarps);
  }
}

TEST_CASE("plans: shared memory is not exceeded, and the ring keeps what its users rely on") {
  for (const Card& card : kCards)
    for (const Size& size : kSizes)
      for (const WeightKind kind : {WeightKind::nibble, WeightKind::byte, WeightKind::half})
        for (const int tokens : {1, kStreamRows}) {
          CAPTURE(std::string(card.name));
          CAPTURE(std::string(size.name));
          CAPTURE(int(kind));
          CAPTURE(tokens);
          const DeviceLimits limits = limits_of(card);
          const std::vector<LinearPlan> plans = plans_of(size, kind, 1, false, tokens, limits);
          const PassLayout layout = layout_of(size, plans, tokens, limits);
          REQUIRE(layout.slots >= kPassWarps);  // every published size runs with one row and with 8
          CHECK(layout.bytes <= card.shared_bytes_block);
          CHECK(layout.bytes <= card.shared_bytes_multiprocessor - 1024);
          CHECK(layout.slots % 2 == 0);  // a slot is always the same feeding warp's
          for (const int under_way : {layout.under_way, layout.under_way_ahead}) {
            CHECK(under_way % 2 == 1);  // one feeding warp waits for the other's copies
            CHECK(2 * under_way <= layout.slots);
          }
          for (const LinearPlan& plan : plans) {
            CHECK(plan.unit_pieces * plan.piece_bytes <= layout.slot_bytes);
            CHECK(plan.strip_units() <= layout.strip_units);
          }
          // Nothing overlaps: the parts come in this order, the last behind the ring.
          const int ring = layout.slots * layout.slot_bytes;
          for (const int offset : {layout.records, layout.factors, layout.tail, layout.angles,
                                   layout.plans, layout.stages, layout.parts, layout.rows,
                                   layout.barriers, layout.freed, layout.begun}) {
            CHECK(offset >= ring);
            CHECK(offset % 16 == 0);
            CHECK(offset < layout.bytes);
          }
          CHECK(layout.factors - layout.records >= layout.records_bytes);
          CHECK(layout.angles - layout.factors >= 2 * tokens * int(sizeof(float)));
          CHECK(layout.rows - layout.tail >=
                layout.strip_units * 8 * tokens * int(sizeof(float) * 2));
          CHECK(layout.tail - layout.parts >=
                strip_slots(tokens) * layout.strip_units * 8 * tokens * int(sizeof(float) * 2));
          CHECK(layout.freed - layout.barriers >= 2 * 8 * (layout.slots + strip_slots(tokens)));
        }
}
