// Inside the emulation: fibers, the block that runs, device memory, failures.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulation.h"

namespace emulation {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr std::size_t kSharedBytes = 48 * 1024;      // of a kernel without cudaFuncSetAttribute
constexpr std::size_t kGraphNodeBytes = 256;         // of the device's memory, about
constexpr std::size_t kMostSharedBytes = 99 * 1024;  // of any: what every chip from sm_80 on has

// ------------------------------------------------------------------------------------------------------------ fibers

// A stack on which a function runs in turns with the one that resumed it.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  void start(void (*function)());  // it may not return; it yields for the last time
  void resume();
  void yield();
  bool has(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(stack_) < kBytes + kGuard; }
  bool overflowed(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(stack_) < kGuard; }

 private:
  static constexpr std::size_t kBytes = 128 * 1024, kGuard = 4096;
  struct Context;
  char* stack_;
  std::unique_ptr<Context> context_;
};

// --------------------------------------------------------------------------------------------------------- accesses

// An access to memory: the run of a block that made it, who made it when, and from where.
struct Access {
  uint32_t run = 0;            // 0: nobody
  uint32_t thread : 10;        // of its block
  uint32_t clock : 22;         // of its thread: barriers it passed
  const void* from = nullptr;  // the return address of the access; null: a part of the language made it
  Access() : thread(0), clock(0) {}
};
constexpr uint32_t kLastClock = (1u << 22) - 1;
constexpr uint32_t kCopying = kLastClock;  // the clock of a write by a copy that is not awaited yet

// The last accesses to two bytes. Two of the readers are kept: one of them is another than the thread that writes next.
struct Cell {
  Access write, reads[2];
};
constexpr std::size_t kGranule = 2;  // bytes of a cell

// Device memory: `bytes` at `data`. It keeps its addresses after its release, so that a late use is found.
struct Allocation {
  uintptr_t data;
  std::size_t bytes;
  Cell* cells;
  uint8_t* written;  // of each cell: 1 if anybody wrote there
  bool live;
};

// The allocation that an address is part of, or the last one before it; null outside the device's addresses.
Allocation* find_allocation(uintptr_t address);
bool is_device(uintptr_t address);
void open_memory(bool open);  // to the processor
void mark_written(uintptr_t data, std::size_t bytes);
// What the running thread does to memory; null for `from`: the place says it.
struct Source {
  const void* from;
  const Place* at;
};
void access_memory(const void* p, std::size_t bytes, bool writes, Source source);
void begin_copy(void* to, Source source);  // of 16 bytes
void finish_copy(void* to);

// ------------------------------------------------------------------------------------------------------------- a block

enum class State { kReady, kAtBlock, kAtWarp, kDone };
enum class Meeting { kSync, kExchange, kMultiply, kLoad };

struct AsyncCopy {
  void* to;
  const void* from;
  bool valid;
  Place at;
};

struct Thread {
  Fiber fiber;
  unsigned index = 0;
  State state = State::kDone;
  Place at;
  Meeting meeting{};
  uint32_t mask = 0;
  std::array<uint32_t, 12> given{}, got{};  // what the thread brings to a meeting, and what it leaves with
  std::vector<std::vector<AsyncCopy>> groups;
  uint32_t clock = 1;
  std::array<uint32_t, kWarp> seen{};  // of each lane of its warp: clocks below are ordered before this thread
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  unsigned count = 0;
  Thread* running = nullptr;
  const Launch* launch = nullptr;
  uint32_t run = 1, first_run = 2;                  // of this block, and of the first block of its launch
  std::vector<Dim> blocks;                          // of this launch, in the order of their runs
  std::array<uint32_t, kMostThreads> at_barrier{};  // of each thread: clocks below are ordered before all threads
  struct Piece {
    const void* tag;
    std::size_t offset, bytes;
  };
  std::vector<Piece> pieces;  // of shared memory
  std::size_t shared_used = 0;
  alignas(256) std::array<char, kMostSharedBytes> shared{};
  std::vector<Cell> shared_cells{std::vector<Cell>(kMostSharedBytes / kGranule)};
};
extern Block block;

void run_launch(const Launch& launch);
bool may_use(const void* kernel, std::size_t dynamic_bytes);

struct Turns {
  Order order = Order::kForward;
  std::mt19937_64 random{1};
};
extern Turns turns;

// ---------------------------------------------------------------------------------------------------------- failures

[[noreturn]] void fail(const std::string& what, Source source);
[[noreturn]] inline void fail(const std::string& what, const Place& at) { fail(what, {nullptr, &at}); }
[[noreturn]] void fail(const std::string& what);  // of the host
std::string line_of(const void* return_address);
std::string name_of(const Dim& block, unsigned thread);

}  // namespace emulation
