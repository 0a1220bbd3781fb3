// Runs the blocks of a launch, one after the other, and the threads of a block in turns: each until it has to wait.
#include <algorithm>
#include <bit>
#include <cstring>

#include "machine.h"

namespace emulation {

Here here;
Block block;
Turns turns;

namespace {

void entry() {
  block.launch->invoke(block.launch->call.get());
  Thread& t = *block.running;
  for (const auto& group : t.groups) {
    if (!group.empty()) fail("a thread ends with a copy that it has not awaited", group.front().at);
  }
  t.state = State::kDone;
  t.fiber.yield();
}

// Runs in the place of thread t, so that a failure names it.
template <typename F>
void as(Thread& t, F f) {
  block.running = &t;
  here.thread = Dim{t.index, 0, 0};
  f();
  block.running = nullptr;
}

void tick(Thread& t) {
  if (++t.clock == kLastClock) fail("more barriers than the emulation counts", t.at);
}

// The lanes of a mask that wait in a warp.
template <typename F>
void each_lane(const Thread& t, F f) {
  for (uint32_t left = t.mask, first = t.index / kWarp * kWarp; left != 0; left &= left - 1) {
    f(static_cast<uint32_t>(std::countr_zero(left)), first + static_cast<uint32_t>(std::countr_zero(left)));
  }
}

bool same_place(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// Whether all lanes of a waiting thread's mask wait for each other.
bool complete(Thread& t) {
  bool all = true;
  each_lane(t, [&](uint32_t lane, uint32_t index) {
    if (index >= block.count) fail("the mask names lane " + std::to_string(lane) + ", which the block lacks", t.at);
    const Thread& other = *block.threads[index];
    if (other.state == State::kDone) fail("lane " + std::to_string(lane) + " of the mask has ended", t.at);
    if (other.state == State::kAtWarp && (other.mask != t.mask || !same_place(other.at, t.at))) {
      fail("lanes of a warp wait at different places or with different masks: lane " + std::to_string(lane) +
               " is at line " + std::to_string(other.at.line()),
           t.at);
    }
    all = all && other.state == State::kAtWarp;
  });
  return all;
}

float high(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }
float low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }

// Registers as the PTX manual lays them out: A's k = 2p, 2p+1 of row r are word (p / 4) * 2 + r / 8 of lane r % 8 * 4 +
// p % 4. B's of column n are word 4 + p / 4 of lane n * 4 + p % 4. C's (r, n) is word 6 + r / 8 * 2 + n % 2 of lane
// r % 8 * 4 + n / 2.
void multiply_warp(Thread* const (&warp)[kWarp]) {
  float a[16][16], b[16][8];
  for (unsigned p = 0; p < 8; ++p) {
    for (unsigned r = 0; r < 16; ++r) {
      const uint32_t pair = warp[r % 8 * 4 + p % 4]->given[p / 4 * 2 + r / 8];
      a[r][2 * p] = low(pair), a[r][2 * p + 1] = high(pair);
    }
    for (unsigned n = 0; n < 8; ++n) {
      const uint32_t pair = warp[n * 4 + p % 4]->given[4 + p / 4];
      b[2 * p][n] = low(pair), b[2 * p + 1][n] = high(pair);
    }
  }
  for (unsigned r = 0; r < 16; ++r) {
    float c[8];
    for (unsigned n = 0; n < 8; ++n) {
      c[n] = std::bit_cast<float>(warp[r % 8 * 4 + n / 2]->given[6 + r / 8 * 2 + n % 2]);
    }
    for (unsigned k = 0; k < 16; ++k) {
      for (unsigned n = 0; n < 8; ++n) c[n] += a[r][k] * b[k][n];
    }
    for (unsigned n = 0; n < 8; ++n) {
      warp[r % 8 * 4 + n / 2]->got[r / 8 * 2 + n % 2] = std::bit_cast<uint32_t>(c[n]);
    }
  }
}

// Word j of lane l: elements 2 (l % 4) and the next of row l / 4 of matrix j. Transposed: of column l / 4.
void load_warp(Thread* const (&warp)[kWarp]) {
  const auto row = [&](unsigned matrix, unsigned i) {
    const auto& words = warp[matrix * 8 + i]->given;
    return std::bit_cast<const char*>(words[1] | static_cast<uint64_t>(words[2]) << 32);
  };
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    for (unsigned j = 0; j < 4; ++j) {
      uint16_t pair[2];
      for (unsigned half = 0; half < 2; ++half) {
        const bool transposed = warp[0]->given[0] != 0;
        const unsigned r = transposed ? lane % 4 * 2 + half : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + half;
        std::memcpy(&pair[half], row(j, r) + c * 2, 2);
      }
      warp[lane]->got[j] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
  }
}

// All lanes of the mask of t are here: what they came for is done, and they go on.
void meet(Thread& t) {
  Thread* warp[kWarp] = {};
  each_lane(t, [&](uint32_t lane, uint32_t index) { warp[lane] = block.threads[index].get(); });
  if (t.meeting == Meeting::kMultiply) multiply_warp(warp);
  if (t.meeting == Meeting::kLoad) load_warp(warp);
  std::array<uint32_t, kWarp> seen{};  // by all of them together
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (warp[lane] == nullptr) continue;
    if (t.meeting == Meeting::kExchange) {
      const auto& from = warp[warp[lane]->given[2]]->given;
      std::copy(from.begin(), from.begin() + 2, warp[lane]->got.begin());
    }
    for (unsigned i = 0; i < kWarp; ++i) seen[i] = std::max(seen[i], warp[lane]->seen[i]);
    seen[lane] = warp[lane]->clock + 1;
  }
  const bool orders = t.meeting == Meeting::kSync;  // nothing else orders memory
  for (Thread* const lane : warp) {
    if (lane == nullptr) continue;
    lane->state = State::kReady;
    if (!orders) continue;
    tick(*lane);
    lane->seen = seen;
  }
}

void pass_barrier() {
  const Thread& first = *block.threads[0];
  for (unsigned i = 0; i < block.count; ++i) {
    Thread& t = *block.threads[i];
    if (!same_place(t.at, first.at)) {
      as(t, [&] {
        fail("threads wait for the block at different places, some at line " + std::to_string(first.at.line()), t.at);
      });
    }
    t.state = State::kReady;
    tick(t);
    block.at_barrier[i] = t.clock;
  }
}

void run_block(std::vector<unsigned>& order) {
  ++block.run;
  block.pieces.clear();
  block.shared_used = block.launch->dynamic_bytes;
  std::fill(block.shared.begin(), block.shared.end(), static_cast<char>(0xff));  // NaN
  for (unsigned i = 0; i < block.count; ++i) {
    Thread& t = *block.threads[i];
    t.index = i;
    t.state = State::kReady;
    t.groups.assign(1, {});
    t.clock = 1;
    t.seen.fill(0);
    block.at_barrier[i] = 0;
    t.fiber.start(entry);
  }
  for (;;) {
    bool ran = false;
    if (turns.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), turns.random);
    for (const unsigned i : order) {
      Thread& t = *block.threads[i];
      if (t.state != State::kReady) continue;
      as(t, [&] { t.fiber.resume(); });
      ran = true;
    }
    unsigned done = 0, at_block = 0;
    for (unsigned i = 0; i < block.count; ++i) {
      Thread& t = *block.threads[i];
      done += t.state == State::kDone;
      at_block += t.state == State::kAtBlock;
      if (t.state == State::kAtWarp && std::countr_zero(t.mask) == static_cast<int>(i % kWarp)) {
        bool meets = false;
        as(t, [&] { meets = complete(t); });
        if (meets) meet(t), ran = true;
      }
    }
    if (done == block.count) return;
    if (at_block == block.count) {
      pass_barrier();
    } else if (!ran) {
      for (unsigned i = 0; i < block.count; ++i) {
        Thread& t = *block.threads[i];
        if (t.state == State::kDone) continue;
        as(t, [&] { fail("a thread waits for others that have ended or wait elsewhere", t.at); });
      }
    }
  }
}

