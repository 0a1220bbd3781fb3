// Errors of CUDA as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace soma::cuda {

// A MemoryError: the process goes on.
class OutOfMemory final : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string what) : what_(std::move(what)) {}
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  const std::string what_;
};

[[noreturn]] inline void fail(const std::string& why) {
  throw std::runtime_error("the GPU failed: " + why + ". Start the program again; a run resumes from its last save");
}

// Throws what CUDA says of a call. Errors of kernels come with a later call.
inline void check(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // forgets it
    throw OutOfMemory("out of memory on the GPU: CUDA itself needs more than is free; end other programs there");
  }
  if (error != cudaSuccess) fail(cudaGetErrorString(error));
}

}  // namespace soma::cuda
