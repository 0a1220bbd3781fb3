// Norms, embeddings and loss: every row, or every column, belongs to one thread.
#include <algorithm>
#include <cmath>

#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/dropout.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

constexpr int64_t kColumns = 16;  // the fewest columns of a thread: a cache line

}  // namespace

void CpuOps::norm(Matrix y, NormStats saved, ConstMatrix x, const NormWeights& w, float eps) {
  const auto& t = active_kernels();
  const auto forward = w.kind == NormKind::kRmsNorm ? t.rms_norm_forward : t.norm_forward;
  const int64_t ranges = range_count(x.rows, 2 * x.cols, 1);
  if (y.pairs) reserve_scratch(ranges, x.cols);
  for_numbered_ranges(x.rows, ranges, 1, [&](int64_t range, int64_t begin, int64_t end) {
    const int64_t step = y.pairs ? 1 : end - begin;  // a row for pairs is made as floats in scratch first
    for (int64_t r = begin; r < end; r += step) {
      const kernels::NormForward norm{.y = y.pairs ? scratch(range) : y.row(r),
                                      .mean = saved.mean != nullptr ? saved.mean + r : nullptr,
                                      .rstd = saved.rstd != nullptr ? saved.rstd + r : nullptr,
                                      .x = x.at(r, 0),
                                      .gamma = w.gamma,
                                      .beta = w.beta,
                                      .rows = step,
                                      .c = x.cols,
                                      .eps = eps};
      forward(&norm);
      if (y.pairs) t.round_rows(y.row(r), 0, norm.y, 0, 1, y.cols, pairs_units(y.cols));
    }
  });
}

// A row of `again` in pairs is made as floats in scratch first.
void CpuOps::norm_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, NormStats saved, const NormWeights& w,
                           const float* residual, const Matrix* again) {
  const auto& t = active_kernels();
  const auto backward = w.kind == NormKind::kRmsNorm ? t.rms_norm_backward : t.norm_backward;
  const int64_t c = x.cols, ranges = range_count(x.rows, 3 * c, 1);
  const bool pairs = again != nullptr && again->pairs;
  if (pairs) reserve_scratch(ranges, c);
  for_numbered_ranges(x.rows, ranges, 1, [&](int64_t range, int64_t begin, int64_t end) {
    const int64_t step = pairs ? 1 : end - begin;
    for (int64_t r = begin; r < end; r += step) {
      const int64_t at = r * c;
      const kernels::NormBackward norm{.dx = dx.data + at,
                                       .y = again == nullptr ? nullptr
                                            : pairs          ? scratch(range)
                                                             : again->data + at,
                                       .dy = dy.data + at,
                                       .x = x.data + at,
                                       .mean = saved.mean != nullptr ? saved.mean + r : nullptr,
                                       .rstd = saved.rstd + r,
                                       .gamma = w.gamma,
                                       .beta = w.beta,
                                       .residual = residual != nullptr ? residual + at : nullptr,
                                       .rows = step,
                                       .c = c};
      backward(&norm);
      if (pairs) t.round_rows(again->row(r), 0, norm.y, 0, 1, c, pairs_units(c));
    }
  });
}

void CpuOps::norm_grad(float* dgamma, float* dbeta, ConstMatrix dy, ConstMatrix x, NormStats saved, NormKind kind) {
  const auto& t = active_kernels();
  const bool rms = kind == NormKind::kRmsNorm;
  for_ranges(x.cols, 2 * x.rows, kColumns, [&](int64_t begin, int64_t end) {
    const kernels::NormGrad norm{.dgamma = dgamma + begin,
                                 .dbeta = rms ? nullptr : dbeta + begin,
                                 .dy = dy.data + begin,
                                 .x = x.data + begin,
                                 .mean = saved.mean,
                                 .rstd = saved.rstd,
                                 .ld = x.ld,
                                 .rows = x.rows,
                                 .n = end - begin};
    (rms ? t.rms_norm_grad : t.norm_grad)(&norm);
  });
}

void CpuOps::sum_rows(float* out, ConstMatrix x) {
  const auto& t = active_kernels();
  for_ranges(x.cols, x.rows, kColumns,
             [&](int64_t begin, int64_t end) { t.column_sum(out + begin, x.data + begin, x.ld, x.rows, end - begin); });
}

// A row in pairs is made as floats in scratch first.
void CpuOps::dropout(Matrix y, ConstMatrix x, const Dropout& dropout) {
  const auto& t = active_kernels();
  const int64_t ranges = range_count(x.rows, 2 * x.cols, 1);
  if (y.pairs) reserve_scratch(ranges, x.cols);
  for_numbered_ranges(x.rows, ranges, 1, [&](int64_t range, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* const made = y.pairs ? scratch(range) : y.row(r);
      const kernels::DropoutRow row = dropout_row(dropout, r, 0, x.cols, made, x.at(r, 0));
      t.dropout(&row);
      if (y.pairs) t.round_rows(y.row(r), 0, made, 0, 1, y.cols, pairs_units(y.cols));
    }
  });
}

