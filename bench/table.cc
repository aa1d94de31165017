#include "table.h"

#include <algorithm>
#include <string>

#include <fmt/format.h>

namespace bench {
namespace {

using nlohmann::json;

/// Of a ceiling that was measured; else 0.
double share(double value, double ceiling) { return ceiling > 0 ? value / ceiling : 0; }

double rate(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

double floor_seconds(const TokenRow& row, const Ceilings& ceilings) {
  if (row.sessions > 0) return ceilings.read > 0 ? row.bytes / ceilings.read : 0;
  return ceilings.multiply > 0 ? row.operations / ceilings.multiply : 0;
}

/// Three digits and a unit.
std::string time_text(double seconds) {
  const double size = std::abs(seconds);
  if (size < 1e-3) return fmt::format("{:.2f} us", seconds * 1e6);
  if (size < 1) return fmt::format("{:.3f} ms", seconds * 1e3);
  return fmt::format("{:.3f} s", seconds);
}
std::string bytes_text(double bytes) {
  return bytes < 1e9 ? fmt::format("{:.1f} MB", bytes / 1e6)
                     : fmt::format("{:.2f} GB", bytes / 1e9);
}
/// A percentage, or nothing where the ceiling was not measured.
std::string percent_text(double value, double ceiling) {
  return ceiling > 0 ? fmt::format("{:.1f}", 100 * value / ceiling) : "";
}

/// The rates that are compared with ceilings, as columns of both tables.
std::string reading_columns(double bytes, double seconds, const Ceilings& ceilings) {
  const double speed = rate(bytes, seconds);
  return fmt::format("{:7.0f} {:>6} {:>6}", speed / 1e9, percent_text(speed, ceilings.read),
                     percent_text(speed, ceilings.copy));
}
std::string multiplying_columns(double operations, double seconds, const Ceilings& ceilings) {
  const double speed = rate(operations, seconds);
  return fmt::format("{:7.1f} {:>6} {:>6}", speed / 1e12, percent_text(speed, ceilings.multiply),
                     "");
}
/// The least time, and what the row takes longer.
std::string loss_columns(double floor, double seconds) {
  if (floor == 0) return "";
  return fmt::format(" {:>10} {:>10}", time_text(floor), time_text(seconds - floor));
}

/// The row of a stage with so many rows at the least depth, or at the greatest.
const KernelRow* find(std::span<const KernelRow> kernels, const std::string& shape,
                      const char* stage, int rows, bool deepest) {
  const KernelRow* found = nullptr;
  for (const KernelRow& kernel : kernels)
    if (kernel.shape == shape && kernel.stage == stage && kernel.rows == rows &&
        (found == nullptr || (kernel.depth > found->depth) == deepest))
      found = &kernel;
  return found;
}

}  // namespace

std::optional<Loss> explain(const TokenRow& row, const ModelRows& model,
                            std::span<const KernelRow> kernels, const Ceilings& ceilings) {
  const auto row_of = [&](const char* stage, bool deepest = false) {
    return find(kernels, model.name, stage, row.sessions, deepest);
  };
  const KernelRow* shallow = row_of("attention");
  const KernelRow* deep = row_of("attention", true);
  const KernelRow* mlp = row_of("mlp");
  const KernelRow* head = row_of("head");
  if (row.sessions == 0 || !shallow || !mlp || !head || ceilings.read == 0) return {};

  const double layers = model.info.layers;
  constexpr int kStages = 5;
  const auto over_floor = [&](const KernelRow& kernel) {
    return kernel.median - floor_seconds(kernel, ceilings);
  };
  Loss loss;
  loss.boundaries = layers * (over_floor(*shallow) + over_floor(*mlp));
  loss.boundary = loss.boundaries / (layers * kStages);
  loss.head = over_floor(*head);
  // The cache at the row's depth lies on a line through the depths measured.
  if (deep->depth > shallow->depth)
    loss.attention = layers * (over_floor(*deep) - over_floor(*shallow)) *
                     (row.depth - shallow->depth) / (deep->depth - shallow->depth);
  loss.other =
      row.seconds - floor_seconds(row, ceilings) - loss.boundaries - loss.attention - loss.head;
  return loss;
}

void print_ceilings(const Ceilings& ceilings) {
  fmt::print("{}\n", ceilings.device);
  if (ceilings.read > 0) fmt::print("read {:.1f} GB/s", ceilings.read / 1e9);
  if (ceilings.copy > 0) fmt::print(" | copy {:.1f} GB/s", ceilings.copy / 1e9);
  if (ceilings.multiply > 0) fmt::print(" | fp16 {:.0f} TFLOP/s", ceilings.multiply / 1e12);
  fmt::print("\n");
  for (const Ceilings::Measured& way : ceilings.reads)
    fmt::print("  read by {:44} {:8.1f} GB/s\n", way.what, way.value / 1e9);
  for (const Ceilings::Measured& latency : ceilings.latencies)
    fmt::print("  {:52} {:8.2f} us\n", latency.what, latency.value * 1e6);
}

void print_kernels(std::span<const KernelRow> rows, const Ceilings& ceilings) {
  for (const bool prompt : {false, true}) {
    bool header = false;
    for (const KernelRow& row : rows) {
      if (row.prompt() != prompt) continue;
      if (!header)
        fmt::print("\n{:34} {:14} {:>9} {:>10} {:>10} {:>7} {:>6} {:>6} {:>10} {:>10}\n", "kernel",
                   "size", prompt ? "GFLOP" : "bytes", "median", "p90", prompt ? "TFLOP/s" : "GB/s",
                   prompt ? "%fp16" : "%read", prompt ? "" : "%copy", "floor", "loss");
      header = true;
      const std::string name =
          fmt::format("{} {} x{}, depth {}", row.shape, row.stage, row.rows, row.depth);
      const std::string columns = prompt ? multiplying_columns(row.operations, row.median, ceilings)
                                         : reading_columns(row.bytes, row.median, ceilings);
      fmt::print("{:34} {:14} {:>9} {:>10} {:>10} {}{}\n", name, row.size,
                 prompt ? fmt::format("{:.1f}", row.operations / 1e9) : bytes_text(row.bytes),
                 time_text(row.median), time_text(row.p90), columns,
                 loss_columns(floor_seconds(row, ceilings), row.median));
    }
  }
}

void print_tokens(const ModelRows& model, std::span<const KernelRow> kernels,
                  const Ceilings& ceilings) {
  const guanaco::ModelInfo& info = model.info;
  fmt::print("\n{}: {}; a token reads {} of weights and {:.3f} MB for each before it\n", model.name,
             info.device, bytes_text(double(info.bytes_per_token)),
             double(info.kv_bytes_per_token) / 1e6);
  fmt::print("loading {}, a process from start to first token {} (files in memory)\n",
             time_text(model.load), time_text(model.first_token));
  fmt::print("{:32} {:>9} {:>10} {:>7} {:>6} {:>6} {:>10} {:>10} {:>9} {:>9}\n", "tokens",
             "tokens/s", "time", "GB/s", "%read", "%copy", "floor", "loss", "host", "cpu");
  double decoding = 0, reading = 0;
  bool prompts = false;
  for (const TokenRow& row : model.rows) {
    const bool prompt = row.sessions == 0;
    const double speed = rate(row.tokens, row.seconds);
    if (decoding == 0 && !prompt) decoding = speed;
    if (prompt && row.tokens == 128) reading = speed;
    if (prompt && !prompts)
      fmt::print("{:32} {:>9} {:>10} {:>7} {:>6}\n", "", "", "", "TFLOP/s", "%fp16");
    prompts |= prompt;
    const std::string loss = loss_columns(floor_seconds(row, ceilings), row.seconds);
    fmt::print("{:32} {:9.1f} {:>10} {}{:22}", row.what, speed, time_text(row.seconds),
               prompt ? multiplying_columns(row.operations, row.seconds, ceilings)
                      : reading_columns(row.bytes, row.seconds, ceilings),
               loss);
    if (!prompt)
      fmt::print(" {:>9} {:>9}", row.host > 0 ? time_text(row.host) : "", time_text(row.cpu));
    fmt::print("\n");
    if (const auto parts = explain(row, model, kernels, ceilings))
      fmt::print(
          "    loss in ms = boundaries {:.3f} ({:.2f} us each) + attention {:.3f} + head {:.3f} + "
          "other {:.3f}\n",
          parts->boundaries * 1e3, parts->boundary * 1e6, parts->attention * 1e3, parts->head * 1e3,
          parts->other * 1e3);
  }
  if (decoding > 0 && reading > 0)
    fmt::print("a prompt of 128 runs at {:.1f} x the per-token speed of decoding\n",
               reading / decoding);
}

json to_json(const Ceilings& ceilings) {
  json all = {{"device", ceilings.device}, {"read", ceilings.read},
              {"copy", ceilings.copy},     {"multiply", ceilings.multiply},
              {"reads", json::object()},   {"latencies", json::object()}};
  for (const Ceilings::Measured& way : ceilings.reads) all["reads"][way.what] = way.value;
  for (const Ceilings::Measured& latency : ceilings.latencies)
    all["latencies"][latency.what] = latency.value;
  return all;
}

json to_json(const KernelRow& row, const Ceilings& ceilings) {
  const double floor = floor_seconds(row, ceilings);
  return {{"shape", row.shape},
          {"stage", row.stage},
          {"size", row.size},
          {"rows", row.rows},
          {"depth", row.depth},
          {"bytes", row.bytes},
          {"operations", row.operations},
          {"least", row.least},
          {"median", row.median},
          {"p90", row.p90},
          {"floor", floor},
          {"share_of_floor", rate(floor, row.median)},
          {"share_of_read", share(rate(row.bytes, row.median), ceilings.read)}};
}

json to_json(const ModelRows& model, std::span<const KernelRow> kernels, const Ceilings& ceilings) {
  json all = {{"name", model.name},
              {"device", model.info.device},
              {"bytes_per_token", model.info.bytes_per_token},
              {"kv_bytes_per_token", model.info.kv_bytes_per_token},
              {"load", model.load},
              {"first_token", model.first_token},
              {"rows", json::array()}};
  for (const TokenRow& row : model.rows) {
    const double floor = floor_seconds(row, ceilings);
    json each = {{"what", row.what},       {"tokens", row.tokens},
                 {"seconds", row.seconds}, {"tokens_per_second", rate(row.tokens, row.seconds)},
                 {"floor", floor},         {"share_of_floor", rate(floor, row.seconds)}};
    if (row.sessions > 0) {
      each.update({{"sessions", row.sessions},
                   {"mean_depth", row.depth},
                   {"bytes", row.bytes},
                   {"bytes_per_second", rate(row.bytes, row.seconds)},
                   {"host", row.host},
                   {"cpu", row.cpu}});
      if (const auto parts = explain(row, model, kernels, ceilings))
        each["loss"] = {{"boundaries", parts->boundaries},
                        {"boundary", parts->boundary},
                        {"attention", parts->attention},
                        {"head", parts->head},
                        {"other", parts->other}};
    } else {
      each["operations"] = row.operations;
    }
    all["rows"].push_back(std::move(each));
  }
  return all;
}

}  // namespace bench
