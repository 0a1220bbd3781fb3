// Checks the core without Python, for machines that only an emulator runs. Checks gradients against differences of the
// loss and against the scalar level, equal results on any number of threads, cached decoding, a toy task, and the bits
// of products. Prints a hash of the initial parameters, which must be the same on every machine, and one of rounded
// products. Arguments: the levels to check, else all.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/isa.h"
#include "base/parallel.h"
#include "model/blocks/block.h"
#include "model/decoder.h"
#include "model/optimizers/adamw.h"
#include "model/transformer.h"
#include "ops/ops.h"

namespace {

using soma::Transformer;

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (!condition) ++failures;
  std::printf("%s %s\n", condition ? "ok  " : "FAIL", what.c_str());
}

soma::ModelConfig tiny(const char* block) {
  return {/*vocab_size=*/13,
          /*d_model=*/24,
          /*n_layers=*/2,
          /*n_heads=*/3,
          /*d_ff=*/40,
          /*max_seq_len=*/11,
          &soma::find_block(block),
          /*tied_head=*/soma::find_block(block).traits.ties_head,
          soma::find_block(block).traits.activations[0],
          /*scale_attn_weights=*/true,
          /*scale_attn_by_inverse_layer_idx=*/false};
}

// The sequence 0, 3, 6, ... modulo the vocabulary, with another start in each row: easy to learn.
struct Batch {
  int64_t rows = 5, length = 11;
  std::vector<int32_t> ids, targets;
  explicit Batch(int64_t vocab) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < length; ++t) {
        ids.push_back(static_cast<int32_t>((2 * r + 3 * t) % vocab));
        targets.push_back(static_cast<int32_t>((2 * r + 3 * (t + 1)) % vocab));
      }
    }
  }
};

double loss(Transformer& model, const Batch& b) {
  return model.loss(b.ids.data(), b.targets.data(), b.rows, b.length, 0);
}

double loss_and_grad(Transformer& model, const Batch& b) {
  return model.loss_and_grad(b.ids.data(), b.targets.data(), b.rows, b.length, 0);
}

// FNV-1a (Fowler, Noll, Vo) over the bytes of n floats.
uint64_t hash_floats(const float* x, int64_t n, uint64_t hash = 14695981039346656037ull) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, x + i, sizeof(bits));
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((bits >> shift) & 255u)) * 1099511628211ull;
  }
  return hash;
}

// Hashes all parameters in the order of the plan.
uint64_t hash_parameters(Transformer& model) {
  uint64_t hash = hash_floats(nullptr, 0);
  for (const soma::ParameterInfo& info : model.parameter_infos()) {
    hash = hash_floats(model.values() + info.offset, info.size(), hash);
  }
  return hash;
}

// For a step along the gradient g, (loss(p + h g) - loss(p - h g)) / 2h is |g|^2 up to O(h^2) and rounding. A smaller h
// lowers the first error and raises the second, so the best of several h counts.
double gradient_error(Transformer& model, const Batch& batch) {
  model.zero_grad();
  loss_and_grad(model, batch);
  const std::vector<float> start(model.values(), model.values() + model.arena_size());
  const std::vector<float> gradient(model.gradients(), model.gradients() + model.arena_size());
  double squares = 0;
  for (const float g : gradient) squares += static_cast<double>(g) * g;
  double best = std::numeric_limits<double>::infinity();
  for (const double h : {3e-2, 1e-2, 3e-3}) {
    double sides[2] = {0, 0};
    for (int side = 0; side < 2; ++side) {
      const float step = static_cast<float>((side == 0 ? h : -h) / std::sqrt(squares));
      for (std::size_t i = 0; i < start.size(); ++i) model.values()[i] = start[i] + step * gradient[i];
      sides[side] = loss(model, batch);
    }
    const double measured = (sides[0] - sides[1]) / (2 * h) * std::sqrt(squares);
    best = std::fmin(best, std::fabs(measured - squares) / squares);
  }
  std::memcpy(model.values(), start.data(), start.size() * sizeof(float));
  model.zero_grad();
  return best;
}

