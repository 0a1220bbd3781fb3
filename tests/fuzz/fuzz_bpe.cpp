// libFuzzer over the splitters and the encoder of byte-level BPE: any bytes become a valid UTF-8 text, and what comes
// out must agree with the slow and obvious way. Built and run for a bounded time by the stage `fuzz` of .ci/run.
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/bpe_split.h"
#include "tokenizer/unicode.h"

namespace {

using soma::BpePattern;
using soma::TokenId;
using Chunks = std::vector<std::string_view>;

// Those that have a name, and two of those that have none.
std::vector<BpePattern> all_patterns() {
  std::vector<BpePattern> patterns;
  for (const soma::NamedBpePattern& known : soma::kBpePatterns) patterns.push_back(known.pattern);
  patterns.push_back(soma::parse_bpe_pattern("contractions-ascii words-prefixed digits-4 digits-split newlines"));
  patterns.push_back(soma::parse_bpe_pattern("digits-2 digits-spaced tail-slashes newlines space-at-end"));
  return patterns;
}
const std::vector<BpePattern> kPatterns = all_patterns();

void require(bool holds, const char* what) {
  if (holds) return;
  std::cerr << "does not hold: " << what << '\n';
  std::abort();
}

// The bytes, without those that are no valid UTF-8 where they stand.
std::string valid_text(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const size_t bad = soma::find_invalid_utf8(bytes);
    text += bytes.substr(0, bad);
    if (bad == std::string_view::npos) break;
    bytes.remove_prefix(bad + 1);
  }
  return text;
}

Chunks chunks_of(const BpePattern& pattern, std::string_view text) {
  Chunks chunks;
  soma::for_each_chunk(pattern, text, [&](std::string_view chunk) { chunks.push_back(chunk); });
  return chunks;
}

// A vocabulary in which the fuzzer's bytes merge often, in ways that overlap.
soma::BpeVocabulary vocabulary_of(const BpePattern& pattern, bool ranks, bool ignore_merges) {
  soma::BpeVocabulary vocabulary;
  vocabulary.pattern = pattern;
  vocabulary.ignore_merges = ignore_merges;
  for (int byte = 0; byte < 256; ++byte) vocabulary.tokens.emplace_back(std::string(1, static_cast<char>(byte)));
  std::vector<std::pair<TokenId, TokenId>> merges;
  const auto merge = [&](TokenId left, TokenId right) {
    const auto id = static_cast<TokenId>(vocabulary.tokens.size());
    vocabulary.tokens.emplace_back(*vocabulary.tokens[left] + *vocabulary.tokens[right]);
    merges.emplace_back(left, right);
    return id;
  };
  const TokenId aa = merge('a', 'a');
  const TokenId ab = merge('a', 'b');
  const TokenId aaa = merge(aa, 'a');
  merge(ab, ab);
  merge(aaa, aa);
  merge(merge(' ', 'a'), ab);
  merge(merge(0xC3, 0xA9), 'a');
  merge(merge('\n', '\n'), ' ');
  merge(merge('1', '2'), '3');
  if (!ranks) vocabulary.merges = merges;
  vocabulary.special_tokens.emplace_back("<|e|>", static_cast<TokenId>(vocabulary.tokens.size() + 3));
  return vocabulary;
}

