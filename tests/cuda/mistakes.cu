// Kernels with one mistake each, and right ones: `mistakes NAME ORDER SEED` runs one. The emulation must end it, with a
// message that names the kernel, the line, the block and the thread. The line with the mistake says so.
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "ops/cuda/language.h"

namespace soma::cuda {
namespace {

// ------------------------------------------------------------------------------------------------ waiting for others

__global__ void divergent_barrier(float* x, int64_t) {
  if (threadIdx.x < 16) __syncthreads();  // mistake
  x[threadIdx.x] = 1;
}
__global__ void two_barriers(float* x, int64_t) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();  // mistake
  }
  x[threadIdx.x] = 1;
}
__global__ void lane_outside_its_mask(float* x, int64_t) {
  x[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 3);  // mistake
}
__global__ void value_from_outside_the_mask(float* x, int64_t) {
  if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 16);  // mistake
}
__global__ void lane_missing(float* x, int64_t) {
  if (threadIdx.x != 3) x[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);  // mistake
}
__global__ void masks_differ(float* x, int64_t) {
  x[threadIdx.x] = __shfl_xor_sync(threadIdx.x == 5 ? 0xffu : kAllLanes, 1.0f, 1);  // mistake
}

// ------------------------------------------------------------------------------------------------------------- races

__global__ void race_in_shared_memory(float* x, int64_t) {
  SOMA_SHARED(float, s, 64);
  s[threadIdx.x] = 1;
  x[threadIdx.x] = s[63 - threadIdx.x];  // mistake
}
// The result is right in most orders: the read of the last round races with the write of the next one.
__global__ void race_of_rounds(float* x, int64_t) {
  SOMA_SHARED(float, s, 64);
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    s[threadIdx.x] = 1;  // mistake
    __syncthreads();
    sum += s[63 - threadIdx.x];
  }
  x[threadIdx.x] = sum;
}
__global__ void race_in_a_warp(float* x, int64_t) {
  SOMA_SHARED(float, s, 64);
  s[threadIdx.x] = 1;
  const float other = __shfl_xor_sync(kAllLanes, 1.0f, 1);  // orders no memory
  x[threadIdx.x] = other + s[threadIdx.x ^ 1];              // mistake
}
__global__ void race_of_blocks(float* x, int64_t) {
  if (threadIdx.x == 0) x[0] = 1;  // mistake
}
__global__ void race_of_a_sum(float* x, int64_t) {
  x[blockIdx.x * blockDim.x + threadIdx.x] = 0;
  __syncthreads();
  x[threadIdx.x / 2] += 1;  // mistake
}

// ------------------------------------------------------------------------------------------------------------ memory

__global__ void unwritten_shared_memory(float* x, int64_t) {
  SOMA_SHARED(float, s, 64);
  if (threadIdx.x < 16) s[threadIdx.x] = 1;
  __syncthreads();
  x[threadIdx.x] = s[threadIdx.x];  // mistake
}
__global__ void unwritten_memory(float* x, int64_t n) {
  if (threadIdx.x == 0) x[0] = x[n - 1];  // mistake
}
__global__ void past_the_end(float* x, int64_t n) {
  x[(blockIdx.x * n + threadIdx.x) / 2] = 1;  // mistake
}
__global__ void past_shared_memory(float* x, int64_t) {
  SOMA_SHARED(float, s, 63);
  s[threadIdx.x] = 1;  // mistake
  x[threadIdx.x] = 1;
}
__global__ void much_shared_memory(float* x, int64_t) {
  SOMA_SHARED(float, s, 12289);  // mistake
  x[threadIdx.x] = s[threadIdx.x] = 1;
}
__global__ void memory_of_the_host(float* x, int64_t address) {
  x[threadIdx.x] = *reinterpret_cast<const float*>(address);  // mistake
}
__global__ void misaligned_load(float* x, int64_t) {
  if (threadIdx.x == 0) x[0] = 1, x[1] = 1, x[2] = load_2(x + 1).x;  // mistake
}
__global__ void fill(float* x, int64_t) { x[threadIdx.x] = 1; }

// ------------------------------------------------------------------------------------------------------------ copies

