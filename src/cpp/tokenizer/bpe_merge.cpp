// Both ways of merging a chunk: a searched array for short chunks, queues per rank for long ones.
#include "tokenizer/bpe_merge.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace soma {
namespace {

constexpr size_t kShort = 64;
constexpr int32_t kNoKey = 0x7FFFFFFF;
constexpr uint32_t kEnd = 0xFFFFFFFFu;

using Queue = MergeScratch::Queue;

void push(Queue& queue, uint32_t position) {
  if (queue.front == 0 || queue.run.empty() || position > queue.run.back()) {
    queue.sorted = queue.sorted && (queue.run.empty() || position > queue.run.back());
    queue.run.push_back(position);
  } else {
    queue.late.push_back(position);
    std::push_heap(queue.late.begin(), queue.late.end(), std::greater<>());
  }
}

bool empty(const Queue& queue) { return queue.front == queue.run.size() && queue.late.empty(); }

uint32_t pop(Queue& queue) {
  if (!queue.sorted) {
    std::sort(queue.run.begin(), queue.run.end());
    queue.sorted = true;
  }
  if (!queue.late.empty() && (queue.front == queue.run.size() || queue.late.front() < queue.run[queue.front])) {
    std::pop_heap(queue.late.begin(), queue.late.end(), std::greater<>());
    const uint32_t position = queue.late.back();
    queue.late.pop_back();
    return position;
  }
  return queue.run[queue.front++];
}

}  // namespace

void MergeTable::reserve(size_t count) {
  const size_t slots = std::bit_ceil(std::max<size_t>(count * 2, 16));
  slots_.assign(slots, Slot{});
  mask_ = slots - 1;
  shift_ = 64 - std::countr_zero(slots);
}

bool MergeTable::insert(TokenId left, TokenId right, Merge merge) {
  size_t i = slot_of(left, right);
  for (; slots_[i].merge.rank != kNoRank; i = (i + 1) & mask_) {
    if (slots_[i].left == left && slots_[i].right == right) return false;
  }
  slots_[i] = {left, right, merge};
  return true;
}

Merger::Merger(MergeTable merges, const std::vector<TokenId>& byte_ids, uint32_t ranks)
    : merges_(std::move(merges)),
      byte_ids_(byte_ids),
      byte_pairs_(65536),
      ranks_(ranks),
      has_all_bytes_(std::count(byte_ids.begin(), byte_ids.end(), StringTable::kAbsent) == 0) {
  for (uint32_t pair = 0; pair < byte_pairs_.size(); ++pair) {
    byte_pairs_[pair] = merges_.find(byte_ids_[pair >> 8], byte_ids_[pair & 255]);
  }
}

size_t Merger::merge(const unsigned char* bytes, size_t size, TokenId* out, MergeScratch& scratch) const {
  return size <= kShort ? merge_short(bytes, size, out) : merge_long(bytes, size, out, scratch);
}

size_t Merger::first_missing(const unsigned char* bytes, size_t size) const {
  if (has_all_bytes_) return size;
  const auto missing = [this](unsigned char byte) { return byte_ids_[byte] == StringTable::kAbsent; };
  return static_cast<size_t>(std::find_if(bytes, bytes + size, missing) - bytes);
}

