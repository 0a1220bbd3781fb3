// Each op as a launch of its kernels. What runs later in the stream may use the same scratch memory.
#include "ops/cuda/device_ops.h"

#include <algorithm>

#include "ops/cuda/cuda_ops.h"

namespace soma::cuda {
namespace {

constexpr int64_t kMostLogits = int64_t{1} << 28;  // numbers that exist at a time
constexpr int64_t kRowsOfTile = 128;               // of a product
constexpr int64_t kLogitsAlignment = 32;           // numbers: a cache line

// The operand rounded by pack, where it was. Stored and transposed operands read the same pairs.
ConstMatrix packed(const ConstMatrix& b) {
  const float* const panels = b.panels != nullptr ? b.panels : b.panels_transposed;
  if (panels == nullptr) return b;
  ConstMatrix pairs = b;
  pairs.data = panels;
  pairs.pairs = true;
  pairs.ld = pairs_ld(b.cols);
  return pairs;
}

}  // namespace

float* CudaOps::scratch(int64_t floats) {
  scratch_.reserve(floats);
  return scratch_.data();
}

template <typename T>
T CudaOps::read(const T* from) {
  T value{};
  device_.memory().download(&value, from, sizeof value);
  return value;
}

LogitsLayout CudaOps::logits_layout(int64_t rows, int64_t vocab_size) const {
  const int64_t ld = (vocab_size + kLogitsAlignment - 1) / kLogitsAlignment * kLogitsAlignment;
  const int64_t most = std::max<int64_t>(kMostLogits / ld / kRowsOfTile, 1) * kRowsOfTile;
  return {std::min(rows, most), ld};
}

void CudaOps::matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& epilogue) {
  b = packed(b);
  Cublas* const large = device_.large(c.rows * c.cols * a.width());
  float* const memory = scratch(matmul_floats(a, b, epilogue, precision_, large));
  cuda::matmul(c, a, b, epilogue, precision_, memory, device_.stream(), large);
}

void CudaOps::weight_gradients(const WeightGradient* list, int64_t count) {
  for (const WeightGradient* w = list; w < list + count; ++w) {
    matmul(w->dw, w->x.t(), w->dy, {.accumulate = true, .column_sums = w->column_sums});
  }
}

int64_t CudaOps::packed_floats(int64_t k, int64_t n) const {
  const Operands kept = operands();
  return kept.pairs ? std::max(kept.floats(k, n), kept.floats(n, k)) : 0;
}

void CudaOps::pack(const Packing* list, int64_t count) {
  if (!operands().pairs) return;
  for (int64_t i = 0; i < count; ++i) {
    const ConstMatrix& b = list[i].b;
    if (i > 0 && b.data == list[i - 1].b.data) continue;  // the transpose of the one before
    scale(operands().matrix(list[i].panels, b.rows, b.cols), b, 1.0f);
  }
}

void CudaOps::norm(Matrix y, NormStats saved, ConstMatrix x, const NormWeights& w, float eps) {
  cuda::norm(y, saved, x, w, eps, device_.stream());
}

void CudaOps::norm_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, NormStats saved, const NormWeights& w,
                            const float* residual, const Matrix* again) {
  cuda::norm_backward(dx, dy, x, saved, w, residual, again, device_.stream());
}

void CudaOps::norm_grad(float* dgamma, float* dbeta, ConstMatrix dy, ConstMatrix x, NormStats saved, NormKind kind) {
  float* const partials = scratch(norm_grad_floats(x.rows, x.cols));
  cuda::norm_grad(dgamma, dbeta, dy, x, saved, kind, partials, device_.stream());
}

void CudaOps::attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& shape) {
  cuda::attention(out, lse, qkv, shape, precision_, device_.stream());
}

void CudaOps::attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix out, ConstMatrix qkv, const float* lse,
                                 const AttentionShape& shape, const RotationGradient* rotated) {
  float* const memory = scratch(attention_backward_floats(shape, precision_, rotated != nullptr));
  cuda::attention_backward(dqkv, dout, out, qkv, lse, shape, rotated, precision_, memory, device_.stream());
}

void CudaOps::sum_rows(float* out, ConstMatrix x) {
  float* const partials = scratch(sum_rows_floats(x.rows, x.cols));
  cuda::sum_rows(out, x, partials, device_.stream());
}

