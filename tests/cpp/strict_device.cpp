// A device for tests: the processor, with memory that is closed to the host but for ops and copies. Code of the host
// that touches it ends the process. As on a GPU, NumPy gets copies, and no two ops run side by side.
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "base/fork.h"
#include "ops/device.h"

namespace soma {
namespace {

class StrictMemory final : public Memory {
 public:
  void* allocate(std::size_t bytes, bool) override {
    const Locked locked(*this);
    void* block = mmap(nullptr, bytes, access(), MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    blocks_[block] = bytes;
    return block;
  }
  void release(void* block) noexcept override {
    const Locked locked(*this);
    munmap(block, blocks_.at(block));
    blocks_.erase(block);
  }
  void upload(void* to, const void* host, std::size_t bytes) override {
    opened([&] { host_memory().upload(to, host, bytes); });
  }
  void download(void* host, const void* from, std::size_t bytes, std::size_t rows, std::size_t stride) override {
    opened([&] { host_memory().download(host, from, bytes, rows, stride); });
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    opened([&] { host_memory().copy(to, from, bytes); });
  }
  void clear(void* at, std::size_t bytes) override {
    opened([&] { host_memory().clear(at, bytes); });
  }
  void exchange(void* a, void* b, std::size_t bytes) override {
    opened([&] { host_memory().exchange(a, b, bytes); });
  }
  bool on_host() const override { return false; }

  // For the child of a fork: the threads that had opened the memory are not in it.
  void close_in_child() { count(-users_); }

  // Runs f with the memory open. Calls of several models may overlap.
  template <typename F>
  auto opened(F&& f) -> decltype(f()) {
    struct Open {
      StrictMemory& memory;
      explicit Open(StrictMemory& m) : memory(m) { memory.count(1); }
      ~Open() { memory.count(-1); }
    };
    const Open open(*this);
    return f();
  }

 private:
  // A fork waits for it, so that a child finds neither the lock taken nor half of the blocks closed.
  struct Locked {
    explicit Locked(StrictMemory& m) : guard(m.lock_) {}
    const NoFork no_fork;
    const std::lock_guard<std::mutex> guard;
  };

  int access() const { return users_ > 0 ? PROT_READ | PROT_WRITE : PROT_NONE; }
  void count(int more) {
    const Locked locked(*this);
    const int before = access();
    users_ += more;
    if (access() == before) return;
    for (const auto& [block, bytes] : blocks_) {
      if (mprotect(block, bytes, access()) != 0) std::abort();
    }
  }

  std::mutex lock_;
  std::map<void*, std::size_t> blocks_;
  int users_ = 0;
};

StrictMemory& memory() {
  static StrictMemory& strict = *[] {  // never destroyed, since models may outlive static objects
    pthread_atfork(nullptr, nullptr, [] { memory().close_in_child(); });  // behind the handler that makes NoFork anew
    return new StrictMemory;
  }();
  return strict;
}

class StrictOps final : public Ops {
 public:
  explicit StrictOps(std::unique_ptr<Ops> inner) : inner_(std::move(inner)) {}

  Operands operands() const override { return inner_->operands(); }
  // Fewer rows, whole tiles of AMX, and another distance: both are to be asked of the ops.
  LogitsLayout logits_layout(int64_t rows, int64_t vocab_size) const override {
    const LogitsLayout layout = inner_->logits_layout(rows, vocab_size);
    return {std::min<int64_t>(layout.rows, 64), layout.ld + 16};
  }
  bool packs_first() const override { return true; }
  int64_t packed_floats(int64_t k, int64_t n) const override { return inner_->packed_floats(k, n); }

