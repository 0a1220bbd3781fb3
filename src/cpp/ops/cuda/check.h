// Errors of CUDA as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace soma::cuda {

[[noreturn]] inline void fail(const std::string& why) {
  throw std::runtime_error("the GPU failed: " + why + ". Start the program again; a run resumes from its last save");
}

// Throws what CUDA says of a call. Errors of kernels come with a later call.
inline void check(cudaError_t error) {
  if (error != cudaSuccess) fail(cudaGetErrorString(error));
}

}  // namespace soma::cuda
