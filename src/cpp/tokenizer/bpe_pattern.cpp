// Patterns as text: a name, or the words of the rules.
#include "tokenizer/bpe_pattern.h"

#include <algorithm>

#include "base/check.h"

namespace soma {
namespace {

constexpr size_t kMostDigits = 9;

constexpr std::array<const char*, 4> kContractionWords = {"", "contractions-lower", "contractions-ascii",
                                                          "contractions-any"};
constexpr std::array<const char*, 4> kWordsWords = {"", "words-prefixed", "words-marked", "words-cased"};
constexpr std::array<const char*, 3> kApartWords = {"", "digits-split", "digits-apart"};
constexpr std::array<const char*, 3> kTailWords = {"", "tail-newlines", "tail-slashes"};
constexpr std::string_view kDigits = "digits-";

// Sets `choice` to the one that `word` names among the words of all choices but the first.
template <typename Choice, size_t kCount>
bool choose(Choice& choice, const std::array<const char*, kCount>& words, std::string_view word) {
  const auto found = std::find(words.begin() + 1, words.end(), word);
  if (found == words.end() || choice != Choice{}) return false;
  choice = static_cast<Choice>(found - words.begin());
  return true;
}

bool choose(bool& choice, std::string_view name, std::string_view word) {
  if (choice || word != name) return false;
  return choice = true;
}

bool choose_digits(uint8_t& digits, std::string_view word) {
  if (digits != 0 || word.size() != kDigits.size() + 1 || !word.starts_with(kDigits)) return false;
  const char last = word.back();
  if (last < '1' || last > static_cast<char>('0' + kMostDigits)) return false;
  digits = static_cast<uint8_t>(last - '0');
  return true;
}

bool choose_any(BpePattern& pattern, std::string_view word) {
  return choose(pattern.contractions, kContractionWords, word) || choose(pattern.words, kWordsWords, word) ||
         choose_digits(pattern.digits, word) || choose(pattern.spaced_digits, "digits-spaced", word) ||
         choose(pattern.apart, kApartWords, word) || choose(pattern.tail, kTailWords, word) ||
         choose(pattern.newlines, "newlines", word) || choose(pattern.whole_at_end, "space-at-end", word);
}

// Where these rules are those of an expression that the splitter follows.
bool is_sound(const BpePattern& pattern) {
  return (pattern.apart == Apart::kNo || !(pattern.whole_at_end || pattern.spaced_digits)) &&
         (pattern.apart != Apart::kDigits || pattern.digits <= 1) && (pattern.newlines || !pattern.whole_at_end);
}

[[noreturn]] void refuse(std::string_view text) {
  std::string names;
  for (size_t i = 0; i < kBpePatterns.size(); ++i) {
    names += i == 0 ? "" : i + 1 < kBpePatterns.size() ? ", " : " or ";
    names += std::string("'") + kBpePatterns[i].name + "'";
  }
  fail("pattern must be ", names, ", got '", text, "'");
}

}  // namespace

BpePattern parse_bpe_pattern(std::string_view text) {
  for (const NamedBpePattern& known : kBpePatterns) {
    if (text == known.name) return known.pattern;
  }
  BpePattern pattern;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t end = std::min(rest.find(' '), rest.size());
    if (!choose_any(pattern, rest.substr(0, end))) refuse(text);
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (text.empty() || !is_sound(pattern)) refuse(text);
  return pattern;
}

std::string bpe_pattern_rules(const BpePattern& pattern) {
  std::string text;
  const auto add = [&text](bool on, std::string_view word) {
    if (!on || word.empty()) return;
    if (!text.empty()) text += ' ';
    text += word;
  };
  add(true, kContractionWords[static_cast<size_t>(pattern.contractions)]);
  add(true, kWordsWords[static_cast<size_t>(pattern.words)]);
  add(pattern.digits != 0, std::string(kDigits) + static_cast<char>('0' + pattern.digits));
  add(pattern.spaced_digits, "digits-spaced");
  add(true, kApartWords[static_cast<size_t>(pattern.apart)]);
  add(true, kTailWords[static_cast<size_t>(pattern.tail)]);
  add(pattern.newlines, "newlines");
  add(pattern.whole_at_end, "space-at-end");
  return text;
}

std::string bpe_pattern_name(const BpePattern& pattern) {
  for (const NamedBpePattern& known : kBpePatterns) {
    if (pattern == known.pattern) return known.name;
  }
  return bpe_pattern_rules(pattern);
}

}  // namespace soma
