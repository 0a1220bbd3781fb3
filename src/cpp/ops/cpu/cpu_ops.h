// Ops for the CPU: kernels of the active ISA level, threads, and packing buffers that grow and are kept.
#pragma once

#include <vector>

#include "base/arena.h"
#include "kernels/kernels.h"
#include "ops/ops.h"

namespace soma {

// The kernel table of the active ISA level.
const kernels::Table& active_kernels();

class CpuOps final : public Ops {
 public:
  explicit CpuOps(Precision precision) : precision_(precision) {}

  Operands operands() const override { return {precision_ == Precision::kBfloat16}; }
  LogitsLayout logits_layout(int64_t rows, int64_t vocab_size) const override;
  bool packs_first() const override { return false; }
  void matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& epilogue) override;
  void weight_gradients(const WeightGradient* list, int64_t count) override;
  int64_t packed_floats(int64_t k, int64_t n) const override;
  void pack(const Packing* list, int64_t count) override;
  void norm(Matrix y, NormStats saved, ConstMatrix x, const NormWeights& w, float eps) override;
  void norm_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, NormStats saved, const NormWeights& w,
                     const float* residual, const Matrix* again) override;
  void norm_grad(float* dgamma, float* dbeta, ConstMatrix dy, ConstMatrix x, NormStats saved, NormKind kind) override;
  void attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& shape) override;
  void attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix out, ConstMatrix qkv, const float* lse,
                          const AttentionShape& shape, const RotationGradient* rotated) override;
  void sum_rows(float* out, ConstMatrix x) override;
  void dropout(Matrix y, ConstMatrix x, const Dropout& dropout) override;
  void embed(Matrix out, const int32_t* ids, ConstMatrix wte, const ConstMatrix* wpe, int64_t length,
             const Dropout& dropout) override;
  void embed_backward(Matrix dwte, const Matrix* dwpe, ConstMatrix dout, const int32_t* ids, const int32_t* on_host,
                      int64_t length) override;
  void cross_entropy(float* losses, Matrix logits, const int32_t* targets, float grad_scale, Matrix gradient) override;
  void soft_cross_entropy(float* losses, Matrix logits, ConstMatrix q, const int32_t* targets, float share,
                          float grad_scale, Matrix gradient) override;
  void add_softmax(Matrix q, Matrix logits, float share, bool onto) override;
  void score(const RowScores& scores, ConstMatrix logits, const int32_t* targets) override;
  double sum_squares(const float* x, int64_t n) override;
  void adamw(float* p, float* g, float* m, float* v, const AdamWRange* ranges, int64_t count,
             const AdamWOptions& options) override;
  double muon_momentum(Matrix g, Matrix m, float momentum, float scale) override;
  void scale(Matrix y, ConstMatrix x, float s) override;
  void muon(Matrix p, Matrix o, const MuonOptions& options) override;
  void average(float* y, const float* x, float rate, int64_t n) override;

 private:
  // Reserves `slots` pieces of `floats` floats; scratch(i) is piece i.
  void reserve_scratch(int64_t slots, int64_t floats);
  float* scratch(int64_t slot) { return scratch_.data() + slot * scratch_stride_; }

  const Precision precision_;
  Arena packed_b_{host_memory()}, scratch_{host_memory()};
  int64_t scratch_stride_ = 0;
  std::vector<double> partial_sums_;
};

}  // namespace soma
