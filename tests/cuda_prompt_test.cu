// The CUDA path for many rows, kernel by kernel against fp64 on the host. Needs a GPU; without one
// it says [skipped].
//
// Outputs are filled with NaN first, so that what is not written, or read before it is written, is
// found.

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_prompt_fixture.cuh"

using namespace guanaco::cuda;

namespace {

struct Kind {
  const char* name;
  WeightKind kind;
  int runs;
  bool float_scales;
};
const Kind kKinds[] = {
    {"nibble", WeightKind::nibble, 1, false},
    {"nibble, 2 runs", WeightKind::nibble, 2, false},
    {"nibble, 4 runs", WeightKind::nibble, 4, false},
    {"nibble, fp32 scales", WeightKind::nibble, 1, true},
    {"nibble, 4 runs, fp32", WeightKind::nibble, 4, true},
    {"byte", WeightKind::byte, 1, false},
    {"byte, 2 runs", WeightKind::byte, 2, false},
    {"byte, 4 runs, fp32 scales", WeightKind::byte, 4, true},
    {"half", WeightKind::half, 1, false},
    {"bfloat", WeightKind::bfloat, 1, false},
    {"single", WeightKind::single, 1, false},
};

/// Largest row-wise relative L2 error of `found` against `wanted`; NaN if anything is NaN.
double row_error(const std::vector<float>& found, const std::vector<double>& wanted, int rows) {
  REQUIRE(found.size() == wanted.size());
  const std::size_t columns = wanted.size() / std::size_t(rows);
  double worst = 0;
  for (int r = 0; r < rows; ++r) {
    double error = 0, norm = 0;
    for (std::size_t i = r * columns; i < (r + 1) * columns; ++i) {
      error += (found[i] - wanted[i]) * (found[i] - wanted[i]);
      norm += wanted[i] * wanted[i];
    }
    const double relative = std::sqrt(error / std::max(norm, 1e-300));
    if (!(relative <= worst)) worst = relative;
  }
  return worst;
}

std::vector<double> rms_normed(const std::vector<float>& x, int inputs,
                               const std::vector<float>& norm, float epsilon) {
  std::vector<double> out(x.begin(), x.end());
  for (std::size_t at = 0; at < x.size(); at += inputs) {
    double squares = 0;
    for (int i = 0; i < inputs; ++i) squares += double(x[at + i]) * x[at + i];
    const double factor = 1 / std::sqrt(squares / inputs + epsilon);
    for (int i = 0; i < inputs; ++i) out[at + i] *= factor * norm[i];
  }
  return out;
}

}  // namespace

TEST_CASE("prompt input: rows become fp16 in packed order with their own power of two") {
  for (const bool permuted : {false, true})
    for (const bool normed : {false, true}) {
      CAPTURE(permuted);
      CAPTURE(normed);
      const int rows = 7, inputs = 300, blocks = 4, packed = blocks * kBlockInputs;
      Random random(1);
      std::vector<float> x = random.normal(rows * inputs), norm = random.normal(inputs);
      for (int i = 0; i < inputs; ++i) {
        x[1 * inputs + i] = 0;        // a row of zeros
        x[2 * inputs + i] *= 1e15f;   // beyond fp16
        x[3 * inputs + i] *= 1e-30f;  // below it
        x[4 * inputs + i] *= 1e-39f;  // subnormal
      }
      x[5 * inputs] = 5e4f;  // an outlier
      std::vector<int> order(packed, -1);
      std::iota(order.begin(), order.begin() + inputs, 0);
      if (permuted) std::shuffle(order.begin(), order.end(), random.engine);
      const auto device_order = upload(order);
      StreamedWeight weight;
      weight.inputs = inputs;
      weight.strip_blocks = blocks;
      weight.order = permuted ? device_order.as<int>() : nullptr;
      const auto input = upload(x), device_norm = upload(norm);
      const auto out = poisoned(rows * packed * sizeof(__half) + 64),
                 factors = poisoned(rows * sizeof(float));
      const float epsilon = 1e-6f;
      prompt_input(input.as<float>(), normed ? device_norm.as<float>() : nullptr, epsilon, weight,
                   rows, out.as<__half>(), factors.as<float>(), nullptr);
      const auto halves = download<__half>(out, rows * packed + 32);
      const auto factor = download<float>(factors, rows);
      const std::vector<double> wanted =
          normed ? rms_normed(x, inputs, norm, epsilon) : std::vector<double>(x.begin(), x.end());
      int wrong = 0;
      for (int r = 0; r < rows; ++r) {
        double most = 0;
        for (int p = 0; p < packed; ++p)
          most = std::max(most, std::abs(double(__half2float(halves[r * packed + p]))));
        if (r != 1 && r != 4) CHECK(most >= 128);
        CHECK(most <= 256);
        for (int p = 0; p < packed; ++p) {
          const float half = __half2float(halves[r * packed + p]);
          if (order[p] < 0) {
            CHECK(half == 0.0f);
            continue;
          }
          const double want = wanted[r * inputs + order[p]], got = double(half) * factor[r];
          // Half an ulp of fp16, of its smallest step, and what fp32 loses of the norm.
          const double bound =
              std::abs(want) * (0x1p-11 + 1e-6) + double(factor[r]) * 0x1p-25 + 1e-44;
          if (!(std::abs(got - want) <= bound)) ++wrong;
        }
      }
      CHECK(wrong == 0);
      for (int i = 0; i < 32; ++i) CHECK(std::isnan(__half2float(halves[rows * packed + i])));
    }
}