double decoding_error(Transformer& model, const Batch& batch) {
  const int64_t vocab = model.config().vocab_size;
  std::vector<float> logits(static_cast<std::size_t>(batch.length * vocab));
  model.forward(logits.data(), batch.ids.data(), 1, batch.length);
  const soma::DecodeWeights weights(model);
  soma::Decoder decoder(weights, 1);
  decoder.prefill(0, batch.ids.data(), 4);
  double largest = 0, scale = 0;
  for (int64_t t = 3; t < batch.length; ++t) {
    const int32_t row = 0;
    if (t > 3) decoder.step(&row, &batch.ids[static_cast<std::size_t>(t)], 1);
    for (int64_t v = 0; v < vocab; ++v) {
      const double expected = logits[static_cast<std::size_t>(t * vocab + v)];
      largest = std::fmax(largest, std::fabs(decoder.logits()[v] - expected));
      scale = std::fmax(scale, std::fabs(expected));
    }
  }
  return largest / scale;
}

std::vector<double> train(Transformer& model, const Batch& batch, int steps) {
  soma::AdamW optimizer(model, {1e-2, 0.9, 0.95, 1e-8, 0.01, 1.0});
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) {
    losses.push_back(loss_and_grad(model, batch));
    optimizer.step({.lr = 1e-2, .weight_decay = 0.01});
  }
  return losses;
}

void check_block(const char* name, soma::Precision precision) {
  const bool exact = precision == soma::Precision::kFloat32;
  const soma::ModelConfig config = tiny(name);
  const Batch batch(config.vocab_size);
  const std::string prefix = std::string(name) + (exact ? ": " : " in bfloat16: ");

  Transformer model(config, 7, precision, soma::cpu_device());
  std::printf("initial %s %016llx\n", name, static_cast<unsigned long long>(hash_parameters(model)));
  const double first = loss(model, batch), uniform = std::log(static_cast<double>(config.vocab_size));
  expect(std::fabs(first - uniform) < 0.5, prefix + "an untrained model guesses evenly, loss " + std::to_string(first));
  const double error = gradient_error(model, batch);
  expect(error < (exact ? 1e-2 : 1e-1),
         prefix + "gradient against differences, relative error " + std::to_string(error));

  soma::set_num_threads(1);
  const std::vector<double> alone = train(model, batch, 60);
  soma::set_num_threads(3);
  Transformer twin(config, 7, precision, soma::cpu_device());
  expect(train(twin, batch, 60) == alone, prefix + "the same losses with one thread and with three");
  expect(hash_parameters(twin) == hash_parameters(model),
         prefix + "the same parameters with one thread and with three");
  expect(alone.back() < 0.1, prefix + "the toy task is learned, loss " + std::to_string(alone.back()));
  const double drift = decoding_error(model, batch);
  expect(drift < (exact ? 1e-5 : 5e-2),
         prefix + "cached decoding against the full forward, error " + std::to_string(drift));
}

// Pseudorandom numbers from -1 to 1, or whole numbers from -8 to 8. The same on every machine.
std::vector<float> numbers(int64_t n, uint32_t seed, bool whole) {
  std::vector<float> x(static_cast<std::size_t>(n));
  uint32_t state = seed;
  for (float& value : x) {
    state = state * 1664525u + 1013904223u;
    value =
        whole ? static_cast<float>(static_cast<int>(state >> 8) % 9) : static_cast<float>(state >> 8) / 8388608.0f - 1;
    if (whole && (state >> 31) != 0) value = -value;
  }
  return x;
}

float to_bfloat16(float x) {
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof(bits));
  bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}

// A factor of a product of scale `line`: too small for a normal number, with products below 2^-126 or near it,
// ordinary, or with products near 2^128. Some lines begin with an infinity, others with NaN.
float extreme(float x, int64_t line, bool first) {
  constexpr int kScales[] = {-130, -70, -62, 0, 64};
  if (first && line % 7 == 4) return std::numeric_limits<float>::infinity();
  if (first && line % 7 == 6) return std::numeric_limits<float>::quiet_NaN();
  return std::ldexp(x, kScales[line % 5]);
}

// A factor of a sum that vanishes: products are at most 2^-126, or zeros of both signs.
float vanishing(float x, int64_t p) { return p % 2 == 0 ? std::ldexp(x, -63) : std::copysign(0.0f, x); }

// A zero of its sign for a number below 2^-126.
float flushed(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }

