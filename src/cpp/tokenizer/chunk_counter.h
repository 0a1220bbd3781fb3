// Counts the chunks of a corpus: what BPE is trained on. Each task counts in a small cache of its own, and what falls
// out of the caches goes into one table, so that memory grows with the distinct chunks and not with the threads. What
// it finds does not depend on the number of threads.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/bpe_split.h"
#include "tokenizer/bpe_train.h"
#include "tokenizer/chunk_table.h"

namespace soma {

// A text that is read piece by piece. A byte order mark at its start is no part of it.
class TextReader {
 public:
  // read(to, size) reads up to `size` bytes and returns how many: 0 at the end.
  explicit TextReader(std::function<size_t(char* to, size_t size)> read) : read_(std::move(read)) {}

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  friend class ChunkCounter;

  struct Block {
    std::string bytes;
    size_t size = 0;   // of bytes, that are filled
    size_t valid = 0;  // of those, that are known to be UTF-8: all but part of a character at the end
  };

  // Makes next_ of the rest of block_ from `from` on and of what is read: at least as much again, so that a text that
  // cannot be cut is read in linear time. Throws std::invalid_argument where the text is not UTF-8 or holds a NUL.
  void fill_next(size_t from, size_t least_bytes);

  std::function<size_t(char*, size_t)> read_;
  Block block_, next_;
  uint64_t bytes_read_ = 0;
  bool ended_ = false;
};

class ChunkCounter {
 public:
  explicit ChunkCounter(BpePattern pattern) : pattern_(pattern) {}

  BpePattern pattern() const { return pattern_; }
  uint64_t bytes() const { return bytes_; }  // of all that was added

  // Adds the chunks of valid UTF-8 texts. May throw Interrupted.
  void add(const std::vector<std::string_view>& texts);

  // Adds the chunks of the next few megabytes of a text while it reads on, and says whether there may be more. May
  // throw Interrupted, and std::invalid_argument that names the byte where the text is not UTF-8 or a NUL.
  bool add(TextReader& reader);

  // Every chunk once. The views hold until something is added.
  std::vector<CountedChunk> chunks();

 private:
  static constexpr size_t kParts = 64;  // of the table, by hash: each is one task's at a time

  struct Task {
    ChunkCache cache;
    std::array<std::vector<ShortChunkCount>, kParts> spilled;
    std::array<std::vector<std::string_view>, kParts> long_chunks;
  };

  void count(const std::vector<std::string_view>& pieces, const std::function<void()>& meanwhile);
  void count_piece(Task& task, std::string_view piece) const;
  void collect(size_t part);

  BpePattern pattern_;
  uint64_t bytes_ = 0;
  std::vector<Task> tasks_;
  std::array<ChunkTable, kParts> table_;
};

}  // namespace soma
