// Ops for a GPU: launches in its stream, with scratch memory that grows and is kept. Only sums come back to the host.
#pragma once

#include <vector>

#include "base/arena.h"
#include "ops/cuda/device.h"

namespace soma::cuda {

class CudaOps final : public Ops {
 public:
  CudaOps(CudaDevice& device, Precision precision)
      : device_(device), precision_(precision), scratch_(device.memory()), ids_(device.memory()) {}

  Operands operands() const override { return {precision_ == Precision::kBfloat16}; }
  LogitsLayout logits_layout(int64_t rows, int64_t vocab_size) const override;
  // In bfloat16, weights are rounded once a call, and so read at half their size.
  bool packs_first() const override { return operands().pairs; }
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
  Clip update(const Update& update) override;
  double muon_momentum(Matrix g, Matrix m, float momentum, float scale) override;
  void scale(Matrix y, ConstMatrix x, float s) override;
  void muon_direction(Matrix x, Matrix g, Matrix m, float momentum, float grad_scale) override;
  void muon(Matrix p, Matrix o, const MuonOptions& options) override;
  void average(float* y, const float* x, float rate, int64_t n) override;

 private:
  // Memory of the op under way, at least so much.
  float* scratch(int64_t floats);
  double* scratch_doubles(int64_t doubles) { return reinterpret_cast<double*>(scratch(2 * doubles)); }
  template <typename T>
  T read(const T* from);

  CudaDevice& device_;
  const Precision precision_;
  Arena scratch_, ids_;
};

}  // namespace soma::cuda
