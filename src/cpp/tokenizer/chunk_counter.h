// Counts the distinct chunks of a corpus, from which BPE is trained. Each task counts in a small cache. Counts that a
// cache drops go to one table, so that memory grows with the distinct chunks and not with the threads. The result does
// not depend on the number of threads.
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

// A text that is read in blocks. A byte order mark at its start is skipped.
class TextReader {
 public:
  // read(to, size) reads up to `size` bytes and returns their number: 0 at the end.
  explicit TextReader(std::function<size_t(char* to, size_t size)> read) : read_(std::move(read)) {}

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  friend class ChunkCounter;

  struct Block {
    std::string bytes;
    size_t size = 0;   // filled bytes
    size_t valid = 0;  // filled bytes that are valid UTF-8: all but part of a character at the end
  };

  // Fills next_ with block_ from `from` on, then with newly read bytes, at least as many again. So even a text that
  // cannot be cut is read in linear time. Throws std::invalid_argument for text that is not UTF-8 or has a NUL.
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
  uint64_t bytes() const { return bytes_; }  // of all texts added so far

  // Adds the chunks of valid UTF-8 texts. May throw Interrupted.
  void add(const std::vector<std::string_view>& texts);

  // Adds the chunks of the next few megabytes of a text, and reads on meanwhile. Returns whether more may follow. May
  // throw Interrupted. Throws std::invalid_argument that names the first byte that is not UTF-8 or is NUL.
  bool add(TextReader& reader);

  // Every distinct chunk and its count. The views are valid until the next add().
  std::vector<CountedChunk> chunks();

 private:
  static constexpr size_t kParts = 64;  // of the table, by hash; one task at a time changes a part

  struct Task {
    CountCache cache;
    std::array<std::vector<PackedChunkCount>, kParts> spilled;
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