// Waits for the lanes of the mask.
void wait_in_warp(uint32_t mask, Meeting meeting, Place at) {
  Thread& t = *block.running;
  t.at = at;
  if ((mask >> t.index % kWarp & 1) == 0) fail("the lane is not in its own mask", at);
  t.mask = mask;
  t.meeting = meeting;
  t.state = State::kAtWarp;
  t.fiber.yield();
}

}  // namespace

void run_launch(const Launch& launch) {
  block.launch = &launch;
  block.count = launch.threads;
  while (block.threads.size() < block.count) block.threads.push_back(std::make_unique<Thread>());
  here.block_dim = launch.threads;
  here.grid_dim = launch.grid;
  std::vector<unsigned> order(block.count);
  for (unsigned i = 0; i < block.count; ++i) order[i] = turns.order == Order::kBackward ? block.count - 1 - i : i;
  block.blocks.clear();
  for (unsigned z = 0; z < launch.grid.z; ++z) {
    for (unsigned y = 0; y < launch.grid.y; ++y) {
      for (unsigned x = 0; x < launch.grid.x; ++x) block.blocks.push_back({x, y, z});
    }
  }
  if (turns.order == Order::kBackward) std::reverse(block.blocks.begin(), block.blocks.end());
  if (turns.order == Order::kShuffled) std::shuffle(block.blocks.begin(), block.blocks.end(), turns.random);
  block.first_run = block.run + 1;
  for (const Dim& at : block.blocks) {
    here.block = at;
    run_block(order);
  }
  block.launch = nullptr;
}