TEST_CASE("dequantise: every kind gives the rounded weights in strip order") {
  for (const Kind& kind : kKinds)
    for (const int blocks : {1, 2, 3, 8}) {
      CAPTURE(kind.name);
      CAPTURE(blocks);
      const PackedWeight packed(5, blocks, kind.kind, kind.runs, kind.float_scales, 11);
      const int columns = blocks * kBlockInputs;
      for (const auto& [first, count] : {std::pair(0, 5), std::pair(1, 3), std::pair(4, 1)}) {
        const int elements = count * kStripOutputs * columns;
        const auto panel = poisoned(elements * sizeof(__half) + 64);
        dequantise(packed.weight, first, count, panel.as<__half>(), nullptr);
        const auto halves = download<__half>(panel, elements + 32);
        int wrong = 0;
        for (int i = 0; i < elements; ++i) {
          const double exact = packed.values[std::size_t(first) * kStripOutputs * columns + i];
          const double want = __half2float(__double2half(std::clamp(exact, -65504.0, 65504.0)));
          const double got = __half2float(halves[i]);
          // fp32 scales are rounded twice: to fp32, then to fp16.
          const double bound =
              kind.float_scales ? std::abs(exact) * (0x1p-11 + 0x1p-23) + 0x1p-25 : -1;
          if (!(got == want || std::abs(got - exact) <= bound)) ++wrong;
        }
        CHECK(wrong == 0);
        for (int i = 0; i < 32; ++i) CHECK(std::isnan(__half2float(halves[elements + i])));
      }
    }
}

TEST_CASE("gemm: products agree with fp64 and a row does not depend on the values of other rows") {
  Gemm gemm;
  for (const auto& [rows, outputs, inputs] :
       {std::tuple(9, 48, 128), std::tuple(33, 256, 384), std::tuple(77, 1040, 640),
        std::tuple(200, 128, 1024)}) {
    CAPTURE(rows);
    gemm.prepare(rows, outputs, inputs);
    Random random(2);
    std::vector<__half> x(rows * inputs), w(outputs * inputs);
    for (__half& value : x) value = __float2half(random.normal());
    for (__half& value : w) value = __float2half(random.normal() * 0.02f);
    const auto device_w = upload(w);
    const auto run = [&] {
      const auto device_x = upload(x);
      const auto y = poisoned(rows * outputs * sizeof(float));
      gemm.multiply(device_x.as<__half>(), device_w.as<__half>(), y.as<float>(), rows, outputs,
                    inputs, nullptr);
      return download<float>(y, rows * outputs);
    };
    const std::vector<float> first = run();
    std::vector<double> wanted(rows * outputs);
    for (int r = 0; r < rows; ++r)
      for (int o = 0; o < outputs; ++o)
        for (int i = 0; i < inputs; ++i)
          wanted[r * outputs + o] +=
              double(__half2float(x[r * inputs + i])) * double(__half2float(w[o * inputs + i]));
    CHECK(row_error(first, wanted, rows) <= 1e-5);
    CHECK(run() == first);
    for (int i = inputs; i < rows * inputs; ++i) x[i] = __float2half(random.normal() * 100);
    const std::vector<float> other = run();
    CHECK(std::memcmp(first.data(), other.data(), outputs * sizeof(float)) == 0);
  }
}

