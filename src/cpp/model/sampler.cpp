// Sampling. Candidates are cut by top-k, then by top-p (Holtzman et al. 2020). One uniform number picks among them.
#include "model/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/random.h"

namespace soma {

void SamplerConfig::validate() const {
  check(vocab_size >= 1, "vocab_size must be positive, got ", vocab_size);
  check(std::isfinite(temperature) && temperature >= 0, "temperature must be a finite number >= 0, got ", temperature);
  check(top_k >= 0, "top_k must be >= 0 (0 turns it off), got ", top_k);
  check(top_p > 0 && top_p <= 1, "top_p must be in (0, 1], got ", top_p);
  const auto penalty = static_cast<float>(repetition_penalty);  // the divisor of logits
  check(std::isfinite(penalty) && penalty > 0, "repetition_penalty must be a finite single-precision number > 0, got ",
        repetition_penalty);
}

Sampler::Sampler(const SamplerConfig& config, const int32_t* banned, int64_t banned_count) : config_(config) {
  config_.validate();
  const auto v = static_cast<std::size_t>(config_.vocab_size);
  banned_.assign(v, 0);
  seen_.assign(v, 0);
  for (int64_t i = 0; i < banned_count; ++i) {
    check(banned[i] >= 0 && banned[i] < config_.vocab_size, "banned_ids must be from 0 to ", config_.vocab_size - 1,
          ", got ", banned[i]);
    banned_[static_cast<std::size_t>(banned[i])] = 1;
  }
  banned_count_ = std::count(banned_.begin(), banned_.end(), 1);
  check(banned_count_ < config_.vocab_size, "every id is banned, so none can be sampled");
  candidates_.reserve(v);
  weights_.reserve(v);
}

void Sampler::observe(const int32_t* ids, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    check(ids[i] >= 0 && ids[i] < config_.vocab_size, "ids must be from 0 to ", config_.vocab_size - 1, ", got ",
          ids[i]);
    see(ids[i]);
  }
}

void Sampler::see(int32_t id) {
  if (seen_[static_cast<std::size_t>(id)]) return;
  seen_[static_cast<std::size_t>(id)] = 1;
  seen_ids_.push_back(id);
}

bool Sampler::better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Finds the `kept` best ids that are not banned, in no order. Few logits exceed the worst candidate so far, so runs of
// 16 logits without one are skipped at the speed of reading.
void Sampler::choose_candidates(int64_t kept) {
  constexpr int64_t kRun = 16;
  const auto room = static_cast<std::size_t>(kept), most = 2 * room + kRun;
  const auto v = static_cast<int64_t>(logits_.size());
  float least = -INFINITY;
  bool full = false;  // whether `kept` candidates are at least as good as `least`
  candidates_.clear();
  for (int64_t run = 0; run < v; run += kRun) {
    const int64_t end = std::min(v, run + kRun);
    if (full) {
      int above = 0;
      for (int64_t i = run; i < end; ++i) above |= static_cast<int>(logits_[static_cast<std::size_t>(i)] > least);
      if (above == 0) continue;
    }
    for (int64_t i = run; i < end; ++i) {
      const float logit = logits_[static_cast<std::size_t>(i)];
      // Of equal logits the first id wins.
      if ((full && !(logit > least)) || banned_[static_cast<std::size_t>(i)]) continue;
      candidates_.push_back({logit, static_cast<int32_t>(i)});
    }
    if (candidates_.size() >= most) {
      const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(room);
      std::nth_element(candidates_.begin(), last - 1, candidates_.end(), better);
      candidates_.resize(room);
      least = candidates_.back().logit;
      full = true;
    }
  }
  if (candidates_.size() > room) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(room), candidates_.end(),
                     better);
    candidates_.resize(room);
  }
}

int32_t Sampler::sample(const float* logits) {
  const auto penalty = static_cast<float>(config_.repetition_penalty);
  logits_.assign(logits, logits + config_.vocab_size);
  int broken = 0;
  for (std::size_t i = 0; i < logits_.size(); ++i) {
    broken |= static_cast<int>(!(logits_[i] < INFINITY)) & static_cast<int>(banned_[i] == 0);
  }
  check(broken == 0, "a logit is not finite: the model's weights are broken or were trained to divergence");
  for (const int32_t id : seen_ids_) {
    float& logit = logits_[static_cast<std::size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }

  const int64_t allowed = config_.vocab_size - banned_count_;
  const int64_t top_k = config_.temperature == 0 ? 1 : config_.top_k > 0 ? config_.top_k : allowed;
  const int64_t kept = std::min(top_k, allowed);
  choose_candidates(kept);
  int32_t chosen = 0;
  if (config_.temperature == 0) {
    chosen = candidates_[0].id;
  } else {
    // Sorted for top-p, and so that the draw does not depend on the search for candidates.
    if (config_.top_p < 1 || kept < allowed) std::sort(candidates_.begin(), candidates_.end(), better);
    const float top = std::min_element(candidates_.begin(), candidates_.end(), better)->logit;
    weights_.clear();
    double total = 0;
    for (const Candidate& candidate : candidates_) {
      weights_.push_back(std::exp((static_cast<double>(candidate.logit) - top) / config_.temperature));
      total += weights_.back();
    }
    if (config_.top_p < 1) {
      double reached = 0;
      std::size_t count = 0;
      while (count < weights_.size() && reached < config_.top_p * total) reached += weights_[count++];
      weights_.resize(std::max<std::size_t>(count, 1));
      total = reached;
    }
    uint32_t words[4];
    Philox{config_.seed, 0x5A4D504CULL}.words(draws_++, words);
    const double uniform = ((static_cast<uint64_t>(words[0]) << 21) ^ (words[1] >> 11)) * (1.0 / 9007199254740992.0);
    double remaining = uniform * total;
    std::size_t pick = 0;
    while (pick + 1 < weights_.size() && remaining >= weights_[pick]) remaining -= weights_[pick++];
    chosen = candidates_[pick].id;
  }
  see(chosen);
  return chosen;
}

}  // namespace soma