// The index of a symbol is that of its first byte; `live` has a bit for each symbol. A key joins the rank of the pair
// that starts at a symbol with the index. So the lowest key is the pair to merge, the leftmost among equals.
size_t Merger::merge_short(const unsigned char* bytes, size_t size, TokenId* out) const {
  static_assert(kShort == 64 && kMostRanks << 6 <= static_cast<uint32_t>(kNoKey));
  TokenId id[kShort];
  TokenId merged[kShort];
  int32_t key[kShort];
  const size_t padded = (size + 7) / 8 * 8;  // the search reads 8 keys at a time
  for (size_t i = 0; i < padded; ++i) key[i] = kNoKey;
  const auto set = [&](size_t i, const Merge& pair) {
    key[i] = pair.rank == kNoRank ? kNoKey : static_cast<int32_t>(pair.rank << 6 | i);
    merged[i] = pair.id;
  };
  for (size_t i = 0; i < size; ++i) id[i] = byte_ids_[bytes[i]];
  for (size_t i = 0; i + 1 < size; ++i) set(i, byte_pairs_[static_cast<size_t>(bytes[i]) << 8 | bytes[i + 1]]);
  uint64_t live = size == 64 ? ~uint64_t{0} : (uint64_t{1} << size) - 1;
  const auto after = [&](size_t i) { return live & (~uint64_t{1} << i); };  // the symbols after i
  while (true) {
    int32_t lowest = kNoKey;
    for (size_t i = 0; i < padded; i += 8) {
      for (size_t k = 0; k < 8; ++k) lowest = std::min(lowest, key[i + k]);
    }
    if (lowest == kNoKey) break;
    const size_t at = lowest & 63;
    const auto gone = static_cast<size_t>(std::countr_zero(after(at)));
    id[at] = merged[at];
    key[gone] = kNoKey;
    live &= ~(uint64_t{1} << gone);
    key[at] = kNoKey;
    if (const uint64_t behind = after(at)) set(at, merges_.find(id[at], id[std::countr_zero(behind)]));
    if (const uint64_t before = live & ((uint64_t{1} << at) - 1)) {
      const auto previous = static_cast<size_t>(63 - std::countl_zero(before));
      set(previous, merges_.find(id[previous], id[at]));
    }
  }
  size_t count = 0;
  for (; live != 0; live &= live - 1) out[count++] = id[std::countr_zero(live)];
  return count;
}

size_t Merger::merge_long(const unsigned char* bytes, size_t size, TokenId* out, MergeScratch& scratch) const {
  auto& next = scratch.next;  // no structured binding: Clang before 16 does not let lambdas capture one
  auto& previous = scratch.previous;
  auto& id = scratch.id;
  auto& merge = scratch.merge;
  auto& queue_of = scratch.queue_of;
  auto& queues = scratch.queues;
  auto& waiting = scratch.waiting;
  const auto count = static_cast<uint32_t>(size);
  next.resize(count);
  previous.resize(count);
  id.resize(count);
  merge.resize(count);
  queue_of.resize(ranks_, MergeScratch::kNoQueue);
  size_t used = 0;  // queues in use
  std::vector<uint32_t> seen;
  const auto wait = [&](uint32_t position) {
    const uint32_t rank = merge[position].rank;
    if (rank == kNoRank) return;
    uint32_t& number = queue_of[rank];
    if (number == MergeScratch::kNoQueue) {
      number = static_cast<uint32_t>(used++);
      if (used > queues.size()) queues.emplace_back();
      seen.push_back(rank);
    }
    Queue& queue = queues[number];
    if (empty(queue)) {
      queue.run.clear();
      queue.front = 0;
      queue.sorted = true;
      waiting.push_back(rank);
      std::push_heap(waiting.begin(), waiting.end(), std::greater<>());
    }
    push(queue, position);
  };
  for (uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1 < count ? i + 1 : kEnd;
    previous[i] = i > 0 ? i - 1 : kEnd;
    id[i] = byte_ids_[bytes[i]];
    merge[i] = i + 1 < count ? byte_pairs_[static_cast<size_t>(bytes[i]) << 8 | bytes[i + 1]] : Merge{kNoRank, 0};
    wait(i);
  }
  const auto update = [&](uint32_t i) {
    merge[i] = next[i] == kEnd ? Merge{kNoRank, 0} : merges_.find(id[i], id[next[i]]);
    wait(i);
  };
  while (!waiting.empty()) {
    const uint32_t rank = waiting.front();
    Queue& queue = queues[queue_of[rank]];
    const uint32_t at = pop(queue);
    if (empty(queue)) {
      std::pop_heap(waiting.begin(), waiting.end(), std::greater<>());
      waiting.pop_back();
    }
    if (merge[at].rank != rank) continue;  // out of date: another merge has changed the pair
    id[at] = merge[at].id;
    const uint32_t gone = next[at];
    merge[gone].rank = kNoRank;
    next[at] = next[gone];
    if (next[at] != kEnd) previous[next[at]] = at;
    update(at);
    if (previous[at] != kEnd) update(previous[at]);
  }
  for (const uint32_t rank : seen) queue_of[rank] = MergeScratch::kNoQueue;
  size_t written = 0;
  for (uint32_t i = 0; i != kEnd; i = next[i]) out[written++] = id[i];
  return written;
}

}  // namespace soma
