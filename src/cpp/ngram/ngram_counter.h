// Counts the n-grams of characters in documents. What it finds does not depend on the number of threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string_view>
#include <utility>
#include <vector>

#include "base/interrupt.h"
#include "base/parallel.h"
#include "ngram/count_table.h"
#include "ngram/ngram.h"

namespace soma {

// One table is 64, each of which one thread works on at a time. An n-gram of two symbols and more goes by its last two,
// so that its suffix of two and more is in the same part.
constexpr size_t kNgramParts = 64;
using NgramTable = std::array<CountTable, kNgramParts>;
inline size_t ngram_part(const Ngram& ngram) { return (ngram.low & Ngram::kTwo) * 0x9E3779B97F4A7C15u >> 58; }

// Some characters of a document, together with what stands before them.
struct DocumentPiece {
  std::string_view document;
  size_t index, begin, end;  // of the document; bytes of it

  const unsigned char* at(size_t byte) const { return reinterpret_cast<const unsigned char*>(document.data()) + byte; }
  // The start of the document, where it is near, and at most four characters before the piece.
  Ngram history() const;
};

// Documents of valid UTF-8 in pieces of one size, cut between characters.
std::vector<DocumentPiece> pieces_of(const std::vector<std::string_view>& documents);

// Calls f(first, one beyond the last) for stretches of the pieces that have work for all threads, and asks for signals
// after each.
template <typename F>
void for_each_round(const std::vector<DocumentPiece>& pieces, F&& f) {
  constexpr size_t kRoundBytes = size_t{1} << 19;  // for one thread
  const size_t most = kRoundBytes * static_cast<size_t>(call_threads());
  for (size_t begin = 0, end = 0; begin < pieces.size(); begin = end) {
    for (size_t bytes = 0; end < pieces.size() && bytes < most; ++end) bytes += pieces[end].end - pieces[end].begin;
    f(begin, end);
    check_interrupt();
  }
}

// parallel_for with an f that may throw: what the smallest i threw is thrown here.
template <typename F>
void parallel_for_that_throws(size_t count, F&& f) {
  std::vector<std::exception_ptr> failures(count);
  parallel_for(static_cast<int64_t>(count), [&](int64_t i) {
    try {
      f(static_cast<size_t>(i));
    } catch (...) {
      failures[i] = std::current_exception();
    }
  });
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

class NgramCounter {
 public:
  // Counts one n-gram a character: it and the four before it, or all before it and the start of the document. Memory
  // grows with the distinct ones: 21 to 32 bytes each. The texts are not kept. May throw Interrupted.
  void add(const std::vector<std::string_view>& documents);

  uint64_t bytes() const { return bytes_; }  // of all that was added
  NgramTable take() {
    found_ = {};
    return std::move(table_);
  }

 private:
  using Found = std::array<std::vector<Ngram>, kNgramParts>;  // by one task, in one round

  void count(const DocumentPiece* begin, const DocumentPiece* end);

  NgramTable table_;
  std::vector<Found> found_;
  uint64_t bytes_ = 0;
};

}  // namespace soma