void CudaOps::dropout(Matrix y, ConstMatrix x, const Dropout& dropout) {
  cuda::dropout(y, x, dropout, device_.stream());
}

void CudaOps::embed(Matrix out, const int32_t* ids, ConstMatrix wte, const ConstMatrix* wpe, int64_t length,
                    const Dropout& dropout) {
  cuda::embed(out, ids, wte, wpe, length, dropout, device_.stream());
}

void CudaOps::embed_backward(Matrix dwte, const Matrix* dwpe, ConstMatrix dout, const int32_t* ids,
                             const int32_t* on_host, int64_t length) {
  ids_.reserve(sorted_ids(dout.rows));
  auto* const sorted = reinterpret_cast<int32_t*>(ids_.data());
  if (Recording::capturing() == nullptr) {
    const std::vector<int32_t> numbers = sort_ids(on_host, dout.rows);  // while the device is at work
    device_.memory().upload(sorted, numbers.data(), numbers.size() * sizeof(int32_t));
  }
  cuda::embed_backward(dwte, dwpe, dout, ids, sorted, length, device_.stream());
}

void CudaOps::cross_entropy(float* losses, Matrix logits, const int32_t* targets, float grad_scale, Matrix gradient) {
  cuda::cross_entropy(losses, logits, targets, grad_scale, gradient, device_.stream());
}

void CudaOps::soft_cross_entropy(float* losses, Matrix logits, ConstMatrix q, const int32_t* targets, float share,
                                 float grad_scale, Matrix gradient) {
  cuda::soft_cross_entropy(losses, logits, q, targets, share, grad_scale, gradient, device_.stream());
}

void CudaOps::add_softmax(Matrix q, Matrix logits, float share, bool onto) {
  cuda::add_softmax(q, logits, share, onto, device_.stream());
}

void CudaOps::score(const RowScores& scores, ConstMatrix logits, const int32_t* targets) {
  cuda::score(scores, logits, targets, device_.stream());
}

double CudaOps::sum_squares(const float* x, int64_t n) {
  double* const sum = scratch_doubles(1 + sum_squares_doubles(n));
  cuda::sum_squares(sum, x, n, sum + 1, device_.stream());
  return read(sum);
}

void CudaOps::adamw(float* p, float* g, float* m, float* v, const AdamWRange* ranges, int64_t count,
                    const AdamWOptions& options) {
  cuda::adamw(p, g, m, v, ranges, count, options, nullptr, device_.stream());
}

// The host learns of the norm when the step is asked for already.
Clip CudaOps::update(const Update& u) {
  static_assert(sizeof(Clip) == 2 * sizeof(double));
  double* const sum = scratch_doubles(3 + sum_squares_doubles(u.size));
  auto* const clip = reinterpret_cast<Clip*>(sum + 1);
  const cudaStream_t stream = device_.stream();
  cuda::sum_squares(sum, u.g, u.size, sum + 3, stream);
  cuda::clip(clip, sum, u.max_norm, stream);
  cuda::adamw(u.p, u.g, u.m, u.v, u.ranges, u.count, u.options, clip, stream);
  return read(clip);
}

double CudaOps::muon_momentum(Matrix g, Matrix m, float momentum, float scale) {
  double* const sum = scratch_doubles(1 + g.rows);
  cuda::muon_momentum(sum, g, m, momentum, scale, sum + 1, device_.stream());
  return read(sum);
}

void CudaOps::scale(Matrix y, ConstMatrix x, float s) { cuda::scale(y, x, s, device_.stream()); }

void CudaOps::muon_direction(Matrix x, Matrix g, Matrix m, float momentum, float grad_scale) {
  double* const sum = scratch_doubles(1 + g.rows);
  cuda::muon_momentum(sum, g, m, momentum, grad_scale, sum + 1, device_.stream());
  cuda::muon_direction(x, g, sum, device_.stream());
}

void CudaOps::muon(Matrix p, Matrix o, const MuonOptions& options) { cuda::muon(p, o, options, device_.stream()); }

void CudaOps::average(float* y, const float* x, float rate, int64_t n) {
  cuda::average(y, x, rate, n, device_.stream());
}

}  // namespace soma::cuda
