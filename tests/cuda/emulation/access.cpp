// Every access of a kernel to memory, as -fsanitize=thread tells it. An access races with an earlier one of another
// thread, one of them a write, where no barrier stands between. The barriers that a thread has passed are its clock; a
// thread knows how far the clocks of the others were when it last met them.
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <vector>

#include "machine.h"

namespace emulation {

namespace {

// Whether a comes before what the running thread does now.
bool comes_before(const Access& a) {
  if (a.run < block.first_run) return true;  // nobody's, or of an earlier launch
  if (a.run != block.run) return false;      // blocks of a launch have no order
  const Thread& t = *block.running;
  return a.thread == t.index || a.clock < block.at_barrier[a.thread] ||
         (a.thread / kWarp == t.index / kWarp && a.clock < t.seen[a.thread % kWarp]);
}

Access access_now(Source source) {
  Access a;
  a.run = block.run;
  a.thread = block.running->index;
  a.clock = block.running->clock;
  a.from = source.from;
  return a;
}

std::string told(const Access& a) {
  const std::string name = name_of(block.blocks[a.run - block.first_run], a.thread);
  return a.from == nullptr ? name : name + " at " + line_of(a.from);
}

void check_race(const Access& earlier, const char* did, const char* does, Source source) {
  if (comes_before(earlier)) return;
  fail("a race: the thread " + std::string(does) + " where " + told(earlier) + " " + did +
           ", and no barrier stands between",
       source);
}

void read_cell(Cell& cell, bool written, const Access& now, Source source) {
  if (!written) fail("a thread reads memory that nobody wrote", source);
  if (cell.write.clock == kCopying && cell.write.run == block.run) {
    fail("a thread reads where a copy is under way that nobody awaited", source);
  }
  check_race(cell.write, "wrote", "reads", source);
  if (cell.reads[0].run != now.run || cell.reads[0].thread != now.thread) cell.reads[1] = cell.reads[0];
  cell.reads[0] = now;
}

void write_cell(Cell& cell, const Access& now, Source source) {
  if (cell.write.clock == kCopying && cell.write.run == block.run) {
    fail("a thread writes where a copy is under way that nobody awaited", source);
  }
  check_race(cell.write, "wrote", "writes", source);
  for (const Access& read : cell.reads) check_race(read, "read", "writes", source);
  cell.write = now;
}

// Each block has shared memory of its own; here it is the same place.
void forget_other_blocks(Cell& cell) {
  for (Access* const a : {&cell.write, &cell.reads[0], &cell.reads[1]}) {
    if (a->run != block.run) *a = {};
  }
}

// Constants and tables of a loaded library, which a compiler may give to device code too.
bool is_constant(uintptr_t address) {
  static std::vector<std::pair<uintptr_t, uintptr_t>> segments;
  const auto known = [&] {
    for (const auto& [begin, end] : segments) {
      if (address >= begin && address < end) return true;
    }
    return false;
  };
  if (known()) return true;
  segments.clear();
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void*) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0) continue;
          const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
          segments.emplace_back(begin, begin + segment.p_memsz);
        }
        return 0;
      },
      nullptr);
  return known();
}

// Of the host: what a kernel was launched with, its own position, constants.
bool kernels_may_read(uintptr_t address) {
  const Launch& launch = *block.launch;
  return address - reinterpret_cast<uintptr_t>(launch.call.get()) < launch.call_bytes ||
         address - reinterpret_cast<uintptr_t>(&here) < sizeof here || is_constant(address);
}

// The cells of `bytes` at an address, and whether each was written; null if it is neither shared nor device memory.
struct Cells {
  Cell* cells;
  uint8_t* written;  // null: shared memory, where the run says it
};
Cells cells_of(uintptr_t address, std::size_t bytes, Source source) {
  const uintptr_t offset = address - reinterpret_cast<uintptr_t>(block.shared.data());
  if (offset < kMostSharedBytes) {
    bool inside = offset + bytes <= block.launch->dynamic_bytes;
    for (const Block::Piece& piece : block.pieces) {
      inside = inside || (offset >= piece.offset && offset + bytes <= piece.offset + piece.bytes);
    }
    if (!inside) fail("a thread leaves its array of shared memory", source);
    return {block.shared_cells.data() + offset / kGranule, nullptr};
  }
  if (!is_device(address)) return {nullptr, nullptr};
  const Allocation* const a = find_allocation(address);
  if (a == nullptr || address < a->data || address + bytes > a->data + a->bytes) {
    const std::string after = a == nullptr ? ""
                                           : ", " + std::to_string(address + bytes - a->data - a->bytes) +
                                                 " bytes past the end of " + std::to_string(a->bytes) + " bytes";
    fail("a thread leaves device memory" + after, source);
  }
  if (!a->live) fail("a thread uses device memory that was released", source);
  const std::size_t first = (address - a->data) / kGranule;
  return {a->cells + first, a->written + first};
}

}  // namespace

