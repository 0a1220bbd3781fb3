// Generation behind one interface per device. ops/decode.h says what each operation computes, and has the bodies for
// the processor.
#pragma once

#include <type_traits>

#include "ops/decode.h"

namespace soma {

// The operations of the blocks. The processor runs a block on several threads, each with operations of its own, which
// compute a share of each result. Results of one operation may be read by the next after sync().
class DecodeOps {
 public:
  virtual ~DecodeOps() = default;

  virtual void linear(const Matrix& y, const Matrix& x, const DecodeMatrix& w, const RowEpilogue& e = {},
                      const PromptMemory* memory = nullptr) = 0;
  virtual void swiglu(const Matrix& y, const Matrix& hidden, const Matrix& x, const DecodeMatrix& w,
                      const PromptMemory* memory = nullptr) = 0;
  // attention() may follow qkv() without sync().
  virtual void qkv(const Matrix& qkv, const Matrix& x, const DecodeMatrix& w, const float* bias, const HeadShape& shape,
                   const PromptMemory* memory = nullptr) = 0;
  // `cache` is an array of the host, whose rows are memory of the device.
  virtual void attention(const Matrix& out, const Matrix& qkv, const CacheRow* cache, const HeadShape& shape,
                         float* scores, const Rotation* rotation = nullptr) = 0;
  virtual Matrix norm(float* buffer, const Matrix& x, const NormWeights& w, float eps) = 0;
  virtual void sync() = 0;
  virtual bool first() const = 0;  // of the threads of a run
};

// The rest of generation on a device.
class Decoding {
 public:
  virtual ~Decoding() = default;

  // As packed_size and pack_weights.
  virtual int64_t packed_size(WeightFormat format, int64_t inner, int64_t outer) const = 0;
  virtual DecodeMatrix pack(float* packed, float* scales, WeightFormat format, ConstMatrix w) = 0;
  // out[r] = table[:, ids[r]] + wpe[positions[r]]; wpe may be null. ids and positions are arrays of the host.
  virtual void embed(const Matrix& out, const DecodeMatrix& table, const float* wpe, const int32_t* ids,
                     const int64_t* positions) = 0;
  // Threads that are worth waking for operations of `work` multiply-adds in a block.
  virtual int64_t threads(int64_t work) const = 0;

  // Calls f(ops) on each of at most `most` threads. f must not throw.
  template <typename F>
  void run(int64_t most, F&& f) {
    using Function = std::remove_reference_t<F>;
    run_on(
        most, [](void* context, DecodeOps& ops) { (*static_cast<Function*>(context))(ops); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 protected:
  virtual void run_on(int64_t most, void (*body)(void* context, DecodeOps& ops), void* context) = 0;
};

}  // namespace soma
