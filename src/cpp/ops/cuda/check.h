// Errors of CUDA as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace soma::cuda {

// Throws what CUDA says of a call. Errors of kernels come with a later call.
inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("the GPU failed: ") + cudaGetErrorString(error) +
                           ". Start the program again; a run resumes from its last save");
}

}  // namespace soma::cuda