__global__ void misaligned_copy(float* x, int64_t) {
  SOMA_SHARED(float, s, 64);
  copy_16(s + threadIdx.x, x, false);  // mistake
  end_copies();
  await_copies<0>();
}
__global__ void misaligned_row(float* x, int64_t) {
  SOMA_SHARED(uint16_t, s, 2048);
  for (unsigned i = threadIdx.x; i < 2048; i += blockDim.x) s[i] = 0;
  __syncthreads();
  uint32_t r[4];
  load_tiles<false>(r, s + 4 + threadIdx.x * 8);  // mistake
  x[threadIdx.x] = static_cast<float>(r[0]);
}
template <int kLeft, bool kBarrier>
__device__ void copy_and_read(float* x) {
  SOMA_SHARED(float, s, 2 * 64 * 4);
  x[threadIdx.x] = 1;
  __syncthreads();
  for (unsigned i = 0; i < 2; ++i) {
    copy_16(s + (i * 64 + threadIdx.x) * 4, x + threadIdx.x / 4 * 4, true);
    end_copies();
  }
  await_copies<kLeft>();
  if (kBarrier) __syncthreads();
  const float read = s[(64 + 63 - threadIdx.x) * 4];  // mistake
  __syncthreads();
  await_copies<0>();
  x[threadIdx.x] = read;
}
__global__ void copy_awaited_too_late(float* x, int64_t) { copy_and_read<1, true>(x); }
__global__ void copy_of_others_without_a_barrier(float* x, int64_t) { copy_and_read<0, false>(x); }
__global__ void copy_never_awaited(float* x, int64_t) {
  SOMA_SHARED(float, s, 64);
  x[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) copy_16(s, x, true);  // mistake
  end_copies();
}

// ------------------------------------------------------------------------------------------------------- without any

// x[i] = the sum of a block of 64 ones, times a product and what came by a copy; all parts of the language.
__global__ void right(float* x, int64_t n) {
  SOMA_SHARED(float, s, 64);
  SOMA_SHARED(float, copied, 256);
  SOMA_SHARED(uint16_t, tiles, 2 * 1024);
  const unsigned i = threadIdx.x, lane = i % 32, at = blockIdx.x * blockDim.x + i;
  float sum = 1;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  if (lane < 8) sum += 0 * __shfl_sync(0xffu, sum, 7 - static_cast<int>(lane));
  s[i] = sum;
  __syncwarp();
  sum = s[i ^ 1];
  __syncthreads();
  sum += s[63 - i];
  for (unsigned j = i; j < 2048; j += 64) tiles[j] = 0x3f80;  // 1 in bfloat16
  if (at < n) x[at] = 1;
  __syncthreads();
  copy_16(copied + i * 4, x + at / 4 * 4, at / 4 * 4 + 4 <= n);
  end_copies();
  uint32_t a[4], b[4];
  load_tiles<false>(a, tiles + lane * 8);
  load_tiles<true>(b, tiles + 1024 + lane * 8);
  float c[4] = {};
  multiply_tile(c, a, {b[0], b[1]});
  await_copies<0>();
  __syncthreads();
  if (at < n) x[at] = sum * c[0] / 16 * copied[(63 - i) * 4];
}

struct Case {
  void (*kernel)(float*, int64_t);
  unsigned blocks = 1, threads = 64;
};
const std::map<std::string, Case> kCases{
#define CASE(name, ...)                        \
  {                                            \
    #name, { name __VA_OPT__(, ) __VA_ARGS__ } \
  }
    CASE(divergent_barrier),
    CASE(two_barriers),
    CASE(lane_outside_its_mask, 1, 32),
    CASE(value_from_outside_the_mask),
    CASE(lane_missing),
    CASE(masks_differ),
    CASE(race_in_shared_memory),
    CASE(race_of_rounds),
    CASE(race_in_a_warp, 1, 32),
    CASE(race_of_blocks, 2),
    CASE(race_of_a_sum),
    CASE(unwritten_shared_memory),
    CASE(unwritten_memory),
    CASE(past_the_end, 3, 1),
    CASE(past_shared_memory),
    CASE(much_shared_memory),
    CASE(memory_of_the_host),
    CASE(misaligned_load),
    CASE(misaligned_copy),
    CASE(misaligned_row),
    CASE(copy_awaited_too_late),
    CASE(copy_of_others_without_a_barrier),
    CASE(copy_never_awaited),
    CASE(right, 3),
#undef CASE
};

