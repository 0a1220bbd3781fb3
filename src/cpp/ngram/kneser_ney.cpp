// Counts of shorter n-grams and what follows each are whole numbers, so that threads may add them up in any order.
#include "ngram/kneser_ney.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/interrupt.h"
#include "base/utf8.h"

namespace soma {
namespace {
constexpr double kCharactersOfUnicode = 0x110000 - 0x800;  // without surrogates

// Calls f for every part in parallel, and asks for signals meanwhile.
template <typename F>
void for_each_part(F&& f) {
  constexpr size_t kStride = 8;  // a long text keeps us waiting for seconds
  for (size_t first = 0; first < kNgramParts; first += kStride) {
    parallel_for_that_throws(kStride, [&](size_t i) { f(first + i); });
    check_interrupt();
  }
}

void note(std::array<uint64_t, 5>& counts, uint64_t count) {
  if (count < counts.size()) ++counts[count];
}
}  // namespace

KneserNey::KneserNey(NgramCounter& counter) {
  tables_.back() = counter.take();
  std::vector<std::array<CountsOfCounts, kNgramOrder>> counts(kNgramParts);
  std::vector<CountTable> characters(kNgramParts);
  for_each_part([&](size_t part) { count_shorter(part, counts[part], characters[part]); });
  count_singles(characters, counts[0][0]);
  for (int order = 1; order <= kNgramOrder; ++order) {
    CountsOfCounts sum{};
    for (const auto& part : counts) {
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += part[order - 1][c];
    }
    set_discounts(order, sum);
  }
  for_each_part([&](size_t part) { count_contexts(part); });
}

// From the longest n-grams of a part to those of two symbols: each stands once before every different one that ends so.
void KneserNey::count_shorter(size_t part, std::array<CountsOfCounts, kNgramOrder>& counts, CountTable& characters) {
  tables_.back()[part].for_each([&](const Ngram& ngram, uint64_t count) {
    characters.add(ngram.suffix(1), count);
    const int size = ngram.size();
    if (size < kNgramOrder) tables_[size - 2][part].add(ngram, count);  // from the start of a document
  });
  for (int order = kNgramOrder; order >= 2; --order) {
    tables_[order - 2][part].for_each([&](const Ngram& ngram, uint64_t count) {
      if (ngram.size() < order) return;
      note(counts[order - 1], count);
      if (order > 2) tables_[order - 3][part].add(ngram.suffix(order - 1), 1);
    });
  }
  for (int order = 2; order <= kNgramOrder; ++order) {
    tables_[order - 2][part].fit();
    if (order < kNgramOrder) contexts_[order - 1][part].reset(new Context[tables_[order - 2][part].slots()]);
  }
}

void KneserNey::count_singles(const std::vector<CountTable>& characters, CountsOfCounts& counts) {
  for (size_t part = 0; part < kNgramParts; ++part) {
    tables_[0][part].for_each([&](const Ngram& ngram, uint64_t) { single_.add(ngram.suffix(1), 1); });
    characters[part].for_each([&](const Ngram& ngram, uint64_t count) {
      characters_.add(ngram, count);
      total_ += count;
    });
  }
  single_.for_each([&](const Ngram&, uint64_t count) {
    note(counts, count);
    root_.add(count);
  });
  different_ = single_.size();
  single_.add({0, kDocumentStart}, 0);
  contexts_[0][0].reset(new Context[single_.slots()]);
}

void KneserNey::set_discounts(int order, const CountsOfCounts& counts) {
  std::array<double, 3>& discounts = discounts_[order - 1];
  const double y = static_cast<double>(counts[1]) / static_cast<double>(counts[1] + 2 * counts[2]);
  bool good = true;
  for (int c = 1; c <= 3; ++c) {
    discounts[c - 1] = c - (c + 1) * y * static_cast<double>(counts[c + 1]) / static_cast<double>(counts[c]);
    good = good && counts[c] > 0 && counts[c + 1] > 0 && discounts[c - 1] > 0;
  }
  if (!good) discounts = {0.5, 1.0, 1.5};
}

void KneserNey::count_contexts(size_t part) {
  for (int order = 2; order <= kNgramOrder; ++order) {
    tables_[order - 2][part].for_each([&](const Ngram& ngram, uint64_t count) {
      if (ngram.size() < order) return;
      // The context is there as an n-gram: no character follows what did not come before it.
      const_cast<Context*>(context_of(ngram.without_last(), order - 1))->add(count);
    });
  }
}

const KneserNey::Context* KneserNey::context_of(const Ngram& ngram, int size) const {
  const size_t slot = table_of(ngram, size).find(ngram);
  return slot == CountTable::kNone ? nullptr : &contexts_[size - 1][size == 1 ? 0 : ngram_part(ngram)][slot];
}

double KneserNey::uniform(bool seen) const {
  const auto different = static_cast<double>(different_);
  return 1.0 / (different + 1.0) / (seen ? 1.0 : kCharactersOfUnicode - different);
}

KneserNey::State KneserNey::state_before(const DocumentPiece& piece) const {
  State state{piece.history(), {&root_}};
  const int size = std::min(state.history.size(), kNgramOrder - 1);
  for (int n = 1; n <= size; ++n) state.contexts[n] = context_of(state.history.suffix(n), n);
  return state;
}

double KneserNey::probability(State& state, NgramSymbol symbol) const {
  state.history = state.history.then(symbol);
  std::array<const Context*, kNgramOrder> following{&root_};
  double p = 0;
  for (int n = 1; n <= kNgramOrder && state.contexts[n - 1] != nullptr; ++n) {
    const Ngram ngram = state.history.suffix(n);
    const CountTable& table = table_of(ngram, n);
    const size_t slot = table.find(ngram);
    const uint64_t count = slot == CountTable::kNone ? 0 : table.count(slot);
    if (n == 1) p = uniform(count > 0);
    if (slot != CountTable::kNone && n < kNgramOrder) {
      following[n] = &contexts_[n - 1][n == 1 ? 0 : ngram_part(ngram)][slot];
    }
    const Context& context = *state.contexts[n - 1];
    const auto total = static_cast<double>(context.total.load(std::memory_order_relaxed));
    if (total == 0) continue;  // it stands at ends of documents alone
    const auto& discounts = discounts_[n - 1];
    double left = 0;
    for (int i = 0; i < 3; ++i) left += discounts[i] * context.types[i].load(std::memory_order_relaxed);
    const double taken = count == 0 ? 0 : static_cast<double>(count) - discounts[std::min<uint64_t>(count, 3) - 1];
    p = (std::max(taken, 0.0) + left * p) / total;
  }
  state.contexts = following;
  return p;
}

double KneserNey::character_probability(NgramSymbol symbol) const {
  const auto different = static_cast<double>(different_), total = static_cast<double>(total_);
  const size_t slot = characters_.find({0, symbol});
  if (slot == CountTable::kNone) return 1.0 / (total + different + 1.0) / (kCharactersOfUnicode - different);
  return (static_cast<double>(characters_.count(slot)) + 1.0) / (total + different + 1.0);
}

KneserNey::Score KneserNey::score(const std::vector<std::string_view>& documents,
                                  const std::vector<size_t>& skipped) const {
  check(skipped.empty() || skipped.size() == documents.size(), "skipped must have one number for each document");
  const std::vector<DocumentPiece> pieces = pieces_of(documents);
  std::vector<Score> scores(pieces.size());
  for_each_round(pieces, [&](size_t begin, size_t end) {
    parallel_for_that_throws(end - begin, [&](size_t i) {
      const DocumentPiece& piece = pieces[begin + i];
      const size_t context_alone = skipped.empty() ? 0 : skipped[piece.index];
      Score& score = scores[begin + i];
      State state = state_before(piece);
      for (size_t at = piece.begin, next; at < piece.end; at = next) {
        const NgramSymbol symbol = symbol_of(decode_utf8(piece.at(at)));
        const double p = probability(state, symbol);
        next = at + utf8_length(*piece.at(at));
        if (at < context_alone) continue;
        score.bits -= std::log2(p);
        score.character_bits -= std::log2(character_probability(symbol));
        ++score.characters;
        score.bytes += next - at;
      }
    });
  });
  Score sum;
  for (const Score& score : scores) {
    sum.bits += score.bits;
    sum.character_bits += score.character_bits;
    sum.characters += score.characters;
    sum.bytes += score.bytes;
  }
  return sum;
}

std::vector<double> KneserNey::bits_of(std::string_view document) const {
  const DocumentPiece whole{document, 0, 0, document.size()};
  State state = state_before(whole);
  std::vector<double> bits;
  for (size_t at = 0; at < document.size(); at += utf8_length(*whole.at(at))) {
    bits.push_back(-std::log2(probability(state, symbol_of(decode_utf8(whole.at(at))))));
  }
  return bits;
}

}  // namespace soma
