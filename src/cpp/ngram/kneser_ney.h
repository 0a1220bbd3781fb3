// Interpolated modified Kneser-Ney smoothing of character 5-grams: S. F. Chen and J. Goodman, "An empirical study of
// smoothing techniques for language modeling", TR-10-98, Harvard 1998, section 3.
//
//     p(w | h) = (max(c(h w) - D(c(h w)), 0) + g(h) p(w | h')) / sum over v of c(h v)
//     g(h) = D1 N1(h) + D2 N2(h) + D3 N3(h)
//
// h' is h without its first symbol, and N1, N2, N3 are how many different characters follow h once, twice, and more
// often. c counts 5-grams as they are. Of a shorter n-gram it counts the different symbols that stand before it, or its
// occurrences where it begins with the start of a document, for nothing stands before that. Each order has discounts of
// its own, from the n-grams of it that have the counts 1 to 4 (n1 to n4):
//
//     Y = n1 / (n1 + 2 n2)    D1 = 1 - 2 Y n2 / n1    D2 = 2 - 3 Y n3 / n2    D3 = 3 - 4 Y n4 / n3
//
// Where one of them is not to be had, or not above 0, the order takes 1/2, 1, 3/2, as KenLM does (Heafield et al., ACL
// 2013, its --discount_fallback). Below single characters stands a uniform distribution over the characters that the
// training text has and one more, "unknown". The share of "unknown" is spread evenly over all other characters of
// Unicode, so that the sum over all of them is 1, and no text has infinitely many bits.
//
// A context does not reach beyond the start of its document. The end of a document is not predicted.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "ngram/ngram_counter.h"

namespace soma {

class KneserNey {
 public:
  struct Score {
    double bits = 0;            // -log2 of the probability of all characters
    double character_bits = 0;  // the same without any context: of c + 1 occurrences in N + A + 1, A different ones
    uint64_t characters = 0, bytes = 0;
  };

  // From what was counted, which the counter has no longer. Memory: 21 bytes a distinct 5-gram, 53 a shorter one. May
  // throw Interrupted.
  explicit KneserNey(NgramCounter& counter);

  // How well the documents are predicted; of each, its first skipped[i] bytes are context alone. `skipped` may be
  // empty. The sum runs in the order of the documents, with the same bits for any number of threads. May throw
  // Interrupted.
  Score score(const std::vector<std::string_view>& documents, const std::vector<size_t>& skipped) const;

  // -log2 of the probability of each character of a document.
  std::vector<double> bits_of(std::string_view document) const;

  // D1, D2, D3 of order n + 1.
  const std::array<std::array<double, 3>, kNgramOrder>& discounts() const { return discounts_; }
  size_t different_characters() const { return different_; }

 private:
  // What follows an n-gram of up to four symbols.
  struct Context {
    std::atomic<uint64_t> total{0};
    std::atomic<uint32_t> types[3]{};  // the N1, N2, N3 of the equations

    void add(uint64_t count) {
      total.fetch_add(count, std::memory_order_relaxed);
      types[count < 3 ? count - 1 : 2].fetch_add(1, std::memory_order_relaxed);
    }
  };
  using CountsOfCounts = std::array<uint64_t, 5>;  // [c]: how many n-grams have the count c

  // The symbols before a character, and what is known of their suffixes: those of n symbols by n.
  struct State {
    Ngram history;
    std::array<const Context*, kNgramOrder> contexts{};
  };

  const CountTable& table_of(const Ngram& ngram, int size) const {
    return size == 1 ? single_ : tables_[size - 2][ngram_part(ngram)];
  }
  const Context* context_of(const Ngram& ngram, int size) const;

  void count_shorter(size_t part, std::array<CountsOfCounts, kNgramOrder>& counts, CountTable& characters);
  void count_singles(const std::vector<CountTable>& characters, CountsOfCounts& counts);
  void count_contexts(size_t part);
  void set_discounts(int order, const CountsOfCounts& counts);

  State state_before(const DocumentPiece& piece) const;
  double probability(State& state, NgramSymbol symbol) const;  // and moves on
  double character_probability(NgramSymbol symbol) const;
  double uniform(bool seen) const;

  std::array<NgramTable, kNgramOrder - 1> tables_;  // of 2 to 5 symbols
  CountTable single_;                               // and of one; the start of a document has the count 0
  CountTable characters_;                           // how often a character is there
  Context root_;
  std::array<std::array<std::unique_ptr<Context[]>, kNgramParts>, kNgramOrder - 1> contexts_;  // by slot, of 1 to 4
  std::array<std::array<double, 3>, kNgramOrder> discounts_{};
  uint64_t total_ = 0;    // of characters
  size_t different_ = 0;  // characters
};

}  // namespace soma
