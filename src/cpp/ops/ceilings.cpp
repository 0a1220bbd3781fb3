// The ceilings of a device with memory of its own: what its copies and its own products reach.
#include "ops/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "base/arena.h"
#include "base/interrupt.h"

namespace soma {
namespace {

constexpr double kTurn = 0.004;  // seconds of one turn, beside which a launch is short
constexpr int kTurns = 8;
constexpr int64_t kSmallest = int64_t{1} << 20, kLargest = int64_t{256} << 20, kStep = 4;  // bytes
constexpr int64_t kSmallestProduct = 128, kLargestProduct = 8192;                          // rows

// Seconds of one ask(), the least of several turns.
template <typename Ask>
double least_seconds(Device& device, Ask&& ask) {
  double least = 0;
  int64_t rounds = 1;
  for (int turn = 0; turn < kTurns;) {
    check_interrupt();
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < rounds; ++i) ask();
    device.finish();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (seconds < kTurn) {
      rounds *= 2;
      continue;
    }
    const double one = seconds / static_cast<double>(rounds);
    least = turn == 0 ? one : std::min(least, one);
    ++turn;
  }
  return least;
}

// Numbers between 1 and 2 of both signs, as floats and as pairs of bfloat16. Products of zeros draw less power, and so
// run faster than any that count.
void fill(Memory& memory, float* to, int64_t floats) {
  std::vector<uint32_t> words(static_cast<std::size_t>(std::min<int64_t>(floats, 1 << 20)));
  uint32_t state = 1;
  for (uint32_t& word : words) {
    state = state * 1664525u + 1013904223u;
    word = (state & 0x807f807fu) | 0x3f803f80u;
  }
  for (int64_t at = 0; at < floats; at += static_cast<int64_t>(words.size())) {
    const auto count = std::min(static_cast<int64_t>(words.size()), floats - at);
    memory.upload(to + at, words.data(), static_cast<std::size_t>(count) * sizeof(float));
  }
}

// Operations per second of square products, of sizes that rise until one takes a turn.
double products(Device& device, Precision precision) {
  const std::unique_ptr<Ops> ops = device.make_ops(precision);
  const Operands operands = ops->operands();
  double best = 0;
  for (int64_t n = kSmallestProduct; n <= kLargestProduct; n *= 2) {
    Arena memory(device.memory());
    const int64_t operand = operands.floats(n, n);
    memory.reserve(2 * operand + n * n);
    fill(device.memory(), memory.data(), 2 * operand);
    const Matrix a = operands.matrix(memory.data(), n, n), b = operands.matrix(memory.data() + operand, n, n);
    const Matrix c{memory.data() + 2 * operand, n, n};
    const double seconds = least_seconds(device, [&] { ops->matmul(c, a, b, {}); });
    best = std::max(best, 2.0 * static_cast<double>(n * n) * static_cast<double>(n) / seconds);
    if (seconds >= kTurn) break;
  }
  return best;
}

}  // namespace

Ceilings measure_ceilings(Device& device) {
  if (device.memory().on_host()) return measure_ceilings();
  return device.run([&] {
    Ceilings ceilings{products(device, Precision::kFloat32), products(device, Precision::kBfloat16), {}};
    const int64_t most = std::min(kLargest, device.free_bytes() / 4);
    for (int64_t bytes = kSmallest; bytes <= most || bytes == kSmallest; bytes *= kStep) {
      Arena memory(device.memory());
      memory.reserve(bytes / static_cast<int64_t>(sizeof(float)));
      const auto half = static_cast<std::size_t>(bytes / 2);
      char* const to = reinterpret_cast<char*>(memory.data());
      const double seconds = least_seconds(device, [&] { device.memory().copy(to, to + half, half); });
      const double rate = static_cast<double>(bytes) / seconds;  // every byte is read or written
      ceilings.bandwidths.push_back({bytes, rate, rate});
    }
    return ceilings;
  });
}

}  // namespace soma
