// Generation on a GPU behind the interface of ops/decode_ops.h.
#pragma once

#include <memory>

#include "ops/cuda/device.h"

namespace soma::cuda {

std::unique_ptr<Decoding> make_cuda_decoding(CudaDevice& device);

}  // namespace soma::cuda