// As the vocabulary says: of all neighbours that merge, those of lowest rank do first, among equals the leftmost.
std::vector<TokenId> slowly(const soma::BpeVocabulary& vocabulary, std::string_view chunk) {
  std::unordered_map<std::string, TokenId> id_of;
  for (TokenId id = 0; id < vocabulary.tokens.size(); ++id) id_of.emplace(*vocabulary.tokens[id], id);
  const bool whole = vocabulary.ignore_merges || !vocabulary.merges;
  if (const auto found = id_of.find(std::string(chunk)); whole && found != id_of.end()) return {found->second};
  const auto rank = [&](TokenId left, TokenId right) -> std::optional<size_t> {
    if (!vocabulary.merges) {
      const auto found = id_of.find(*vocabulary.tokens[left] + *vocabulary.tokens[right]);
      return found == id_of.end() ? std::nullopt : std::optional<size_t>(found->second);
    }
    for (size_t i = 0; i < vocabulary.merges->size(); ++i) {
      if ((*vocabulary.merges)[i] == std::pair(left, right)) return i;
    }
    return std::nullopt;
  };
  std::vector<TokenId> ids;
  for (const char byte : chunk) ids.push_back(static_cast<unsigned char>(byte));
  for (;;) {
    std::optional<size_t> lowest;
    size_t at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto here = rank(ids[i], ids[i + 1]);
      if (here && (!lowest || *here < *lowest)) {
        lowest = here;
        at = i;
      }
    }
    if (!lowest) return ids;
    ids[at] = id_of.at(*vocabulary.tokens[ids[at]] + *vocabulary.tokens[ids[at + 1]]);
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

void check_splitter(const BpePattern& pattern, std::string_view text, size_t target) {
  const Chunks chunks = chunks_of(pattern, text);
  size_t end = 0;
  for (const std::string_view chunk : chunks) {
    require(!chunk.empty() && chunk.data() == text.data() + end, "the chunks cover the text, and none is empty");
    require(soma::find_invalid_utf8(chunk) == std::string_view::npos, "no chunk ends within a character");
    end += chunk.size();
  }
  require(end == text.size(), "the chunks end where the text ends");
  Chunks cut;
  for (const std::string_view piece : soma::cut_at_chunk_ends(text, target)) {
    for (const std::string_view chunk : chunks_of(pattern, piece)) cut.push_back(chunk);
  }
  require(cut == chunks, "a text that was cut falls into the same chunks");
  // Behind other text, at another address: nothing depends on where in memory a text begins.
  const std::string moved = "x" + std::string(text);
  const Chunks again = chunks_of(pattern, std::string_view(moved).substr(1));
  require(again.size() == chunks.size() && std::equal(again.begin(), again.end(), chunks.begin()),
          "the same text falls into the same chunks");
}

void check_encoder(const soma::BpeVocabulary& vocabulary, const soma::Tokenizer& tokenizer, const std::string& text) {
  std::vector<TokenId> expected;
  for (const std::string_view chunk : chunks_of(vocabulary.pattern, text)) {
    for (const TokenId id : slowly(vocabulary, chunk)) expected.push_back(id);
  }
  const soma::Encoding found = tokenizer.encode(text, {}, /*with_spans=*/true, /*alone=*/false);
  require(std::equal(found.ids.begin(), found.ids.end(), expected.begin(), expected.end()), "the ids are as defined");
  std::string decoded;
  tokenizer.append_decoded(found.ids.data(), found.ids.size(), decoded);
  require(decoded == text, "decoding gives the text");
  size_t end = 0;
  for (const soma::Span& span : found.spans) {
    require(span.begin == end && span.end > end, "the spans cover the text");
    end = span.end;
  }
  require(end == text.size(), "the spans end where the text ends");
  const auto special = tokenizer.encode(text, tokenizer.special_ids(), false, true);
  decoded.clear();
  tokenizer.append_decoded(special.ids.data(), special.ids.size(), decoded);
  require(decoded == text, "decoding gives the text with special tokens too");
}

struct Case {
  soma::BpeVocabulary vocabulary;
  std::unique_ptr<soma::Tokenizer> tokenizer;
};

const std::vector<Case>& cases() {
  static const auto* const made = [] {
    auto* all = new std::vector<Case>;
    for (const BpePattern& pattern : kPatterns) {
      for (const int kind : {0, 1, 2}) {
        const auto vocabulary = vocabulary_of(pattern, kind == 2, kind == 1);
        all->push_back({vocabulary, soma::make_bpe_tokenizer(vocabulary)});
      }
    }
    return all;
  }();
  return *made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string text = valid_text({reinterpret_cast<const char*>(data) + 2, size - 2});
  for (const BpePattern& pattern : kPatterns) check_splitter(pattern, text, 1 + data[0]);
  const Case& chosen = cases()[data[1] % cases().size()];
  if (text.size() < 512) check_encoder(chosen.vocabulary, *chosen.tokenizer, text);
  return 0;
}
