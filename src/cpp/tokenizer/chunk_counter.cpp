// Counts in rounds of a few megabytes. First each task splits and counts pieces, as it becomes free. Then the counts of
// all tasks are added to the parts of the table.
#include "tokenizer/chunk_counter.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>

#include "base/check.h"
#include "base/interrupt.h"
#include "base/parallel.h"
#include "tokenizer/unicode.h"

namespace soma {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 15;  // bytes; few beside a round, so that tasks end together
constexpr size_t kRoundBytes = size_t{1} << 21;  // bytes of a round, per task
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

size_t round_bytes() { return kRoundBytes * static_cast<size_t>(std::min(call_threads(), 16)); }

size_t part_of(uint64_t hash) { return hash >> 58; }

uint64_t hash_ends(std::string_view long_chunk) {
  uint64_t first, last;
  std::memcpy(&first, long_chunk.data(), 8);
  std::memcpy(&last, long_chunk.data() + long_chunk.size() - 8, 8);
  return (first ^ last * 0x9FB21C651E98DF25u ^ long_chunk.size()) * 0x9E3779B97F4A7C15u;
}

}  // namespace

void TextReader::fill_next(size_t from, size_t least_bytes) {
  const size_t kept = block_.size - from;
  const size_t checked = block_.valid - from;
  const size_t wanted = kept + std::max(least_bytes, kept);
  if (next_.bytes.size() < wanted) next_.bytes.resize(wanted);
  std::copy_n(block_.bytes.data() + from, kept, next_.bytes.data());
  next_.size = kept;
  while (next_.size < wanted && !ended_) {
    const size_t got = read_(next_.bytes.data() + next_.size, wanted - next_.size);
    ended_ = got == 0;
    next_.size += got;
    bytes_read_ += got;
  }
  const std::string_view unchecked(next_.bytes.data() + checked, next_.size - checked);
  const size_t at = find_invalid_utf8(unchecked);
  next_.valid = at == std::string_view::npos ? next_.size : checked + at;
  const size_t nul = unchecked.substr(0, next_.valid - checked).find('\0');
  if (nul != std::string_view::npos) fail("a NUL at byte ", bytes_read_ - (unchecked.size() - nul));
  const size_t left = next_.size - next_.valid;
  if (left == 0 || (left < 4 && !ended_)) return;
  char byte[8];
  std::snprintf(byte, sizeof(byte), "0x%02x", static_cast<unsigned char>(next_.bytes[next_.valid]));
  fail("not UTF-8 at byte ", bytes_read_ - left, " (", byte, ")");
}

bool ChunkCounter::add(TextReader& reader) {
  check_interrupt();
  const bool is_first = reader.bytes_read_ == 0;
  if (is_first) {
    reader.fill_next(0, round_bytes());
    std::swap(reader.block_, reader.next_);
  }
  const bool is_last = reader.ended_;
  TextReader::Block& block = reader.block_;
  std::string_view text(block.bytes.data(), block.valid);
  if (is_first && text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  std::vector<std::string_view> pieces = cut_at_chunk_ends(text, kPieceBytes);
  if (is_last) {
    count(pieces, [] {});
    return false;
  }
  size_t from = static_cast<size_t>(text.data() - block.bytes.data());
  if (!pieces.empty()) {
    from = static_cast<size_t>(pieces.back().data() - block.bytes.data());
    pieces.pop_back();
  }
  count(pieces, [&] { reader.fill_next(from, round_bytes()); });
  std::swap(reader.block_, reader.next_);
  return true;
}

void ChunkCounter::add(const std::vector<std::string_view>& texts) {
  std::vector<std::string_view> round;
  size_t bytes = 0;
  for (const std::string_view text : texts) {
    for (const std::string_view piece : cut_at_chunk_ends(text, kPieceBytes)) {
      round.push_back(piece);
      bytes += piece.size();
      if (bytes < round_bytes()) continue;
      check_interrupt();
      count(round, [] {});
      round.clear();
      bytes = 0;
    }
  }
  count(round, [] {});
}

// Counts the pieces in parallel. The first task calls meanwhile() before it counts; the others count at once.
void ChunkCounter::count(const std::vector<std::string_view>& pieces, const std::function<void()>& meanwhile) {
  const auto tasks = static_cast<size_t>(call_threads());
  if (tasks_.size() < tasks) tasks_.resize(tasks);
  std::vector<size_t> starts = {0};  // first piece of each group; a group has about kPieceBytes
  for (size_t i = 0, bytes = 0; i < pieces.size(); ++i) {
    bytes += pieces[i].size();
    bytes_ += pieces[i].size();
    if (bytes < kPieceBytes && i + 1 < pieces.size()) continue;
    starts.push_back(i + 1);
    bytes = 0;
  }
  std::atomic<size_t> next_group{0};
  std::vector<std::exception_ptr> failures(tasks + kParts);
  const auto guarded = [&](size_t i, auto&& work) {
    try {
      work();
    } catch (...) {
      failures[i] = std::current_exception();
    }
  };
  const auto split = [&](int64_t t) {
    guarded(t, [&] {
      if (t == 0) meanwhile();
      for (size_t group; (group = next_group++) + 1 < starts.size();) {
        for (size_t i = starts[group]; i < starts[group + 1]; ++i) count_piece(tasks_[t], pieces[i]);
      }
    });
  };
  const auto gather = [&](int64_t part) { guarded(tasks + part, [&] { collect(part); }); };
  parallel_for_then(static_cast<int64_t>(tasks), split, static_cast<int64_t>(kParts), gather);
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

void ChunkCounter::count_piece(Task& task, std::string_view piece) const {
  const char* const end = piece.data() + piece.size();
  const auto spill = [&task](const PackedChunkCount& entry, uint64_t hash) {
    task.spilled[part_of(hash)].push_back(entry);
  };
  for_each_chunk(pattern_, piece, [&](std::string_view chunk) {
    if (chunk.size() <= PackedChunk::kMostBytes) {
      task.cache.add(PackedChunk(chunk, static_cast<size_t>(end - chunk.data())), spill);
    } else {
      task.long_chunks[part_of(hash_ends(chunk))].push_back(chunk);
    }
  });
}

void ChunkCounter::collect(size_t part) {
  for (Task& task : tasks_) {
    for (const PackedChunkCount& entry : task.spilled[part]) table_[part].add(entry);
    for (const std::string_view chunk : task.long_chunks[part]) table_[part].add(chunk);
    task.spilled[part].clear();
    task.long_chunks[part].clear();
  }
}

std::vector<CountedChunk> ChunkCounter::chunks() {
  for (Task& task : tasks_) {
    task.cache.clear([&](const PackedChunkCount& entry, uint64_t hash) { table_[part_of(hash)].add(entry); });
  }
  std::vector<CountedChunk> all;
  for (const ChunkTable& part : table_) {
    part.for_each([&all](std::string_view chunk, uint64_t count) { all.push_back({chunk, count}); });
  }
  return all;
}

}  // namespace soma
