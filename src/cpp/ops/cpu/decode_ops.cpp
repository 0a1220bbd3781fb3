// Hands the operations of generation on to the functions of ops/decode.h, with the region of the thread.
#include "ops/cpu/decode_ops.h"

#include "ops/cpu/ranges.h"

namespace soma {
namespace {

class CpuDecodeOps final : public DecodeOps {
 public:
  explicit CpuDecodeOps(const ParallelRegion& region) : region_(region) {}

  void linear(const Matrix& y, const Matrix& x, const DecodeMatrix& w, const RowEpilogue& e,
              const PromptMemory* memory) override {
    decode_linear(region_, y, x, w, e, memory);
  }
  void swiglu(const Matrix& y, const Matrix& hidden, const Matrix& x, const DecodeMatrix& w,
              const PromptMemory* memory) override {
    decode_swiglu(region_, y, hidden, x, w, memory);
  }
  void qkv(const Matrix& qkv, const Matrix& x, const DecodeMatrix& w, const float* bias, const HeadShape& shape,
           const PromptMemory* memory) override {
    decode_qkv(region_, qkv, x, w, bias, shape, memory);
  }
  void attention(const Matrix& out, const Matrix& qkv, const CacheRow* cache, const HeadShape& shape, float* scores,
                 const Rotation* rotation) override {
    decode_attention(region_, out, qkv, cache, shape, scores, rotation);
  }
  Matrix norm(float* buffer, const Matrix& x, const NormWeights& w, float eps) override {
    return decode_norm(region_, buffer, x, w, eps);
  }
  void sync() override { region_.wait(); }
  bool first() const override { return region_.rank == 0; }

 private:
  const ParallelRegion& region_;
};

class CpuDecoding final : public Decoding {
 public:
  int64_t packed_size(WeightFormat format, int64_t inner, int64_t outer) const override {
    return soma::packed_size(format, inner, outer);
  }
  DecodeMatrix pack(float* packed, float* scales, WeightFormat format, ConstMatrix w) override {
    return pack_weights(packed, scales, format, w);
  }
  void embed(const Matrix& out, const DecodeMatrix& table, const float* wpe, const int32_t* ids,
             const int64_t* positions) override {
    for (int64_t r = 0; r < out.rows; ++r) {
      float* const row = out.row(r);
      decode_embed(row, table, ids[r]);
      if (wpe == nullptr) continue;
      const float* const position = wpe + positions[r] * out.cols;
      for (int64_t j = 0; j < out.cols; ++j) row[j] += position[j];
    }
  }
  // An operation is a quarter of a block, and worth several waits.
  int64_t threads(int64_t work) const override { return threads_for(work / 4); }

 protected:
  void run_on(int64_t most, void (*body)(void* context, DecodeOps& ops), void* context) override {
    parallel_region(most, [&](const ParallelRegion& region) {
      CpuDecodeOps ops(region);
      body(context, ops);
    });
  }
};

}  // namespace

std::unique_ptr<Decoding> make_cpu_decoding() { return std::make_unique<CpuDecoding>(); }

}  // namespace soma
