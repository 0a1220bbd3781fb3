// Draws the next token from logits. Rules change the logits first, then cuts choose the candidates.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "model/repetitions.h"

namespace soma {

// Rules and cuts work in the order of these fields. Those that `transformers` has stand in its order and give its
// distribution.
struct SamplerConfig {
  int64_t vocab_size = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to the logit of an id; -infinity rules it out

  // Keskar et al. 2019 (CTRL), section 4.1: positive logits of observed and drawn ids are divided, negative multiplied.
  double repetition_penalty = 1;

  // Subtracted from the logit of an id that was drawn: once, and for each time.
  double presence_penalty = 0, frequency_penalty = 0;

  // "Don't repeat yourself" (p-e-w, text-generation-webui, 2024). An id that would extend a repetition of n >=
  // dry_allowed_length tokens loses dry_multiplier * dry_base^(n - dry_allowed_length). A repetition contains no
  // breaker, and a breaker of one id loses nothing.
  double dry_multiplier = 0, dry_base = 1.75;
  int64_t dry_allowed_length = 2;
  std::vector<int32_t> dry_breakers;                        // single ids
  std::vector<std::vector<int32_t>> dry_breaker_sequences;  // several ids in a row

  int64_t no_repeat_ngram_size = 0;  // an id that would complete an n-gram of the text a second time is ruled out

  double temperature = 1;  // 0: the most likely id
  int64_t top_k = 0;       // the k most likely; 0: all
  double top_p = 1;        // of these the fewest that reach this probability (Holtzman et al. 2020)
  double min_p = 0;        // of these all that have this share of the highest probability (Nguyen et al. 2024)

  uint64_t seed = 0;
  std::vector<int32_t> banned_ids;  // never drawn; at least one id must remain

  // Throws std::invalid_argument naming the option and its limits.
  void validate() const;
};

class Sampler {
 public:
  explicit Sampler(SamplerConfig config);

  int64_t vocab_size() const { return config_.vocab_size; }

  // Reads the ids of a prompt, for all rules that look at the text.
  void observe(const int32_t* ids, int64_t count);

  // The next draw takes one of these ids.
  void restrict_next(std::span<const int32_t> ids);

  // Draws an id from logits(V), observes it and returns it. Of equal logits the smaller id wins. Where the rules leave
  // no id, they do not count. Throws std::invalid_argument if a logit is NaN or +infinity.
  int32_t sample(const float* logits);

  // The distribution that sample() draws from, as probabilities(V).
  void probabilities(double* out, const float* logits);

 private:
  bool finds_repetitions() const { return config_.no_repeat_ngram_size > 0 || config_.dry_multiplier > 0; }
  void see(int32_t id);
  void take(const float* logits);
  void apply_rules();
  // Finds the candidates and their weights. Returns the sum of the weights.
  double weigh(const float* logits);
  void choose_candidates(int64_t kept);

  SamplerConfig config_;
  std::vector<char> banned_, seen_, breaks_;  // by id
  int64_t banned_count_ = 0;
  std::vector<int32_t> seen_ids_, drawn_ids_;
  std::vector<int32_t> drawn_;   // how often, by id; empty without a penalty
  std::vector<uint64_t> dried_;  // the round in which DRY last penalised an id; empty without DRY
  std::vector<int32_t> text_;    // where breakers of several ids look for their last ones
  int64_t since_breaker_ = 0;
  Repetitions repetitions_;
  std::vector<int32_t> next_;  // what the next draw takes one of; empty: any
  std::vector<float> logits_;  // after the rules
  std::vector<int32_t> candidates_;
  std::vector<double> weights_;
  uint64_t draws_ = 0, round_ = 0;
};

}  // namespace soma
