// Tasks find the n-grams of their pieces first, sorted by part; then each part of the table is filled by one task, from
// cache.
#include "ngram/ngram_counter.h"

#include <algorithm>
#include <atomic>

#include "base/utf8.h"

namespace soma {
namespace {
constexpr size_t kPieceBytes = size_t{1} << 16;  // 16 bytes a character are kept while they are found
}  // namespace

Ngram DocumentPiece::history() const {
  size_t from = begin;
  int characters = 0;
  for (; from > 0 && characters < kNgramOrder - 1; ++characters) {
    while (is_utf8_continuation(*at(--from))) {
    }
  }
  Ngram ngram;
  if (characters < kNgramOrder - 1) ngram = ngram.then(kDocumentStart);
  for (; from < begin; from += utf8_length(*at(from))) ngram = ngram.then(symbol_of(decode_utf8(at(from))));
  return ngram;
}

std::vector<DocumentPiece> pieces_of(const std::vector<std::string_view>& documents) {
  std::vector<DocumentPiece> pieces;
  for (size_t i = 0; i < documents.size(); ++i) {
    const std::string_view document = documents[i];
    for (size_t begin = 0; begin < document.size();) {
      size_t end = std::min(begin + kPieceBytes, document.size());
      while (end < document.size() && is_utf8_continuation(static_cast<unsigned char>(document[end]))) ++end;
      pieces.push_back({document, i, begin, end});
      begin = end;
    }
  }
  return pieces;
}

void NgramCounter::add(const std::vector<std::string_view>& documents) {
  const std::vector<DocumentPiece> pieces = pieces_of(documents);
  for_each_round(pieces, [&](size_t begin, size_t end) { count(pieces.data() + begin, pieces.data() + end); });
  for (const std::string_view document : documents) bytes_ += document.size();
}

void NgramCounter::count(const DocumentPiece* begin, const DocumentPiece* end) {
  const auto tasks = static_cast<size_t>(call_threads());
  if (found_.size() < tasks) found_.resize(tasks);
  const auto count = static_cast<size_t>(end - begin);
  std::atomic<size_t> next{0};
  parallel_for_that_throws(tasks, [&](size_t task) {
    Found& found = found_[task];
    for (size_t i; (i = next++) < count;) {
      const DocumentPiece& piece = begin[i];
      Ngram ngram = piece.history();
      const unsigned char* const stop = piece.at(piece.end);
      for (const unsigned char* p = piece.at(piece.begin); p < stop; p += utf8_length(*p)) {
        ngram = ngram.then(symbol_of(decode_utf8(p)));
        found[ngram_part(ngram)].push_back(ngram);
      }
    }
  });
  parallel_for_that_throws(kNgramParts, [&](size_t part) {
    for (Found& found : found_) {
      for (const Ngram& ngram : found[part]) table_[part].add(ngram, 1);
      found[part].clear();
    }
  });
}

}  // namespace soma
