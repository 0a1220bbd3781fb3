// Memory of a GPU, and its stream.
#include "ops/cuda/device.h"

#include <pthread.h>

#include <atomic>

#include "ops/cuda/check.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/decode_ops.h"
#include "ops/cuda/device_ops.h"

namespace soma::cuda {
namespace {

std::atomic<bool> used{false}, in_child{false};

[[maybe_unused]] const int installed = pthread_atfork(nullptr, nullptr, [] { in_child = used.load(); });

// Whether a recording looks, which notes the copy (from null: the clearing) instead.
bool noted(const void* to, const void* from, std::size_t bytes) {
  Recording* const recording = Recording::looking();
  if (recording == nullptr) return false;
  recording->note(to);
  recording->note(from);
  recording->note(bytes);
  return true;
}

}  // namespace

bool forked() { return in_child; }

void forget_use() { used = false; }

void expect_no_fork() {
  used = true;
  if (!in_child) return;
  throw std::runtime_error(
      "this process was forked from one that had used a GPU, and cannot use it: start processes with "
      "multiprocessing.get_context('spawn'), or use the GPU in the children alone");
}

void* CudaMemory::allocate(std::size_t bytes, bool) {
  if (Recording::capturing() != nullptr) throw std::logic_error("CUDA: a recorded call takes memory");
  const cudaStream_t stream = device_.stream();
  void* block = nullptr;
  const cudaError_t error = cudaMalloc(&block, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // forgets it
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total));
    throw OutOfMemory("out of memory on " + device_.name() + ": " + std::to_string(bytes) + " bytes asked, " +
                      std::to_string(free) + " of " + std::to_string(total) +
                      " bytes free; a smaller batch, length or model needs less");
  }
  check(error);
  check(cudaMemsetAsync(block, 0, bytes, stream));
  return block;
}

void CudaMemory::release(void* block) noexcept {
  if (forked()) return;
  device_.settle();
  cudaFree(block);  // after an error there is nothing left to free
}

void CudaMemory::upload(void* to, const void* host, std::size_t bytes) {
  check(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, device_.stream()));
  device_.finish();
}

void CudaMemory::download(void* host, const void* from, std::size_t bytes, std::size_t rows, std::size_t stride) {
  if (Recording::current() != nullptr) throw std::logic_error("CUDA: a recorded call reads what is not computed yet");
  const cudaStream_t stream = device_.stream();
  if (rows == 1) {
    check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream));
  } else {
    check(cudaMemcpy2DAsync(host, bytes, from, stride, bytes, rows, cudaMemcpyDeviceToHost, stream));
  }
  device_.finish();
}

void CudaMemory::copy(void* to, const void* from, std::size_t bytes) {
  if (noted(to, from, bytes)) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device_.stream()));
}

void CudaMemory::clear(void* at, std::size_t bytes) {
  if (noted(at, nullptr, bytes)) return;
  check(cudaMemsetAsync(at, 0, bytes, device_.stream()));
}

void CudaMemory::exchange(void* a, void* b, std::size_t bytes) {
  cuda::exchange(static_cast<float*>(a), static_cast<float*>(b), static_cast<int64_t>(bytes / sizeof(float)),
                 device_.stream());
}

CudaDevice::CudaDevice(int number) : number_(number) {
  check(cudaSetDevice(number));
  if (const CublasLibrary* const library = cublas_library()) cublas_ = std::make_unique<Cublas>(*library);
  check(cudaStreamCreate(&stream_));
  graphs_ = std::make_unique<Graphs>();
}

cudaStream_t CudaDevice::stream() {
  expect_no_fork();
  check(cudaSetDevice(number_));
  const Recording* const recording = Recording::capturing();
  return recording != nullptr ? recording->stream() : stream_;
}

int64_t CudaDevice::free_bytes() {
  stream();  // makes it the GPU of this thread
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

void CudaDevice::finish() { check(cudaStreamSynchronize(stream())); }

void CudaDevice::settle() noexcept {
  if (cudaSetDevice(number_) == cudaSuccess) cudaStreamSynchronize(stream_);
}

void CudaDevice::forget(const Repeats& owner) noexcept {
  if (!forked()) graphs_->forget(&owner);
}

std::unique_ptr<Ops> CudaDevice::make_ops(Precision precision) {
  expect_no_fork();
  return std::make_unique<CudaOps>(*this, precision);
}

std::unique_ptr<Decoding> CudaDevice::make_decoding() { return make_cuda_decoding(*this); }

}  // namespace soma::cuda
