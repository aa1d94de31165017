#include <algorithm>
#include <utility>

#include "checkpoint/checkpoint.h"
#include "support/check.h"

namespace guanaco {
namespace {

/// Counts the bytes read, and lets the caller give up.
class Progress {
 public:
  Progress(const std::function<bool(std::uint64_t, std::uint64_t)>& callback, std::uint64_t total)
      : callback_(callback), total_(total) {}

  void add(std::uint64_t bytes) {
    done_ += bytes;
    require(!callback_ || callback_(done_, total_), ErrorCode::cancelled, "loading was cancelled");
  }

 private:
  const std::function<bool(std::uint64_t, std::uint64_t)>& callback_;
  std::uint64_t total_, done_ = 0;
};

/// The linears of a checkpoint, and those of them that are quantised, to be amended.
struct Linears {
  std::vector<Linear*> all;
  std::vector<GptqLinear*> gptq;

  Linears(std::vector<LayerTensors>& layers, Linear& head) {
    for (LayerTensors& layer : layers)
      for (Linear* linear : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate,
                             &layer.up, &layer.down})
        all.push_back(linear);
    all.push_back(&head);
    for (Linear* linear : all)
      if (auto* quantised = std::get_if<GptqLinear>(linear)) gptq.push_back(quantised);
  }
};

StoredTensor& bias_of(Linear& linear) {
  return std::visit([](auto& l) -> StoredTensor& { return l.bias; }, linear);
}

std::uint64_t bytes_of(const StoredTensor& tensor) { return tensor ? tensor.entry->bytes : 0; }

/// Drops every g_idx that says no more than k / group_size, so that later stages see act-order
/// only where it is.
void settle_order(const Linears& linears, const QuantizationConfig& settings, bool claims_act_order,
                  LoadReport& report, Progress& progress) {
  int none = 0, neighbours = 0, zeros = 0, act_order = 0;
  for (GptqLinear* linear : linears.gptq) {
    if (!linear->g_idx) {
      none += linear->groups > 1;
      continue;
    }
    const std::vector<std::int32_t> group = read_group_index(*linear);
    progress.add(bytes_of(linear->g_idx));
    if (has_neighbouring_groups(group, linear->group_size)) {
      neighbours += linear->groups > 1;
      linear->g_idx = {};
    } else if (std::all_of(group.begin(), group.end(), [](std::int32_t g) { return g == 0; })) {
      ++zeros;
      linear->g_idx = {};
    } else {
      ++act_order;
    }
  }
  const auto count = [](int n) { return n == 1 ? "1 linear" : fmt::format("{} linears", n); };
  if (none > 0)
    report.decisions.push_back("no g_idx in " + count(none) +
                               ": input row k is in group k / group size");
  if (neighbours > 0)
    report.decisions.push_back("g_idx of " + count(neighbours) +
                               " says k / group size: groups are neighbours");
  if (zeros > 0)
    report.warnings.push_back("g_idx of " + count(zeros) +
                              " is all zero though there are several groups: a dummy, read as k / "
                              "group size");
  if (zeros > 0 && claims_act_order)
    report.warnings.push_back(
        "this file claims act-order, has groups, and has a g_idx that is a dummy: if the text is "
        "gibberish, the order was lost when the file was made");
  if (act_order > 0)
    report.decisions.push_back("act-order in " + count(act_order) +
                               ": g_idx says which group an input row is in");
  if (act_order > 0 && !settings.act_order.value_or(true))
    report.warnings.push_back(settings.origin +
                              " says desc_act false, but g_idx is in act-order: "
                              "g_idx is obeyed");
  if (neighbours > 0 && act_order == 0 && settings.act_order.value_or(false))
    report.decisions.push_back(settings.origin +
                               " says desc_act true, and the groups are neighbours: static groups");
}

/// v1 or v2 if every zero point of the checkpoint is the middle of its range, stored as one of them
/// stores it: then the file is symmetric and tells its version itself (reference/formats.md 1.4).
ZeroPoints uniform_version(const Linears& linears, Progress& progress) {
  bool v1 = true, v2 = true;
  for (const GptqLinear* linear : linears.gptq) {
    const std::uint32_t middle = 1u << (linear->bits - 1);
    v1 = v1 && has_uniform_zeros(*linear, middle - 1);
    v2 = v2 && has_uniform_zeros(*linear, middle);
    if (!v1 && !v2) return ZeroPoints::automatic;
    progress.add(bytes_of(linear->qzeros));
  }
  return v1 ? ZeroPoints::v1 : ZeroPoints::v2;
}

void settle_zero_points(const Linears& linears, const QuantizationConfig& settings,
                        ZeroPoints asked_for, LoadReport& report, Progress& progress) {
  if (linears.gptq.empty() || asked_for != ZeroPoints::automatic) return;
  const ZeroPoints label =
      settings.zero_points == ZeroPoints::automatic ? ZeroPoints::v1 : settings.zero_points;
  const ZeroPoints data = uniform_version(linears, progress);
  const ZeroPoints version = data == ZeroPoints::automatic ? label : data;
  const auto name = [](ZeroPoints z) { return z == ZeroPoints::v2 ? "v2" : "v1"; };
  if (data != ZeroPoints::automatic && data != label)
    report.warnings.push_back(
        fmt::format("labelled as zero points {}, but every one is the middle as {} stores it: "
                    "read as {}",
                    name(label), name(data), name(data)));
  else if (data != ZeroPoints::automatic)
    report.decisions.push_back(fmt::format(
        "every zero point is the middle of its range: symmetric, {} confirmed", name(data)));
  else if (settings.symmetric.value_or(false))
    report.warnings.push_back(settings.origin +
                              " says sym true, but zero points differ: used as stored");
  for (GptqLinear* linear : linears.gptq) linear->zero_points = version;
}

/// Early tools wrote a bias of zeros for every linear.
void settle_biases(const Linears& linears, const LlamaConfig& config, LoadReport& report,
                   Progress& progress) {
  int dropped = 0, kept = 0;
  for (Linear* linear : linears.all) {
    StoredTensor& bias = bias_of(*linear);
    if (!bias) continue;
    const std::vector<float> values = bias.read_floats();
    progress.add(bytes_of(bias));
    const bool zero = std::all_of(values.begin(), values.end(), [](float v) { return v == 0; });
    if (zero) bias = {};
    ++(zero ? dropped : kept);
  }
  if (dropped > 0)
    report.decisions.push_back(fmt::format("dropped {} biases that are entirely zero", dropped));
  if (kept > 0 && !config.attention_bias && !config.mlp_bias)
    report.warnings.push_back(
        fmt::format("{} biases are not zero, though none are declared: they are used", kept));
}

}  // namespace

void Checkpoint::settle(const std::function<bool(std::uint64_t, std::uint64_t)>& progress) {
  // Amended copies replace the originals once nothing can fail any more.
  std::vector<LayerTensors> settled_layers = layers;
  Linear settled_head = head;
  LoadReport settled_report = report;
  const Linears linears(settled_layers, settled_head);

  std::uint64_t total = 0;
  for (Linear* linear : linears.all) total += bytes_of(bias_of(*linear));
  for (const GptqLinear* linear : linears.gptq)
    total += bytes_of(linear->g_idx) + bytes_of(linear->qzeros);
  Progress counted(progress, total);
  settle_order(linears, settings_, claims_act_order_, settled_report, counted);
  settle_zero_points(linears, settings_, asked_for_, settled_report, counted);
  settle_biases(linears, config, settled_report, counted);

  layers = std::move(settled_layers);
  head = std::move(settled_head);
  report = std::move(settled_report);
  summarise(true);
}

}  // namespace guanaco
