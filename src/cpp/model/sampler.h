// Draws the next token from logits with repetition penalty, temperature, top-k, top-p and a seeded generator.
#pragma once

#include <cstdint>
#include <vector>

namespace soma {

struct SamplerConfig {
  int64_t vocab_size;
  double temperature;         // 0: the most likely token
  int64_t top_k;              // 0: off
  double top_p;               // 1: off
  double repetition_penalty;  // 1: off
  uint64_t seed;

  // Throws std::invalid_argument naming the option and its limits.
  void validate() const;
};

class Sampler {
 public:
  // Banned ids are never drawn; at least one id must remain.
  Sampler(const SamplerConfig& config, const int32_t* banned, int64_t banned_count);

  int64_t vocab_size() const { return config_.vocab_size; }

  // Penalises an id from now on (Keskar et al. 2019, CTRL, section 4.1): a positive logit is divided by the penalty, a
  // negative one multiplied.
  void observe(const int32_t* ids, int64_t count);

  // Draws an id from logits(V), observes it and returns it. Of equal logits the smaller id wins. Throws
  // std::invalid_argument if a logit is NaN or +infinity.
  int32_t sample(const float* logits);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };

  static bool better(const Candidate& a, const Candidate& b);
  void see(int32_t id);
  void choose_candidates(int64_t kept);

  SamplerConfig config_;
  std::vector<char> banned_, seen_;
  int64_t banned_count_ = 0;
  std::vector<int32_t> seen_ids_;
  std::vector<float> logits_;  // penalised
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;
  uint64_t draws_ = 0;
};

}  // namespace soma
