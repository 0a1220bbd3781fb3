// Generation on the processor: the functions of ops/decode.h, on the threads of a region.
#pragma once

#include <memory>

#include "ops/decode_ops.h"

namespace soma {

std::unique_ptr<Decoding> make_cpu_decoding();

}  // namespace soma