// a + b, rounded to odd: towards zero, and then the last bit is set where bits were lost. From 2^128 on infinite.
float odd_sum(float a, float b) {
  const double x = a, y = b, sum = x + y, part = sum - x;
  if (!(std::fabs(sum) < 0x1p128)) return static_cast<float>(sum);
  const double lost = (x - (sum - part)) + (y - part);  // of the sum in double precision (Knuth's TwoSum)
  float nearest = static_cast<float>(sum);
  const double beyond = (sum - nearest) + lost;
  if (beyond == 0) return flushed(nearest);
  if ((beyond < 0) == (nearest > 0)) nearest = std::nextafter(nearest, 0.0f);
  uint32_t bits = 0;
  std::memcpy(&bits, &nearest, sizeof(bits));
  bits |= 1u;
  std::memcpy(&nearest, &bits, sizeof(bits));
  return flushed(nearest);
}

// How a level rounds c + a b, and in bfloat16 c + a b of two neighbours. kOther: no statement here.
enum class Rounding { kTwice, kFused, kOdd, kOther };

Rounding rounding_of(const std::string& level, bool bf16) {
  if (level == "scalar" || level == "sse") return Rounding::kTwice;
  if (bf16 && level == "neon_bf16") return Rounding::kOdd;
  return bf16 && (level == "avx512_bf16" || level == "amx") ? Rounding::kOther : Rounding::kFused;
}

// sum and one element of a product, as `rounding` says; get(p) returns factor p of A and of B.
template <typename Get>
float chain(float sum, int64_t k, bool bf16, Rounding rounding, Get get) {
  const auto multiply_add = [&](int64_t p) {
    if (p >= k) return;
    const auto [x, y] = get(p);
    const float product = x * y;
    sum = rounding == Rounding::kFused ? std::fma(x, y, sum) : product + sum;
  };
  for (int64_t p = 0; p < k; p += bf16 ? 2 : 1) {
    if (rounding == Rounding::kOdd) {
      const auto product = [&](int64_t q) {
        const auto [x, y] = q < k ? get(q) : std::pair(0.0f, 0.0f);
        return flushed(flushed(x) * flushed(y));  // otherwise exact
      };
      sum = odd_sum(sum, odd_sum(product(p), product(p + 1)));
    } else {
      if (bf16) multiply_add(p + 1);
      multiply_add(p);
    }
  }
  return sum;
}

// C = [bias +] A B must have the bits of a chain in the order of k, and in bfloat16 be exact for whole numbers, for any
// sizes and any transposed operand, and for numbers near the ends of float, infinities and NaN. To C = -0 it is added,
// with sums that vanish. Where sums are rounded to odd, the sign of a zero counts too.
void check_products(const std::string& level, soma::Precision precision) {
  const bool bf16 = precision == soma::Precision::kBfloat16;
  const Rounding rounding = rounding_of(level, bf16);
  uint64_t hash = hash_floats(nullptr, 0);
  enum Kind { kWhole, kFractions, kExtreme, kVanishing, kKinds };
  bool right[kKinds] = {true, true, true, true};
  const int64_t sizes[][3] = {{1, 1, 1},    {7, 9, 2},    {5, 37, 31},   {16, 16, 32},
                              {17, 15, 33}, {32, 32, 64}, {67, 130, 431}};
  for (const auto& [m, n, k] : sizes) {
    for (int layout = 0; layout < 3 * kKinds; ++layout) {
      const int kind = layout / 3;
      const bool whole = kind == kWhole, a_transposed = layout % 3 == 1, b_transposed = layout % 3 == 2;
      std::vector<float> a = numbers(m * k, 1, whole), b = numbers(k * n, 2, whole), bias = numbers(n, 3, whole);
      const auto in_a = [&](int64_t row, int64_t p) -> float& {
        return a[static_cast<std::size_t>(a_transposed ? p * m + row : row * k + p)];
      };
      const auto in_b = [&](int64_t p, int64_t col) -> float& {
        return b[static_cast<std::size_t>(b_transposed ? col * k + p : p * n + col)];
      };
      for (int64_t p = 0; p < k && kind == kExtreme; ++p) {
        for (int64_t row = 0; row < m; ++row) in_a(row, p) = extreme(in_a(row, p), row, p == 0);
        for (int64_t col = 0; col < n; ++col) in_b(p, col) = extreme(in_b(p, col), col, false);
      }
      for (int64_t p = 0; p < k && kind == kVanishing; ++p) {
        for (int64_t row = 0; row < m; ++row) in_a(row, p) = vanishing(in_a(row, p), p);
        for (int64_t col = 0; col < n; ++col) in_b(p, col) = vanishing(in_b(p, col), p);
      }
      const float start = kind == kVanishing ? -0.0f : 0.0f;
      std::vector<float> c(static_cast<std::size_t>(m * n), start);
      const soma::ConstMatrix left =
          a_transposed ? soma::ConstMatrix(a.data(), k, m).t() : soma::ConstMatrix(a.data(), m, k);
      const soma::ConstMatrix factor =
          b_transposed ? soma::ConstMatrix(b.data(), n, k).t() : soma::ConstMatrix(b.data(), k, n);
      soma::Epilogue epilogue{};
      epilogue.accumulate = kind == kVanishing;
      epilogue.bias = m % 2 == 0 && !epilogue.accumulate ? bias.data() : nullptr;
      soma::cpu_device().make_ops(precision)->matmul({c.data(), m, n}, left, factor, epilogue);
      hash = hash_floats(c.data(), m * n, hash);
      for (int64_t i = 0; i < m * n && (whole || rounding != Rounding::kOther); ++i) {
        const int64_t row = i / n, col = i % n;
        float sum = chain(start, k, bf16, rounding, [&](int64_t p) {
          const float x = in_a(row, p), y = in_b(p, col);
          return bf16 ? std::pair(to_bfloat16(x), to_bfloat16(y)) : std::pair(x, y);
        });
        if (epilogue.bias != nullptr) sum += bias[static_cast<std::size_t>(col)];
        const float got = c[static_cast<std::size_t>(i)];
        const bool equal = got == sum && (rounding != Rounding::kOdd || std::signbit(got) == std::signbit(sum));
        right[kind] &= equal || (std::isnan(got) && std::isnan(sum));
      }
    }
  }
  const std::string in = bf16 ? " in bfloat16" : " in float32";
  expect(right[kWhole], "whole numbers are multiplied exactly" + in);
  expect(right[kFractions], "products have the bits of their sums in the order of k" + in);
  expect(right[kExtreme], "so have products near the ends of float, of infinities and of NaN" + in);
  expect(right[kVanishing], "so have sums that vanish" + in);
  if (bf16) std::printf("products %s %016llx\n", level.c_str(), static_cast<unsigned long long>(hash));
}

