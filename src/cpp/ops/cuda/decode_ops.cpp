// Each operation of generation as launches of its kernels. Long prompts with rounded weights take the tensor cores.
#include "ops/cuda/decode_ops.h"

#include "base/arena.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/decode.h"

namespace soma::cuda {
namespace {

class CudaDecodeOps final : public DecodeOps {
 public:
  explicit CudaDecodeOps(CudaDevice& device) : device_(device), scratch_(device.memory()) {}

  void linear(const Matrix& y, const Matrix& x, const DecodeMatrix& w, const RowEpilogue& e,
              const PromptMemory* memory) override {
    if (memory == nullptr || w.format == WeightFormat::kFloat32) return cuda::linear(y, x, w, e, device_.stream());
    by_tiles(y, x, w);
    finish_linear(y, w, e, device_.stream());
  }
  void swiglu(const Matrix& y, const Matrix& hidden, const Matrix& x, const DecodeMatrix& w,
              const PromptMemory* memory) override {
    linear(hidden, x, w, {}, memory);
    cuda::swiglu(y, hidden, device_.stream());
  }
  void qkv(const Matrix& qkv, const Matrix& x, const DecodeMatrix& w, const float* bias, const HeadShape&,
           const PromptMemory* memory) override {
    linear(qkv, x, w, {.bias = bias}, memory);
  }
  void attention(const Matrix& out, const Matrix& qkv, const CacheRow* cache, const HeadShape& shape, float*,
                 const Rotation* rotation) override {
    float* const parts = scratch(attention_floats(out.rows, cache, shape));
    cuda::attention(out, qkv, cache, shape, rotation, parts, device_.stream());
  }
  Matrix norm(float* buffer, const Matrix& x, const NormWeights& w, float eps) override {
    const Matrix y{buffer, x.rows, x.cols, x.ld};
    cuda::norm(y, {}, x, w, eps, device_.stream());
    return y;
  }
  void sync() override {}  // the stream is in order
  bool first() const override { return true; }

 private:
  // y = x W, both rounded to bfloat16, without scales. Never by cuBLASLt, whose bits depend on the rows of a batch.
  void by_tiles(const Matrix& y, const Matrix& x, const DecodeMatrix& w) {
    const Operands pairs{.pairs = true};
    const int64_t widened = w.format == WeightFormat::kInt8 ? pairs.floats(w.outer, w.inner) : 0;
    ConstMatrix weights = pairs.matrix(nullptr, w.outer, w.inner);
    float* const memory = scratch(widened + matmul_floats(x, weights.t(), {}, Precision::kBfloat16));
    weights.data = widened > 0 ? memory : reinterpret_cast<const float*>(w.data);
    if (widened > 0) widen(pairs.matrix(memory, w.outer, w.inner), w, device_.stream());
    matmul(y, x, weights.t(), {}, Precision::kBfloat16, memory + widened, device_.stream());
  }
  // Memory of the operation under way.
  float* scratch(int64_t floats) {
    scratch_.reserve(floats);
    return scratch_.data();
  }

  CudaDevice& device_;
  Arena scratch_;
};

class CudaDecoding final : public Decoding {
 public:
  explicit CudaDecoding(CudaDevice& device) : device_(device), ops_(device) {}

  int64_t packed_size(WeightFormat format, int64_t inner, int64_t outer) const override {
    return outer * row_floats(format, inner);
  }
  DecodeMatrix pack(float* packed, float* scales, WeightFormat format, ConstMatrix w) override {
    cuda::pack(packed, scales, format, w, device_.stream());
    return {format, WeightLayout::kPanels, w.height(), w.width(), reinterpret_cast<const char*>(packed), scales, false};
  }
  void embed(const Matrix& out, const DecodeMatrix& table, const float* wpe, const int32_t* ids,
             const int64_t* positions) override {
    cuda::embed(out, table, wpe, ids, positions, device_.stream());
  }
  int64_t threads(int64_t) const override { return 1; }

 protected:
  void run_on(int64_t, void (*body)(void* context, DecodeOps& ops), void* context) override { body(context, ops_); }

 private:
  CudaDevice& device_;
  CudaDecodeOps ops_;
};

}  // namespace

std::unique_ptr<Decoding> make_cuda_decoding(CudaDevice& device) {
  expect_no_fork();
  return std::make_unique<CudaDecoding>(device);
}

}  // namespace soma::cuda