void sync_block(Place at) {
  Thread& t = *block.running;
  t.at = at;
  t.state = State::kAtBlock;
  t.fiber.yield();
}

void sync_warp(uint32_t mask, Place at) { wait_in_warp(mask, Meeting::kSync, at); }

void exchange(uint32_t mask, void* value, std::size_t bytes, int from, Place at) {
  if (from < 0 || from >= static_cast<int>(kWarp) || (mask >> from & 1) == 0) {
    fail("a lane asks for the value of lane " + std::to_string(from) + ", which is not in the mask", at);
  }
  Thread& t = *block.running;
  std::memcpy(t.given.data(), value, bytes);
  t.given[2] = static_cast<uint32_t>(from);
  wait_in_warp(mask, Meeting::kExchange, at);
  std::memcpy(value, t.got.data(), bytes);
}

void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place at) {
  Thread& t = *block.running;
  std::memcpy(t.given.data(), a, sizeof a);
  std::memcpy(t.given.data() + 4, b, sizeof b);
  std::memcpy(t.given.data() + 6, c, sizeof c);
  wait_in_warp(0xffffffffu, Meeting::kMultiply, at);
  std::memcpy(c, t.got.data(), sizeof c);
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Place at) {
  Thread& t = *block.running;
  check_alignment(row, 16, at);
  access_memory(row, 16, false, {nullptr, &at});
  const auto address = reinterpret_cast<uint64_t>(row);
  t.given[0] = transposed;
  t.given[1] = static_cast<uint32_t>(address);
  t.given[2] = static_cast<uint32_t>(address >> 32);
  wait_in_warp(0xffffffffu, Meeting::kLoad, at);
  std::memcpy(r, t.got.data(), sizeof r);
}

void* shared(const void* tag, std::size_t bytes, Place at) {
  for (const Block::Piece& piece : block.pieces) {
    if (piece.tag == tag) return block.shared.data() + piece.offset;
  }
  const std::size_t offset = (block.shared_used + 15) / 16 * 16;
  if (offset + bytes - block.launch->dynamic_bytes > kSharedBytes || offset + bytes > kMostSharedBytes) {
    fail("the block takes " + std::to_string(offset + bytes) + " bytes of shared memory, more than a GPU gives", at);
  }
  block.pieces.push_back({tag, offset, bytes});
  block.shared_used = offset + bytes;
  return block.shared.data() + offset;
}

void* dynamic_shared(Place at) {
  if (block.launch->dynamic_bytes == 0) fail("the launch gave no dynamic shared memory", at);
  return block.shared.data();
}

void copy_16(void* to, const void* from, bool valid, Place at) {
  check_alignment(to, 16, at);
  if (valid) check_alignment(from, 16, at);
  begin_copy(to, {nullptr, &at});
  block.running->groups.back().push_back({to, from, valid, at});
}

void end_group() { block.running->groups.emplace_back(); }

void await_groups(int left, Place) {
  auto& groups = block.running->groups;  // the last one is still open, and not awaited
  while (static_cast<int>(groups.size()) - 1 > left) {
    for (const AsyncCopy& copy : groups.front()) {
      finish_copy(copy.to);
      if (copy.valid) access_memory(copy.from, 16, false, {nullptr, &copy.at});
      if (copy.valid) std::memcpy(copy.to, copy.from, 16);
      if (!copy.valid) std::memset(copy.to, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

void check_alignment(const void* p, std::size_t bytes, Place at) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    fail("an access to " + std::to_string(bytes) + " bytes is not aligned to them", at);
  }
}

}  // namespace emulation