// |gradient - the scalar level's| / |the scalar level's|, on one model and batch.
void check_against_scalar(const std::string& level, const soma::Block& block, soma::Precision precision) {
  Transformer model(tiny(block.traits.name), 7, precision, soma::cpu_device());
  const Batch batch(model.config().vocab_size);
  std::vector<float> gradient[2];
  double losses[2];
  for (int side = 0; side < 2; ++side) {
    soma::set_isa(side == 0 ? "scalar" : level);
    model.zero_grad();
    losses[side] = loss_and_grad(model, batch);
    gradient[side].assign(model.gradients(), model.gradients() + model.arena_size());
  }
  double squares = 0, errors = 0;
  for (std::size_t i = 0; i < gradient[0].size(); ++i) {
    const double expected = gradient[0][i], error = gradient[1][i] - expected;
    squares += expected * expected;
    errors += error * error;
  }
  const bool exact = precision == soma::Precision::kFloat32;
  const double off = std::sqrt(errors / squares), loss_off = std::fabs(losses[1] / losses[0] - 1);
  expect(off < (exact ? 2e-6 : 5e-3) && loss_off < (exact ? 1e-6 : 1e-4),
         std::string(block.traits.name) + (exact ? "" : " in bfloat16") +
             ": loss and gradients as on the scalar level, relative errors " + std::to_string(loss_off * 1e6) +
             " and " + std::to_string(off * 1e6) + " millionths");
}

}  // namespace

int main(int count, char** names) {
  try {
    std::printf("level in force: %s\n", soma::isa_name(soma::active_isa()));
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
  for (const soma::Isa isa : soma::available_isas()) {
    const std::string level = soma::isa_name(isa);
    if (count > 1 && std::find(names + 1, names + count, level) == names + count) continue;
    soma::set_isa(level);
    std::printf("-- %s\n", level.c_str());
    for (const soma::Precision precision : {soma::Precision::kFloat32, soma::Precision::kBfloat16}) {
      check_products(level, precision);
      for (const soma::Block* block : soma::blocks()) {
        check_block(block->traits.name, precision);
        check_against_scalar(level, *block, precision);
      }
    }
  }
  std::printf(failures == 0 ? "selfcheck passed\n" : "selfcheck: %d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
