// Ops that measure other Ops: calls, wall time, and the cost of each call, computed from its arguments by equation.
// Without an override for a new op, this class is abstract and does not compile.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "ops/device.h"

namespace soma {

// The cost of a call. Bytes count each operand once, as if caches held everything that a call reads again.
struct OpCost {
  double products = 0;           // floating-point operations of matrix products; a multiply-add is two
  double flops = 0;              // other operations; an exponential counts as its polynomial
  double read = 0, written = 0;  // bytes

  OpCost& operator+=(const OpCost& more) {
    products += more.products;
    flops += more.flops;
    read += more.read;
    written += more.written;
    return *this;
  }
};

// All calls of one op with one shape.
struct OpRecord {
  std::string op;                  // for a product with the layout of its operands and its epilogue
  const char* group;               // ops that are reported together
  std::array<int64_t, 4> shape{};  // sizes of the op, then zeros; products: rows, columns, depth
  int64_t calls = 0;
  double seconds = 0;
  OpCost cost{};
};

// Adds `more` to the record of its op and shape.
void add_record(std::vector<OpRecord>* records, const OpRecord& more);

class ProfiledOps final : public Ops {
 public:
  ProfiledOps(Device& device, Ops& inner) : device_(device), inner_(inner) {}

  // The records since the last call, in the order of first use.
  std::vector<OpRecord> take() { return std::exchange(records_, {}); }

  Operands operands() const override { return inner_.operands(); }
  LogitsLayout logits_layout(int64_t rows, int64_t vocab_size) const override {
    return inner_.logits_layout(rows, vocab_size);
  }
  bool packs_first() const override { return inner_.packs_first(); }
  void matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& epilogue) override;
  void weight_gradients(const WeightGradient* list, int64_t count) override;
  int64_t packed_floats(int64_t k, int64_t n) const override { return inner_.packed_floats(k, n); }
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
  // Runs `call` and adds it to the record of this op and shape.
  template <typename Call>
  auto timed(std::string op, const char* group, std::array<int64_t, 4> shape, const OpCost& cost, Call&& call);

  Device& device_;
  Ops& inner_;
  std::vector<OpRecord> records_;
};

}  // namespace soma
