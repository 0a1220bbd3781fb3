// Passes of optimizers over parameters. Every number belongs to one thread; sums are added piece by piece, in order.
// Steps flush denormals, since the moments of dead units become denormal and never zero.
#include <algorithm>
#include <cmath>

#include "base/flush_denormals.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

constexpr int64_t kRun = 32768;  // floats of one piece of a pass

}  // namespace

double CpuOps::sum_squares(const float* x, int64_t n) {
  const auto& t = active_kernels();
  const int64_t runs = ceil_div(n, kRun);
  partial_sums_.resize(static_cast<std::size_t>(runs));
  for_ranges(runs, kRun, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * kRun;
      partial_sums_[static_cast<std::size_t>(i)] = t.sum_squares(x + at, std::min(kRun, n - at));
    }
  });
  double total = 0;
  for (const double sum : partial_sums_) total += sum;
  return total;
}

void CpuOps::adamw(float* p, float* g, float* m, float* v, const AdamWRange* ranges, int64_t count,
                   const AdamWOptions& o) {
  const auto& t = active_kernels();
  kernels::AdamWStep step{};
  step.lr = o.lr;
  step.beta1 = o.beta1;
  step.beta2 = o.beta2;
  step.eps = o.eps;
  step.grad_scale = o.grad_scale;
  step.bias_correction1 = static_cast<float>(1.0 - std::pow(static_cast<double>(o.beta1), static_cast<double>(o.step)));
  step.bias_correction2_sqrt =
      static_cast<float>(std::sqrt(1.0 - std::pow(static_cast<double>(o.beta2), static_cast<double>(o.step))));
  step.cautious = o.cautious ? 1 : 0;
  int64_t n = 0;
  for (const AdamWRange* r = ranges; r < ranges + count; ++r) n += r->size;
  for_ranges(n, 4, Arena::kGranule, [&](int64_t begin, int64_t end) {
    const FlushDenormals flushing;
    kernels::AdamWStep mine = step;
    int64_t before = 0;  // second moments before this range
    for (const AdamWRange* r = ranges; r < ranges + count; before += r->size, ++r) {
      const int64_t from = std::max<int64_t>(0, begin - before), to = std::min(r->size, end - before);
      if (from >= to) continue;
      mine.weight_decay = r->decays ? o.weight_decay : 0.0f;
      const int64_t at = r->offset + from;
      t.adamw(p + at, g + at, m + at, v + before + from, to - from, &mine);
    }
  });
}

double CpuOps::muon_momentum(Matrix g, Matrix m, float momentum, float scale) {
  const auto& t = active_kernels();
  partial_sums_.resize(static_cast<std::size_t>(g.rows));
  for_ranges(g.rows, 2 * g.cols, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flushing;
    for (int64_t r = begin; r < end; ++r) {
      partial_sums_[static_cast<std::size_t>(r)] = t.muon_momentum(g.row(r), m.row(r), g.cols, momentum, scale);
    }
  });
  double total = 0;
  for (const double sum : partial_sums_) total += sum;
  return total;
}

// A row for pairs is made as floats in scratch first.
void CpuOps::scale(Matrix y, ConstMatrix x, float s) {
  const auto& t = active_kernels();
  const int64_t ranges = range_count(x.rows, x.cols, 1);
  if (y.pairs) reserve_scratch(ranges, x.cols);
  for_numbered_ranges(x.rows, ranges, 1, [&](int64_t range, int64_t begin, int64_t end) {
    const FlushDenormals flushing;
    for (int64_t r = begin; r < end; ++r) {
      float* const row = y.pairs ? scratch(range) : y.row(r);
      t.scale_by(row, x.at(r, 0), s, x.cols);
      if (y.pairs) t.round_rows(y.row(r), 0, row, 0, 1, y.cols, pairs_units(y.cols));
    }
  });
}

void CpuOps::muon(Matrix p, Matrix o, const MuonOptions& options) {
  const auto& t = active_kernels();
  const kernels::MuonStep step{options.lr, options.scale, options.weight_decay, options.cautious ? 1 : 0};
  for_ranges(p.rows, 2 * p.cols, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flushing;
    for (int64_t r = begin; r < end; ++r) t.muon(p.row(r), o.row(r), p.cols, &step);
  });
}

void CpuOps::average(float* y, const float* x, float rate, int64_t n) {
  const auto& t = active_kernels();
  for_ranges(n, 2, Arena::kGranule,
             [&](int64_t begin, int64_t end) { t.average(y + begin, x + begin, rate, end - begin); });
}

}  // namespace soma
