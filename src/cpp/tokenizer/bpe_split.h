// How a text falls into the chunks that byte-level BPE works in: the regular expressions of the published vocabularies,
// by hand. Training and encoding share this; so do the places where a long text may be cut without changing a chunk.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>
#include <vector>

namespace soma {

// The rules and whose they are. L, N, M: \p{L}, \p{N}, \p{M} of Unicode kUnicodeClassesVersion (unicode.h), which is
// that of tiktoken and of Hugging Face `tokenizers` alike. 's: (?i:'s|'t|'re|'ve|'m|'ll|'d), where U+017F counts as
// an s.
//   gpt2    '(?:[sdmt]|ll|ve|re)| ?L+| ?N+| ?[^\s L N]+|\s+(?!\S)|\s+
//   cl100k  's|[^\r\n L N]?L+|N{1,3}| ?[^\s L N]+[\r\n]*|\s+$|\s*[\r\n]+|\s+(?!\S)|\s+
//   llama3  as cl100k, but without \s+$, as cl100k was at first: Llama-3's file
//   qwen2   as llama3, but single digits: N for N{1,3}: Qwen-2's file
//   o200k   [^\r\n L N]?U*W+('s)?|[^\r\n L N]?U+W*('s)?|N{1,3}| ?[^\s L N]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
//           with U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}M] and W = [\p{Ll}\p{Lm}\p{Lo}M]
enum class BpePattern { kGpt2, kCl100k, kLlama3, kQwen2, kO200k };

// In the order of the enum.
constexpr std::array<const char*, 5> kBpePatternNames = {"gpt2", "cl100k", "llama3", "qwen2", "o200k"};

// Throws std::invalid_argument naming them for anything else.
BpePattern parse_bpe_pattern(std::string_view name);
const char* bpe_pattern_name(BpePattern pattern);

// Gives the chunks of a valid UTF-8 text, which must outlive it, from front to back. They cover the text.
class BpeSplitter {
 public:
  BpeSplitter(BpePattern pattern, std::string_view text) : BpeSplitter(pattern, text, text.size()) {}
  // The same, faster at the end of the text, where `readable` bytes may be read from its front on, 64 beyond its end or
  // more: whatever is there.
  BpeSplitter(BpePattern pattern, std::string_view text, size_t readable)
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
void for_each_chunk(BpePattern pattern, std::string_view text, Chunk&& chunk) {
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

}  // namespace soma
