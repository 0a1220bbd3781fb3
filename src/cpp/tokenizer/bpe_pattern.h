// How a text is split before bytes are merged: the choices that the published regular expressions differ in, and those
// combinations that have a name.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace soma {

// What regular expressions of the published vocabularies have in common, and where they differ. L, N, M: \p{L}, \p{N},
// \p{M} of Unicode kUnicodeClassesVersion (unicode.h), which is that of tiktoken and of Hugging Face `tokenizers`.
// An expression is these alternatives, in this order:
//
//   contractions  '(?:[sdmt]|ll|ve|re); kAscii: capitals too; kAny: (?i:...), where U+017F counts as an s too
//   words         kSpaced:    ?L+
//                 kPrefixed: [^\r\n L N]?L+
//                 kMarked:   [^\r\n L N]?[L M]+, and no M in what follows
//                 kCased:    [^\r\n L N]?U*W+|[^\r\n L N]?U+W*, a contraction behind it instead of in front, with
//                            U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}M] and W = [\p{Ll}\p{Lm}\p{Lo}M]
//   digits        N{1,digits}, 0: N+; spaced_digits:  ?N+
//   others         ?[^\s L N]+, then the tail: nothing, [\r\n]* or [\r\n/]*
//   white space   whole_at_end: \s+$; newlines: \s*[\r\n]+; then \s+(?!\S)|\s+
//
// Where numbers are cut out first, `digits` together, the expression sees what is between them: to it, text ends there.
// Apart::kSplit: by \p{N}; kDigits: by the step Digits of `tokenizers`, which knows more of them (kNewNumber).
enum class Contractions : uint8_t { kNone, kLower, kAscii, kAny };
enum class Words : uint8_t { kSpaced, kPrefixed, kMarked, kCased };
enum class Apart : uint8_t { kNo, kSplit, kDigits };
enum class Tail : uint8_t { kNone, kNewlines, kSlashes };

struct BpePattern {
  Contractions contractions = Contractions::kNone;
  Words words = Words::kSpaced;
  uint8_t digits = 0;
  bool spaced_digits = false;
  Apart apart = Apart::kNo;
  Tail tail = Tail::kNone;
  bool newlines = false;
  bool whole_at_end = false;

  bool operator==(const BpePattern&) const = default;
};

struct NamedBpePattern {
  const char* name;
  BpePattern pattern;
};

// Those that have a name, and whose they are.
//   gpt2       GPT-2, GPT-NeoX, OLMo, Phi-2, RoBERTa
//   cl100k     GPT-4, in tiktoken
//   llama3     Llama-3, GLM-4, OLMo-2, Phi-4, SmolLM3: cl100k as it was at first, without \s+$
//   qwen2      Qwen-2, 2.5 and 3
//   o200k      GPT-4o, gpt-oss, Llama-4
//   nanochat   nanochat
//   starcoder  StarCoder, SmolLM, SmolLM2, Granite, Command-R: single digits apart, then gpt2
//   tekken     Mistral-Nemo
//   qwen3.5    Qwen-3.5
constexpr std::array<NamedBpePattern, 9> kBpePatterns = {{
    //             contractions          words             digits spaced apart tail        newlines whole_at_end
    {"gpt2", {Contractions::kLower, Words::kSpaced, 0, true, Apart::kNo, Tail::kNone, false, false}},
    {"cl100k", {Contractions::kAny, Words::kPrefixed, 3, false, Apart::kNo, Tail::kNewlines, true, true}},
    {"llama3", {Contractions::kAny, Words::kPrefixed, 3, false, Apart::kNo, Tail::kNewlines, true, false}},
    {"qwen2", {Contractions::kAny, Words::kPrefixed, 1, false, Apart::kNo, Tail::kNewlines, true, false}},
    {"o200k", {Contractions::kAny, Words::kCased, 3, false, Apart::kNo, Tail::kSlashes, true, false}},
    {"nanochat", {Contractions::kAny, Words::kPrefixed, 2, false, Apart::kNo, Tail::kNewlines, true, false}},
    {"starcoder", {Contractions::kLower, Words::kSpaced, 1, false, Apart::kDigits, Tail::kNone, false, false}},
    {"tekken", {Contractions::kNone, Words::kCased, 1, false, Apart::kNo, Tail::kSlashes, true, false}},
    {"qwen3.5", {Contractions::kAny, Words::kMarked, 1, false, Apart::kNo, Tail::kNewlines, true, false}},
}};

// Of a name, or of rules: words such as "contractions-any words-prefixed digits-3 newlines", in any order, each at most
// once. Throws std::invalid_argument naming the names for anything else.
BpePattern parse_bpe_pattern(std::string_view text);
std::string bpe_pattern_rules(const BpePattern& pattern);
// Its name; its rules where it has none.
std::string bpe_pattern_name(const BpePattern& pattern);

}  // namespace soma