TEST_CASE("prompt attention input: queries are rotated and K and V appended to their pages") {
  for (const int head_dim : {16, 80, 128}) {
    CAPTURE(head_dim);
    const AttentionShape shape{.layers = 3, .heads = 6, .kv_heads = 2, .head_dim = head_dim};
    const int rows = 45, layer = 1, half = head_dim / 2,
              all_heads = shape.heads + 2 * shape.kv_heads;
    const int strips = all_heads * head_dim / kStripOutputs, outputs = strips * kStripOutputs;
    Random random(3);
    const std::vector<float> products = random.normal(rows * outputs),
                             bias = random.normal(outputs);
    const std::vector<float> factors = random.normal(rows);
    const Sequence sequence(shape, 128);  // rows at positions 17 to 61
    const auto pass = PassFixture(shape, {{&sequence, 17, rows}}, random);
    const auto query = poisoned(rows * shape.heads * head_dim * sizeof(float));
    const auto device_factors = upload(factors), device_bias = upload(bias);
    const AttentionInput out{shape, layer, pass.rows, query.as<float>()};
    for (const auto& [first, count] : {std::pair(0, 3), std::pair(3, strips - 3)}) {
      std::vector<float> part;
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < count * kStripOutputs; ++i)
          part.push_back(products[r * outputs + first * kStripOutputs + i]);
      const auto device_part = upload(part);
      prompt_attention_input(device_part.as<float>(), device_factors.as<float>(),
                             device_bias.as<float>(), first, count, rows, out, nullptr);
      check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    }
    const auto found_query = download<float>(query, rows * shape.heads * head_dim);
    const std::vector<__half> pages = sequence.download();
    std::vector<double> wanted(found_query.size());
    int wrong = 0, untouched = 0;
    for (int r = 0; r < rows; ++r)
      for (int head = 0; head < all_heads; ++head)
        for (int d = 0; d < head_dim; ++d) {
          const auto y = [&](int i) {
            const int at = head * head_dim + i;
            return double(products[r * outputs + at]) * factors[r] + bias[at];
          };
          double value;
          if (head >= shape.heads + shape.kv_heads) {
            value = y(d);
          } else {  // dimension d of a rotary head is row d % 8 or 8 + d % 8 of strip d % half / 8
            const int pair = d % half, at = pair / 8 * kStripOutputs + pair % 8;
            const float2 angle = pass.host_angles[r * half + pair];
            value = d < half ? y(at) * angle.x - y(at + 8) * angle.y
                             : y(at + 8) * angle.x + y(at) * angle.y;
          }
          if (head < shape.heads) {
            wanted[(r * shape.heads + head) * head_dim + d] = value;
          } else {
            const double got =
                __half2float(pages[sequence.element(layer, head - shape.heads, 17 + r, d)]);
            if (!(std::abs(got - value) <= std::abs(value) * 0x1p-11 + 1e-5)) ++wrong;
          }
        }
    CHECK(row_error(found_query, wanted, rows) <= 1e-6);
    CHECK(wrong == 0);
    for (const __half value : pages)
      if (std::isnan(__half2float(value))) ++untouched;
    CHECK(untouched == int(pages.size()) - rows * 2 * shape.kv_heads * head_dim);
  }
}

TEST_CASE("prompt epilogues: residual, SwiGLU and logits") {
  const int rows = 19, strips = 37, outputs = strips * kStripOutputs, first = 5;
  const int all = first * kStripOutputs + outputs;
  Random random(4);
  const std::vector<float> products = random.normal(rows * outputs), factors = random.normal(rows),
                           bias = random.normal(all);
  const auto device_products = upload(products), device_factors = upload(factors),
             device_bias = upload(bias);
  const auto y = [&](int r, int i, bool biased) {
    return double(products[r * outputs + i]) * factors[r] +
           (biased ? bias[first * kStripOutputs + i] : 0.0f);
  };
  for (const bool biased : {false, true}) {
    const float* add = biased ? device_bias.as<float>() : nullptr;
    const int hidden = all - 4;  // as padded outputs
    const std::vector<float> residual = random.normal(rows * hidden);
    const auto device_residual = upload(residual),
               logits = poisoned(rows * (all - 5) * sizeof(float));
    prompt_residual(device_products.as<float>(), device_factors.as<float>(), add, first, strips,
                    rows, device_residual.as<float>(), hidden, nullptr);
    prompt_logits(device_products.as<float>(), device_factors.as<float>(), add, first, strips, rows,
                  logits.as<float>(), all - 5, nullptr);
    std::vector<double> wanted(residual.begin(), residual.end());
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < outputs - 4; ++i)
        wanted[r * hidden + first * kStripOutputs + i] += y(r, i, biased);
    CHECK(row_error(download<float>(device_residual, rows * hidden), wanted, rows) <= 1e-6);
    const auto found = download<float>(logits, rows * (all - 5));
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < all - 5; ++i) {
        const float got = found[r * (all - 5) + i];
        const int at = i - first * kStripOutputs;
        const bool right =
            at < 0 ? std::isnan(got)
                   : std::abs(got - y(r, at, biased)) <= 1e-6 * (1 + std::abs(y(r, at, biased)));
        if (!right) FAIL_CHECK("logit " << i << " of row " << r << " is " << got);
      }

    const int ffn = all / 2;
    const auto mlp = poisoned(rows * ffn * sizeof(float));
    prompt_mlp_input(device_products.as<float>(), device_factors.as<float>(), add, first, strips,
                     rows, mlp.as<float>(), ffn, nullptr);
    const auto swish = download<float>(mlp, rows * ffn);
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < ffn; ++i) {
        const int at = i - first * 8;
        const float got = swish[r * ffn + i];
        if (at < 0) {
          if (!std::isnan(got)) FAIL_CHECK("output " << i << " of row " << r << " was written");
          continue;
        }
        const double gate = y(r, at / 8 * 16 + at % 8, biased),
                     up = y(r, at / 8 * 16 + at % 8 + 8, biased);
        const double want = gate / (1 + std::exp(-gate)) * up;
        if (!(std::abs(got - want) <= 2e-6 * (1 + std::abs(want))))
          FAIL_CHECK("output " << i << " is " << got << " for " << want);
      }
  }
}