float* allocate(int64_t n) {
  void* p = nullptr;
  check(cudaMalloc(&p, static_cast<std::size_t>(n) * sizeof(float)));
  return static_cast<float*>(p);
}
void launch(const Case& c, float* x, int64_t n, cudaStream_t stream = nullptr) {
  Kernel{c.kernel, c.blocks, c.threads, stream}(x, n);
}
std::vector<float> download(const float* x, int64_t n) {
  std::vector<float> host(static_cast<std::size_t>(n));
  check(cudaMemcpy(host.data(), x, host.size() * sizeof(float), cudaMemcpyDeviceToHost));
  return host;
}

// Mistakes of the host, which lie outside a kernel.
const std::map<std::string, std::function<void()>> kOfTheHost{
    {"host_reads", [] { std::printf("%g", allocate(64)[3]); }},
    {"host_writes_while_a_kernel_waits",
     [] {
       float* const x = allocate(64);
       launch({fill}, x, 64);
       x[0] = 2;
     }},
    {"copy_past_the_end", [] { download(allocate(64), 65); }},
    {"released_twice",
     [] {
       float* const x = allocate(64);
       cudaFree(x);
       cudaFree(x);
     }},
    {"released_before_use",
     [] {
       float* const x = allocate(64);
       cudaFree(x);
       launch({fill}, x, 64);
       cudaDeviceSynchronize();
     }},
    {"copy_after_release",
     [] {
       float* const x = allocate(64);
       cudaFree(x);
       download(x, 64);
     }},
    {"another_stream_without_an_event",
     [] {
       cudaStream_t other = nullptr;
       check(cudaStreamCreate(&other));
       float* const x = allocate(64);
       launch({fill}, x, 64);
       launch({unwritten_memory}, x, 64, other);
       check(cudaStreamSynchronize(other));
     }},
};

// An event orders streams; a launch waits until then; what does not fit, or no GPU would launch, is an error.
void run_host_right() {
  cudaStream_t other = nullptr;
  cudaEvent_t event = nullptr;
  check(cudaStreamCreate(&other));
  check(cudaEventCreate(&event));
  float* const x = allocate(64);
  launch({fill}, x, 64);
  check(cudaEventRecord(event, nullptr));
  check(cudaStreamWaitEvent(other, event, 0));
  launch({unwritten_memory}, x, 64, other);
  check(cudaStreamSynchronize(other));
  float seen = 0;
  check(cudaMemcpyAsync(&seen, x, sizeof seen, cudaMemcpyDeviceToHost, other));
  const bool waits = seen == 0;
  check(cudaDeviceSynchronize());
  emulation::set_memory(4096);
  void* p = nullptr;
  const bool refused = cudaMalloc(&p, 8192) == cudaErrorMemoryAllocation;
  const bool said = cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess;
  bool thrown = false;
  try {
    launch({fill, 1, 1025}, x, 64);
  } catch (const std::runtime_error& error) {
    thrown = std::strstr(error.what(), "invalid configuration argument") != nullptr;
  }
  if (waits && seen == 1 && refused && said && thrown) std::puts("right");
}

void run(const std::string& name) {
  if (name == "host_right") return run_host_right();
  if (const auto host = kOfTheHost.find(name); host != kOfTheHost.end()) return host->second();
  const Case& c = kCases.at(name);
  const int64_t n = name == "right" ? 2 * 64 + 60 : 64;
  float* const x = allocate(n);
  static float of_the_host = 1;
  launch(c, x,
         name == "memory_of_the_host" ? reinterpret_cast<int64_t>(&of_the_host)
         : name == "past_the_end"     ? 64
                                      : n);
  check(cudaDeviceSynchronize());
  if (name != "right") return;
  for (const float value : download(x, n)) {
    if (value != 64 && value != 0) return;
  }
  std::puts("right");
}

}  // namespace
}  // namespace soma::cuda

int main(int count, char** arguments) {
  if (count == 2 && std::strcmp(arguments[1], "list") == 0) {
    for (const auto& [name, c] : soma::cuda::kCases) std::printf("%s ", name.c_str());
    for (const auto& [name, f] : soma::cuda::kOfTheHost) std::printf("%s ", name.c_str());
    return 0;
  }
  if (count != 4) return 2;
  const std::string order = arguments[2];
  emulation::set_order(order == "forward"    ? emulation::Order::kForward
                       : order == "backward" ? emulation::Order::kBackward
                                             : emulation::Order::kShuffled,
                       std::stoull(arguments[3]));
  soma::cuda::run(arguments[1]);
  return 0;
}