void access_memory(const void* p, std::size_t bytes, bool writes, Source source) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (block.running->fiber.has(address)) return;
  const auto [cells, written] = cells_of(address, bytes, source);
  if (cells == nullptr) {
    if (!writes && kernels_may_read(address)) return;
    fail("a thread uses memory of the host", source);
  }
  const Access now = access_now(source);
  const std::size_t count = (address % kGranule + bytes + kGranule - 1) / kGranule;
  for (std::size_t i = 0; i < count; ++i) {
    if (written == nullptr) forget_other_blocks(cells[i]);
    if (writes) {
      write_cell(cells[i], now, source);
      if (written != nullptr) written[i] = 1;
    } else {
      read_cell(cells[i], written != nullptr ? written[i] != 0 : cells[i].write.run == block.run, now, source);
    }
  }
}

void begin_copy(void* to, Source source) {
  const auto address = reinterpret_cast<uintptr_t>(to);
  if (address - reinterpret_cast<uintptr_t>(block.shared.data()) >= kMostSharedBytes) {
    fail("an asynchronous copy goes into shared memory alone", source);
  }
  access_memory(to, 16, true, source);
  Cell* const cells = cells_of(address, 16, source).cells;
  for (std::size_t i = 0; i < 16 / kGranule; ++i) cells[i].write.clock = kCopying;
  std::memset(to, 0xff, 16);
}

void finish_copy(void* to) {
  const Place at = Place::current();
  Cell* const cells = cells_of(reinterpret_cast<uintptr_t>(to), 16, {nullptr, &at}).cells;
  for (std::size_t i = 0; i < 16 / kGranule; ++i) cells[i].write.clock = block.running->clock;
}

namespace {

void told_access(const void* p, std::size_t bytes, bool writes, const void* from) {
  if (block.running != nullptr) access_memory(p, bytes, writes, {from, nullptr});
}
void told_whole(const void* p, std::size_t bytes, bool writes, const void* from) {
  if (block.running != nullptr && reinterpret_cast<uintptr_t>(p) % bytes != 0 &&
      !block.running->fiber.has(reinterpret_cast<uintptr_t>(p))) {
    fail("an access to " + std::to_string(bytes) + " bytes is not aligned to them", Source{from, nullptr});
  }
  told_access(p, bytes, writes, from);
}

}  // namespace
}  // namespace emulation

// What the compiler calls. An access that it knows no alignment of is one of a GPU all the same.
#define SOMA_CALLER __builtin_return_address(0)
#define SOMA_TOLD(bytes)                                                                              \
  void __tsan_read##bytes(void* p) { emulation::told_whole(p, bytes, false, SOMA_CALLER); }           \
  void __tsan_write##bytes(void* p) { emulation::told_whole(p, bytes, true, SOMA_CALLER); }           \
  void __tsan_unaligned_read##bytes(void* p) { emulation::told_whole(p, bytes, false, SOMA_CALLER); } \
  void __tsan_unaligned_write##bytes(void* p) { emulation::told_whole(p, bytes, true, SOMA_CALLER); } \
  void __tsan_volatile_read##bytes(void* p) { emulation::told_whole(p, bytes, false, SOMA_CALLER); }  \
  void __tsan_volatile_write##bytes(void* p) { emulation::told_whole(p, bytes, true, SOMA_CALLER); }
extern "C" {
SOMA_TOLD(1)
SOMA_TOLD(2)
SOMA_TOLD(4)
SOMA_TOLD(8)
SOMA_TOLD(16)
void __tsan_read_range(void* p, std::size_t bytes) { emulation::told_access(p, bytes, false, SOMA_CALLER); }
void __tsan_write_range(void* p, std::size_t bytes) { emulation::told_access(p, bytes, true, SOMA_CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Of the host's shared pointers. A kernel has none: the order of its sums would depend on who comes first.
int32_t __tsan_atomic32_fetch_add(volatile int32_t* p, int32_t value, int order) {
  if (emulation::block.running != nullptr) emulation::fail("kernels use no atomics", {SOMA_CALLER, nullptr});
  (void)order;
  return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);
}
}