  void matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& e) override {
    memory().opened([&] { inner_->matmul(c, a, b, e); });
  }
  void weight_gradients(const WeightGradient* list, int64_t count) override {
    memory().opened([&] { inner_->weight_gradients(list, count); });
  }
  void pack(const Packing* list, int64_t count) override {
    memory().opened([&] { inner_->pack(list, count); });
  }
  void norm(Matrix y, NormStats saved, ConstMatrix x, const NormWeights& w, float eps) override {
    memory().opened([&] { inner_->norm(y, saved, x, w, eps); });
  }
  void norm_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, NormStats saved, const NormWeights& w,
                     const float* residual, const Matrix* again) override {
    memory().opened([&] { inner_->norm_backward(dx, dy, x, saved, w, residual, again); });
  }
  void norm_grad(float* dgamma, float* dbeta, ConstMatrix dy, ConstMatrix x, NormStats saved, NormKind kind) override {
    memory().opened([&] { inner_->norm_grad(dgamma, dbeta, dy, x, saved, kind); });
  }
  void attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& shape) override {
    memory().opened([&] { inner_->attention(out, lse, qkv, shape); });
  }
  void attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix out, ConstMatrix qkv, const float* lse,
                          const AttentionShape& shape, const RotationGradient* rotated) override {
    memory().opened([&] { inner_->attention_backward(dqkv, dout, out, qkv, lse, shape, rotated); });
  }
  void sum_rows(float* out, ConstMatrix x) override {
    memory().opened([&] { inner_->sum_rows(out, x); });
  }
  void dropout(Matrix y, ConstMatrix x, const Dropout& dropout) override {
    memory().opened([&] { inner_->dropout(y, x, dropout); });
  }
  void embed(Matrix out, const int32_t* ids, ConstMatrix wte, const ConstMatrix* wpe, int64_t length,
             const Dropout& dropout) override {
    memory().opened([&] { inner_->embed(out, ids, wte, wpe, length, dropout); });
  }
  void embed_backward(Matrix dwte, const Matrix* dwpe, ConstMatrix dout, const int32_t* ids, const int32_t* on_host,
                      int64_t length) override {
    memory().opened([&] { inner_->embed_backward(dwte, dwpe, dout, ids, on_host, length); });
  }
  void cross_entropy(float* losses, Matrix logits, const int32_t* targets, float grad_scale, Matrix g) override {
    memory().opened([&] { inner_->cross_entropy(losses, logits, targets, grad_scale, g); });
  }
  void soft_cross_entropy(float* losses, Matrix logits, ConstMatrix q, const int32_t* targets, float share,
                          float grad_scale, Matrix g) override {
    memory().opened([&] { inner_->soft_cross_entropy(losses, logits, q, targets, share, grad_scale, g); });
  }
  void add_softmax(Matrix q, Matrix logits, float share, bool onto) override {
    memory().opened([&] { inner_->add_softmax(q, logits, share, onto); });
  }
  void score(const RowScores& scores, ConstMatrix logits, const int32_t* targets) override {
    memory().opened([&] { inner_->score(scores, logits, targets); });
  }
  double sum_squares(const float* x, int64_t n) override {
    return memory().opened([&] { return inner_->sum_squares(x, n); });
  }
  void adamw(float* p, float* g, float* m, float* v, const AdamWRange* ranges, int64_t count,
             const AdamWOptions& options) override {
    memory().opened([&] { inner_->adamw(p, g, m, v, ranges, count, options); });
  }
  double muon_momentum(Matrix g, Matrix m, float momentum, float scale) override {
    return memory().opened([&] { return inner_->muon_momentum(g, m, momentum, scale); });
  }
  void scale(Matrix y, ConstMatrix x, float s) override {
    memory().opened([&] { inner_->scale(y, x, s); });
  }
  void muon(Matrix p, Matrix o, const MuonOptions& options) override {
    memory().opened([&] { inner_->muon(p, o, options); });
  }
  void average(float* y, const float* x, float rate, int64_t n) override {
    memory().opened([&] { inner_->average(y, x, rate, n); });
  }

 private:
  const std::unique_ptr<Ops> inner_;
};

class StrictDecodeOps final : public DecodeOps {
 public:
  explicit StrictDecodeOps(DecodeOps& inner) : inner_(inner) {}

  void linear(const Matrix& y, const Matrix& x, const DecodeMatrix& w, const RowEpilogue& e,
              const PromptMemory* prompt) override {
    memory().opened([&] { inner_.linear(y, x, w, e, prompt); });
  }
  void swiglu(const Matrix& y, const Matrix& hidden, const Matrix& x, const DecodeMatrix& w,
              const PromptMemory* prompt) override {
    memory().opened([&] { inner_.swiglu(y, hidden, x, w, prompt); });
  }
  void qkv(const Matrix& qkv, const Matrix& x, const DecodeMatrix& w, const float* bias, const HeadShape& shape,
           const PromptMemory* prompt) override {
    memory().opened([&] { inner_.qkv(qkv, x, w, bias, shape, prompt); });
  }
  void attention(const Matrix& out, const Matrix& qkv, const CacheRow* cache, const HeadShape& shape, float* scores,
                 const Rotation* rotation) override {
    memory().opened([&] { inner_.attention(out, qkv, cache, shape, scores, rotation); });
  }
  Matrix norm(float* buffer, const Matrix& x, const NormWeights& w, float eps) override {
    return memory().opened([&] { return inner_.norm(buffer, x, w, eps); });
  }
  void sync() override { inner_.sync(); }
  bool first() const override { return inner_.first(); }

 private:
  DecodeOps& inner_;
};

class StrictDecoding final : public Decoding {
 public:
  int64_t packed_size(WeightFormat format, int64_t inner, int64_t outer) const override {
    return inner_->packed_size(format, inner, outer);
  }
  DecodeMatrix pack(float* packed, float* scales, WeightFormat format, ConstMatrix w) override {
    return memory().opened([&] { return inner_->pack(packed, scales, format, w); });
  }
  void embed(const Matrix& out, const DecodeMatrix& table, const float* wpe, const int32_t* ids,
             const int64_t* positions) override {
    memory().opened([&] { inner_->embed(out, table, wpe, ids, positions); });
  }
  int64_t threads(int64_t) const override { return 1; }

 protected:
  void run_on(int64_t, void (*body)(void* context, DecodeOps& ops), void* context) override {
    inner_->run(1, [&](DecodeOps& ops) {
      StrictDecodeOps strict(ops);
      body(context, strict);
    });
  }

 private:
  const std::unique_ptr<Decoding> inner_ = cpu_device().make_decoding();
};

class StrictDevice final : public Device {
 public:
  std::string name() const override { return cpu_device().name(); }  // so that tests need not ask for it
  Memory& memory() override { return soma::memory(); }
  std::unique_ptr<Ops> make_ops(Precision precision) override {
    return std::make_unique<StrictOps>(cpu_device().make_ops(precision));
  }
  std::unique_ptr<Decoding> make_decoding() override { return std::make_unique<StrictDecoding>(); }
  int64_t splits() const override { return 1; }
  void finish() override {}

 protected:
  void run_call(void (*body)(void* context), void* context) override {
    cpu_device().run([&] { body(context); });
  }
};

StrictDevice device;

}  // namespace

Device& strict_device() { return device; }

}  // namespace soma
