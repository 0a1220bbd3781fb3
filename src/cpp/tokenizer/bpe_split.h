// How a text falls into the chunks that byte-level BPE works in: the regular expressions of the published vocabularies,
// by hand. Training and encoding share this; so do the places where a long text may be cut without changing a chunk.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "tokenizer/bpe_pattern.h"

namespace soma {

// Gives the chunks of a valid UTF-8 text, which must outlive it, from front to back. They cover the text.
class BpeSplitter {
 public:
  BpeSplitter(const BpePattern& pattern, std::string_view text) : BpeSplitter(pattern, text, text.size()) {}
  // The same, faster at the end of the text, where `readable` bytes may be read from its front on, 64 beyond its end or
  // more: whatever is there.
  BpeSplitter(const BpePattern& pattern, std::string_view text, size_t readable)
      : pattern_(pattern), text_(text), readable_(readable) {}

  // Writes the ends of the next chunks, as offsets into the text, and says how many: 0 at the end of the text only.
  // `capacity` is at least 64.
  size_t next(size_t* ends, size_t capacity);

 private:
  BpePattern pattern_;
  std::string_view text_;
  size_t readable_;
  size_t at_ = 0;  // where the next chunk begins
};

// Calls chunk(std::string_view) for every chunk of the valid UTF-8 `text`, in order.
template <typename Chunk>
void for_each_chunk(const BpePattern& pattern, std::string_view text, Chunk&& chunk) {
  BpeSplitter splitter(pattern, text);
  size_t ends[256];
  size_t begin = 0;
  while (const size_t count = splitter.next(ends, 256)) {
    for (size_t i = 0; i < count; ++i) {
      chunk(text.substr(begin, ends[i] - begin));
      begin = ends[i];
    }
  }
}

// Cuts the valid UTF-8 `text` into pieces of about `target` bytes that fall into the same chunks as the whole: after a
// letter or digit that whitespace or punctuation (no mark, no apostrophe) follows. Pieces of fewer bytes appear only at
// the end, longer ones where there is no such place.
std::vector<std::string_view> cut_at_chunk_ends(std::string_view text, size_t target);

// The last such place behind text[from]; 0 where there is none. No word of kind "word" goes across it either.
size_t last_chunk_end(std::string_view text, size_t from);

}  // namespace soma
