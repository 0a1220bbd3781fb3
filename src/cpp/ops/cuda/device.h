// A GPU as a device: its memory, and one stream in which everything is done in order.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "ops/cuda/cublas.h"
#include "ops/cuda/graphs.h"

namespace soma::cuda {

class CudaDevice;

class CudaMemory final : public Memory {
 public:
  explicit CudaMemory(CudaDevice& device) : device_(device) {}

  // Throws a std::bad_alloc that says how much was asked for and is free.
  void* allocate(std::size_t bytes, bool dense) override;
  void release(void* block) noexcept override;
  void upload(void* to, const void* host, std::size_t bytes) override;
  void download(void* host, const void* from, std::size_t bytes, std::size_t rows, std::size_t stride) override;
  void copy(void* to, const void* from, std::size_t bytes) override;
  void clear(void* at, std::size_t bytes) override;
  void exchange(void* a, void* b, std::size_t bytes) override;  // of floats
  bool on_host() const override { return false; }

 private:
  CudaDevice& device_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int number);

  std::string name() const override { return number_ == 0 ? "cuda" : "cuda:" + std::to_string(number_); }
  Memory& memory() override { return memory_; }
  std::unique_ptr<Ops> make_ops(Precision precision) override;
  std::unique_ptr<Decoding> make_decoding() override;
  int64_t splits() const override { return 1; }
  int64_t free_bytes() override;
  void finish() override;
  // Makes this GPU the thread's, and waits for its launches: cudaFree frees on the thread's GPU, and need not wait.
  void settle() noexcept;

  // For a product of so many multiply-adds, if it is large and cuBLASLt is there; else null.
  Cublas* large(int64_t multiply_adds) {
    return cublas_ != nullptr && cublas_->wants(multiply_adds) ? cublas_.get() : nullptr;
  }
  // For the calls that follow on this thread. Throws in the child of a fork.
  cudaStream_t stream();

 protected:
  void run_call(void (*body)(void* context), void* context) override { body(context); }
  bool records() const override { return true; }
  void repeat_call(const Repeats& owner, void (*body)(void* context), void* context) override {
    graphs_->run(&owner, stream(), body, context);
  }
  void forget(const Repeats& owner) noexcept override;

 private:
  const int number_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Cublas> cublas_;
  std::unique_ptr<Graphs> graphs_;
  CudaMemory memory_{*this};
};

// Throws in the child of a process that used CUDA before the fork.
void expect_no_fork();
void forget_use();  // nothing of CUDA was there to use
// Whether this is such a child. What it had on a GPU is its parent's.
bool forked();

}  // namespace soma::cuda
