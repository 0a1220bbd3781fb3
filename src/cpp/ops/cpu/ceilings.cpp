// Measures the ceilings. Each figure is the best of several turns, since other programs only lower it.
#include "ops/ceilings.h"

#include <algorithm>
#include <chrono>

#include "base/arena.h"
#include "base/interrupt.h"
#include "base/parallel.h"
#include "ops/cpu/cpu_ops.h"

namespace soma {
namespace {

constexpr double kTurn = 0.004;  // seconds of one turn: a thousand times the cost of waking the threads
constexpr int kTurns = 8;
constexpr int64_t kSmallest = int64_t{64} << 10, kLargest = int64_t{256} << 20, kStep = 4;  // bytes
constexpr int64_t kPage = 1024;                                                             // floats

// The best rate of work(thread, rounds) over all threads. It returns the amount of work done.
template <typename Work>
double best_rate(int64_t threads, Work&& work) {
  std::vector<double> done(static_cast<std::size_t>(threads));
  double best = 0;
  int64_t rounds = 1;
  for (int turn = 0; turn < kTurns;) {
    check_interrupt();
    const auto begin = std::chrono::steady_clock::now();
    parallel_for(threads, [&](int64_t i) { done[static_cast<std::size_t>(i)] = work(i, rounds); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    double total = 0;
    for (const double amount : done) total += amount;
    if (seconds < kTurn && rounds < int64_t{1} << 40) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, total / seconds);
    ++turn;
  }
  return best;
}

}  // namespace

double multiply_add_registers(Precision precision, float* values, int64_t rounds) {
  const kernels::Table& t = active_kernels();
  return static_cast<double>((precision == Precision::kBfloat16 ? t.peak_bf16 : t.peak_fma)(values, rounds));
}

Ceilings measure_ceilings() {
  const kernels::Table& t = active_kernels();
  const int64_t threads = call_threads();
  const auto peak = [&](Precision precision) {
    return best_rate(threads, [&](int64_t, int64_t rounds) {
      float values[3] = {1.0f, 1e-3f, 0.0f};
      return multiply_add_registers(precision, values, rounds * 1024);
    });
  };
  Ceilings ceilings{peak(Precision::kFloat32), peak(Precision::kBfloat16), {}};

  Arena memory(host_memory());
  memory.reserve(kLargest / static_cast<int64_t>(sizeof(float)));
  for (int64_t bytes = kSmallest; bytes <= kLargest; bytes *= kStep) {
    const int64_t half = bytes / static_cast<int64_t>(2 * sizeof(float)) / threads / kPage * kPage, piece = 2 * half;
    if (piece == 0) continue;  // more threads than pieces
    const auto own = [&](int64_t thread) { return memory.data() + thread * piece; };
    // The thread that uses the memory writes it first: untouched pages all map one page of zeros.
    parallel_for(threads, [&](int64_t i) { std::fill(own(i), own(i) + piece, 1.0f); });
    const double read = best_rate(threads, [&](int64_t i, int64_t rounds) {
      volatile float sink = 0.0f;
      for (int64_t r = 0; r < rounds; ++r) sink = t.dot(own(i), own(i) + half, half);
      (void)sink;
      return static_cast<double>(rounds * 2 * half) * sizeof(float);
    });
    const double update = best_rate(threads, [&](int64_t i, int64_t rounds) {
      for (int64_t r = 0; r < rounds; ++r) t.scale_add(own(i), own(i) + half, 1e-3f, half);
      return static_cast<double>(rounds * 3 * half) * sizeof(float);
    });
    ceilings.bandwidths.push_back({bytes, read, update});
  }
  return ceilings;
}

}  // namespace soma
