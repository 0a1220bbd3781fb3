// An emulated GPU: what kernels.cu call through cuda_runtime.h, and what tests set. A mistake ends the process, with a
// message that names the kernel, its block and thread, and the line.
//
// The threads of a block are fibers, which take turns where they wait for each other. Kernels are compiled with
// -fsanitize=thread, so that every access to memory is told to access.cpp. It finds races, and reads of what nobody
// wrote. Launches and copies wait in their stream until the host synchronises. Memory is closed to the host meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>

namespace emulation {

using Place = std::source_location;

struct Dim {
  unsigned x, y, z;
  constexpr Dim(unsigned columns = 1, unsigned rows = 1, unsigned layers = 1) : x(columns), y(rows), z(layers) {}
};

// ----------------------------------------------------------------------------------------- what the running thread is

struct Here {
  Dim thread, block, block_dim, grid_dim;
};
extern Here here;

// ------------------------------------------------------------------------------------------------ what a thread can do

void sync_block(Place at);
void sync_warp(uint32_t mask, Place at);
// value = what lane `from` of the warp gave; 4 or 8 bytes. It orders no memory.
void exchange(uint32_t mask, void* value, std::size_t bytes, int from, Place at);
// Memory of the block: one piece for each declaration, which `tag` stands for.
void* shared(const void* tag, std::size_t bytes, Place at);
void* dynamic_shared(Place at);
// mma.sync.m16n8k16 of bfloat16, sums in single precision in the order of k. ldmatrix.x4, plain or transposed.
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place at);
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Place at);
// cp.async of 16 bytes, as late as it may come: when its group is awaited.
void copy_16(void* to, const void* from, bool valid, Place at);
void end_group();
void await_groups(int left, Place at);
// An access to `bytes` bytes at once must be aligned to them.
void check_alignment(const void* p, std::size_t bytes, Place at);

// ---------------------------------------------------------------------------------------------------------- the device

struct Launch {
  const void* kernel;
  Dim grid;
  unsigned threads;
  std::size_t dynamic_bytes;
  std::shared_ptr<void> call;  // the kernel and its arguments, for invoke
  std::size_t call_bytes;
  void (*invoke)(const void* call);
};
struct Stream;
struct Event;
struct Graph;
bool enqueue(Stream* stream, Launch launch);  // false: no GPU would launch this

// ------------------------------------------------------------------------------------------------- what tests can set

// In which order threads, blocks and streams take turns where CUDA leaves it open.
enum class Order { kForward, kBackward, kShuffled };
void set_order(Order order, uint64_t seed);
// The memory of each device in bytes; how much is taken.
void set_memory(std::size_t bytes);
std::size_t taken_memory();
// How many devices there are, their compute capability (major, minor), and the CUDA that the driver knows (0: none).
void set_machine(int devices, int major, int minor, int driver);
// How many graphs were made and launched, and are there.
struct GraphCounts {
  int64_t made, launched, held;
};
GraphCounts graph_counts();
// The next time that the host synchronises, a kernel has failed.
void fail_next();

}  // namespace emulation