void CpuOps::embed(Matrix out, const int32_t* ids, ConstMatrix wte, const ConstMatrix* wpe, int64_t length,
                   const Dropout& dropout) {
  const auto& t = active_kernels();
  const int64_t c = out.cols;
  for_ranges(out.rows, c, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* const row = out.row(r);
      const float* const token = ids[r] == kMaskedToken ? nullptr : wte.at(ids[r], 0);
      const float* const position = wpe == nullptr ? nullptr : wpe->at(r % length, 0);
      if (token != nullptr && position != nullptr) {
        t.add(row, token, position, c);
      } else if (const float* const alone = token != nullptr ? token : position) {
        std::copy(alone, alone + c, row);
      } else {
        std::fill(row, row + c, 0.0f);
      }
      if (!dropout) continue;
      const kernels::DropoutRow dropped = dropout_row(dropout, r, 0, c, row, row);
      t.dropout(&dropped);
    }
  });
}

void CpuOps::embed_backward(Matrix dwte, const Matrix* dwpe, ConstMatrix dout, const int32_t* ids, const int32_t*,
                            int64_t length) {
  const auto& t = active_kernels();
  const int64_t c = dout.cols;
  for_ranges(c, 2 * dout.rows, kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < dout.rows; ++r) {
      const float* d = dout.data + r * c + begin;
      if (ids[r] != kMaskedToken) t.scale_add(dwte.data + ids[r] * c + begin, d, 1.0f, end - begin);
      if (dwpe != nullptr) t.scale_add(dwpe->data + (r % length) * c + begin, d, 1.0f, end - begin);
    }
  });
}

// At most 512 rows and at most 128 MB, but at least 16 rows.
LogitsLayout CpuOps::logits_layout(int64_t rows, int64_t vocab_size) const {
  constexpr int64_t kMaxLogits = int64_t{32} << 20;
  return {std::min(rows, std::clamp<int64_t>(kMaxLogits / vocab_size, 16, 512)), vocab_size};
}

void CpuOps::cross_entropy(float* losses, Matrix logits, const int32_t* targets, float grad_scale, Matrix gradient) {
  const auto& t = active_kernels();
  const int64_t v = logits.cols;
  for_ranges(logits.rows, 4 * v, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = logits.data + r * logits.ld;
      const int32_t target = targets[r];
      losses[r] = 0.0f;
      if (target == kIgnoredTarget) {
        if (grad_scale != 0.0f) std::fill(gradient.data + r * gradient.ld, gradient.data + (r + 1) * gradient.ld, 0.0f);
        continue;
      }
      const float chosen = row[target];
      float max = 0.0f, sum = 0.0f;
      if (grad_scale != 0.0f) {
        t.cross_entropy_row(row, v, target, grad_scale, &max, &sum);
        if (gradient.pairs) {
          t.round_rows(gradient.data + r * gradient.ld, 0, row, 0, 1, v, pairs_units(v));
        }
      } else {
        t.max_sum_exp(row, v, &max, &sum);
      }
      losses[r] = (max - chosen) + std::log(sum);
    }
  });
}

void CpuOps::soft_cross_entropy(float* losses, Matrix logits, ConstMatrix q, const int32_t* targets, float share,
                                float grad_scale, Matrix gradient) {
  const auto& t = active_kernels();
  const int64_t v = logits.cols;
  for_ranges(logits.rows, 8 * v, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* const out = gradient.data + r * gradient.ld;
      losses[r] = 0.0f;
      if (targets[r] == kIgnoredTarget) {
        std::fill(out, out + gradient.ld, 0.0f);
        continue;
      }
      kernels::SoftCrossEntropy row{.x = logits.data + r * logits.ld,
                                    .q = q.data + r * q.ld,
                                    .n = v,
                                    .target = targets[r],
                                    .share = share,
                                    .grad_scale = grad_scale};
      const float chosen = row.x[row.target];
      t.soft_cross_entropy_row(&row);
      if (gradient.pairs) t.round_rows(out, 0, row.x, 0, 1, v, pairs_units(v));
      losses[r] = (1.0f - share) * (row.max - chosen) + share * row.divergence + std::log(row.sum);
    }
  });
}

void CpuOps::add_softmax(Matrix q, Matrix logits, float share, bool onto) {
  const auto& t = active_kernels();
  for_ranges(logits.rows, 4 * logits.cols, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      t.add_softmax_row(q.data + r * q.ld, logits.data + r * logits.ld, logits.cols, share, onto);
    }
  });
}

}  // namespace soma