TEST_CASE("prompt linear: norm and order and panels together agree with fp64 for every kind") {
  for (const Kind& kind : kKinds)
    for (const int rows : {9, 61}) {
      CAPTURE(kind.name);
      CAPTURE(rows);
      const int strips = 21, blocks = 3, inputs = 340, packed = blocks * kBlockInputs,
                outputs = strips * kStripOutputs;
      PackedWeight weight(strips, blocks, kind.kind, kind.runs, kind.float_scales, 7);
      Random random(5);
      std::vector<int> order(packed, -1);
      std::iota(order.begin(), order.begin() + inputs, 0);
      std::shuffle(order.begin(), order.end(), random.engine);
      const auto device_order = upload(order);
      weight.weight.inputs = inputs;
      weight.weight.order = device_order.as<int>();
      const std::vector<float> x = random.normal(rows * inputs), norm = random.normal(inputs);
      const auto input = upload(x), device_norm = upload(norm);
      // Room for 5 strips, so that there are several panels and a last one that is smaller.
      PromptScratch scratch(rows, packed, 5 * kStripOutputs * packed * sizeof(__half));
      const auto y = upload(std::vector<float>(rows * outputs, 0.0f));
      const Stream stream = make_stream();
      int panels = 0;
      prompt_linear(
          scratch, input.as<float>(), device_norm.as<float>(), 1e-6f, weight.weight, rows,
          [&](const float* products, const float* factors, int first, int count) {
            prompt_residual(products, factors, nullptr, first, count, rows, y.as<float>(), outputs,
                            stream);
            ++panels;
          },
          stream);
      check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
      CHECK(panels == 5);
      const std::vector<double> normed = rms_normed(x, inputs, norm, 1e-6f);
      std::vector<double> wanted(rows * outputs);
      for (int r = 0; r < rows; ++r)
        for (int o = 0; o < outputs; ++o)
          for (int p = 0; p < packed; ++p)
            if (order[p] >= 0)
              wanted[r * outputs + o] +=
                  normed[r * inputs + order[p]] * weight.values[o * packed + p];
      CHECK(row_error(download<float>(y, rows * outputs), wanted, rows) <= 1e-3);
    }
}

