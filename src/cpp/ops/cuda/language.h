// What kernels are written in: CUDA where nvcc compiles them. Where another compiler does, <cuda_runtime.h> is that of
// tests/cuda/emulation, and the same kernels run on the processor. The names here are those that CUDA has only as PTX
// or as syntax.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/check.h"
#include "ops/cuda/recording.h"

#ifdef SOMA_CUDA_EMULATED
#define SOMA_UNROLL
#define SOMA_ROLLED
// An array of shared memory, aligned to 16 bytes.
#define SOMA_SHARED(type, name, count)               \
  static constexpr char name##_tag = 0;              \
  type(&name)[count] = *static_cast<type(*)[count]>( \
      ::emulation::shared(&name##_tag, sizeof(type) * (count), ::emulation::Place::current()))
// The dynamic shared memory of the launch.
#define SOMA_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::emulation::dynamic_shared(::emulation::Place::current()))
#define SOMA_PLACE , ::emulation::Place at = ::emulation::Place::current()
#else
#define SOMA_UNROLL _Pragma("unroll")
#define SOMA_ROLLED _Pragma("unroll 1")
#define SOMA_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define SOMA_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char soma_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(soma_dynamic_shared)
#define SOMA_PLACE
#endif

namespace soma::cuda {

constexpr unsigned kMostDown = 65535;  // blocks of a grid along y
constexpr uint32_t kAllLanes = 0xffffffffu;

// Kernel{f, grid, threads, stream, dynamic_bytes}(arguments...) is CUDA's f<<<...>>>(arguments...), or throws. It is
// only noted while a recording looks.
template <typename... P>
struct Kernel {
  void (*kernel)(P...);
  dim3 grid;
  unsigned threads;
  cudaStream_t stream;
  std::size_t dynamic_bytes = 0;

  void operator()(P... arguments) const {
    if (Recording* const recording = Recording::looking()) {
      recording->note(reinterpret_cast<const void*>(kernel));
      for (const std::size_t part :
           {std::size_t{grid.x}, std::size_t{grid.y}, std::size_t{grid.z}, std::size_t{threads}, dynamic_bytes}) {
        recording->note(part);
      }
      (recording->note(arguments), ...);
      return;
    }
    if (grid.y > kMostDown) {
      throw std::invalid_argument("a GPU takes at most 65535 groups of rows at once: take a smaller batch");
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = dynamic_bytes;
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, arguments...));
  }
};
template <typename... P>
Kernel(void (*)(P...), dim3, unsigned, cudaStream_t, std::size_t = 0) -> Kernel<P...>;

// c (16 x 8, float) += a (16 x 16) b (16 x 8), both bfloat16, by a warp. Registers as PTX has them: mma.m16n8k16.
__device__ inline void multiply_tile(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SOMA_PLACE) {
#ifdef SOMA_CUDA_EMULATED
  emulation::multiply(c, a, b, at);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 x 8 matrices of bfloat16 from shared memory, for a warp. Lane i says where row i % 8 of matrix i / 8 lies.
template <bool kTransposed>
__device__ inline void load_tiles(uint32_t (&r)[4], const void* row SOMA_PLACE) {
#ifdef SOMA_CUDA_EMULATED
  emulation::load_matrices(r, row, kTransposed, at);
#else
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  }
#endif
}

// 16 bytes to shared memory, or zeros where not `valid`. They are there after await_copies, for this thread alone.
__device__ inline void copy_16(void* to, const void* from, bool valid SOMA_PLACE) {
#ifdef SOMA_CUDA_EMULATED
  emulation::copy_16(to, from, valid, at);
#else
  const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
#endif
}

// Closes a group of copies.
__device__ inline void end_copies() {
#ifdef SOMA_CUDA_EMULATED
  emulation::end_group();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kLeft of the thread's groups are under way.
template <int kLeft>
__device__ inline void await_copies() {
#ifdef SOMA_CUDA_EMULATED
  emulation::await_groups(kLeft, emulation::Place::current());
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// bfloat16 of both, to nearest even: `low` in the low half.
__device__ inline uint32_t pair_of(float low, float high) {
#ifdef SOMA_CUDA_EMULATED
  const auto half = [](float x) {
    const uint32_t bits = __float_as_uint(x);
    return (x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  };
  return half(low) | half(high) << 16;
#else
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}
__device__ inline float low_of(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_of(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two or four neighbours in one access.
__device__ inline float2 load_2(const float* p SOMA_PLACE) {
#ifdef SOMA_CUDA_EMULATED
  emulation::check_alignment(p, sizeof(float2), at);
#endif
  return *reinterpret_cast<const float2*>(p);
}
__device__ inline void store_2(float* p, float2 x SOMA_PLACE) {
#ifdef SOMA_CUDA_EMULATED
  emulation::check_alignment(p, sizeof(float2), at);
#endif
  *reinterpret_cast<float2*>(p) = x;
}

}  // namespace soma::cuda