TEST_CASE(
    "attend prompt: agrees with fp64 and does not depend on how a prompt is cut into passes") {
  struct Case {
    int heads, kv_heads, head_dim;
    std::vector<int> first, count;  // of each sequence
    int multiprocessors;            // few: tiles of 128 rows
  };
  for (const Case& test :
       {Case{2, 2, 128, {0}, {130}, 1000}, Case{2, 2, 128, {0, 37, 5}, {257, 150, 1}, 1},
        Case{4, 2, 64, {100, 0}, {70, 3}, 1}, Case{2, 1, 16, {31}, {34}, 1},
        Case{6, 2, 80, {64, 63}, {64, 65}, 1}, Case{2, 1, 256, {20, 0}, {77, 33}, 1},
        Case{1, 1, 160, {0}, {64}, 1}}) {
    CAPTURE(test.head_dim);
    CAPTURE(test.multiprocessors);
    const AttentionShape shape{
        .layers = 2, .heads = test.heads, .kv_heads = test.kv_heads, .head_dim = test.head_dim};
    const int layer = 1, width = shape.heads * shape.head_dim;
    DeviceLimits limits = device_limits();
    limits.multiprocessors = test.multiprocessors;
    Random random(6);
    std::vector<Sequence> sequences;
    sequences.reserve(test.first.size());
    std::vector<PassFixture::Part> parts, early, late;
    int rows = 0;
    for (std::size_t i = 0; i < test.first.size(); ++i) {
      // Behind the last position everything is NaN.
      sequences.emplace_back(shape, test.first[i] + test.count[i]);
      sequences.back().fill(random, test.first[i] + test.count[i]);
      parts.push_back({&sequences.back(), test.first[i], test.count[i]});
      rows += test.count[i];
    }
    std::vector<float> query = random.normal(rows * width);
    for (float& value : query) value *= 3;  // attention that is neither flat nor a single key
    for (int i = 0; i < width; ++i) {
      query[i] = 0;
      if (rows > 2) query[2 * width + i] *= 1e5f;  // beyond fp16
    }
    const auto attend_parts = [&](const std::vector<PassFixture::Part>& some, const float* from,
                                  int some_rows) {
      const PassFixture pass(shape, some, random);
      const auto device_query =
          upload(std::vector<float>(from, from + std::size_t(some_rows) * width));
      const auto attended = poisoned(std::size_t(some_rows) * width * sizeof(float));
      attend_prompt(device_query.as<float>(), shape, layer, pass.rows, pass.segments.as<int4>(),
                    int(some.size()), pass.most_rows, attended.as<float>(), limits, nullptr);
      return download<float>(attended, std::size_t(some_rows) * width);
    };
    const std::vector<float> found = attend_parts(parts, query.data(), rows);

    std::vector<double> wanted(std::size_t(rows) * width);
    int row = 0;
    for (const PassFixture::Part& part : parts) {
      const std::vector<__half> pages = part.sequence->download();
      for (int r = 0; r < part.count; ++r, ++row)
        for (int head = 0; head < shape.heads; ++head) {
          const int kv_head = head / (shape.heads / shape.kv_heads), seen = part.first + r + 1;
          const std::size_t origin = std::size_t(row) * width + std::size_t(head) * shape.head_dim;
          const auto element = [&](int which, int position, int d) {
            return double(__half2float(pages[part.sequence->element(
                layer, which * shape.kv_heads + kv_head, position, d)]));
          };
          std::vector<double> score(seen);
          for (int p = 0; p < seen; ++p) {
            for (int d = 0; d < shape.head_dim; ++d)
              score[p] += query[origin + d] * element(0, p, d);
            score[p] /= std::sqrt(double(shape.head_dim));
          }
          const double largest = *std::max_element(score.begin(), score.end());
          double sum = 0;
          for (double& s : score) sum += s = std::exp(s - largest);
          for (int p = 0; p < seen; ++p)
            for (int d = 0; d < shape.head_dim; ++d)
              wanted[origin + d] += score[p] / sum * element(1, p, d);
        }
    }
    // Row 2's scores are far beyond what a rounded query can order; all that is asked is that they
    // are finite.
    std::vector<float> compared = found;
    if (rows > 2)
      for (int i = 2 * width; i < 3 * width; ++i) {
        if (!std::isfinite(found[i])) FAIL_CHECK("value " << i << " is " << found[i]);
        compared[i] = float(wanted[i]);
      }
    CHECK(row_error(compared, wanted, rows) <= 2e-3);

    // The first sequence in two passes, whose tiles have other rows and sizes.
    const int cut = std::min(41, test.count[0] - 1);
    early = {{parts[0].sequence, parts[0].first, cut}};
    late = {{parts[0].sequence, parts[0].first + cut, parts[0].count - cut}};
    limits.multiprocessors = 1000;
    std::vector<float> sliced = attend_parts(early, query.data(), cut);
    const std::vector<float> rest =
        attend_parts(late, query.data() + std::size_t(cut) * width, parts[0].count - cut);
    sliced.insert(sliced.end(), rest.begin(), rest.end());
    CHECK(std::memcmp(sliced.data(), found.data(), sliced.size() * sizeof(float)) == 0);
  }
}

int main(int arguments, char** values) {
  doctest::Context context(arguments, values);
  int devices = 0;
  const bool lists = arguments > 1 && std::string_view(values[1]).starts_with("--list");
  if (!lists && (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)) {
    std::puts("[skipped] no CUDA device");
    return 0;
  }
  return context.run();
}
