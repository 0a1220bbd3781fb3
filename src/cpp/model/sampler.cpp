// Sampling: the rules, the search for the best candidates, and one uniform number that picks among them.
#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/random.h"
#include "ops/best.h"

namespace soma {
namespace {

void check_ids(const char* name, std::span<const int32_t> ids, int64_t vocab_size) {
  for (const int32_t id : ids) {
    check(id >= 0 && id < vocab_size, name, " must be from 0 to ", vocab_size - 1, ", got ", id);
  }
}

std::vector<char> marks_of(const std::vector<int32_t>& ids, int64_t vocab_size) {
  std::vector<char> marks(static_cast<std::size_t>(vocab_size), 0);
  for (const int32_t id : ids) marks[static_cast<std::size_t>(id)] = 1;
  return marks;
}

}  // namespace

void SamplerConfig::validate() const {
  check(vocab_size >= 1, "vocab_size must be positive, got ", vocab_size);
  check(std::isfinite(temperature) && temperature >= 0, "temperature must be a finite number >= 0, got ", temperature);
  check(top_k >= 0, "top_k must be >= 0 (0 turns it off), got ", top_k);
  check(top_p > 0 && top_p <= 1, "top_p must be in (0, 1], got ", top_p);
  check(min_p >= 0 && min_p <= 1, "min_p must be in [0, 1], got ", min_p);
  const auto penalty = static_cast<float>(repetition_penalty);  // the divisor of logits
  check(std::isfinite(penalty) && penalty > 0, "repetition_penalty must be a finite single-precision number > 0, got ",
        repetition_penalty);
  check(std::isfinite(presence_penalty), "presence_penalty must be finite, got ", presence_penalty);
  check(std::isfinite(frequency_penalty), "frequency_penalty must be finite, got ", frequency_penalty);
  check(no_repeat_ngram_size >= 0, "no_repeat_ngram_size must be >= 0 (0 turns it off), got ", no_repeat_ngram_size);
  check(std::isfinite(dry_multiplier) && dry_multiplier >= 0, "dry_multiplier must be a finite number >= 0, got ",
        dry_multiplier);
  check(std::isfinite(dry_base) && dry_base >= 1, "dry_base must be a finite number >= 1, got ", dry_base);
  check(dry_allowed_length >= 1, "dry_allowed_length must be >= 1, got ", dry_allowed_length);
  for (const auto& [id, bias] : logit_bias) {
    check_ids("ids of logit_bias", {&id, 1}, vocab_size);
    check(bias < INFINITY, "logit_bias must be finite or -infinity, got ", bias, " for id ", id);
  }
  check_ids("banned_ids", banned_ids, vocab_size);
  check_ids("dry_breakers", dry_breakers, vocab_size);
}

Sampler::Sampler(SamplerConfig config) : config_(std::move(config)) {
  config_.validate();
  const int64_t v = config_.vocab_size;
  banned_ = marks_of(config_.banned_ids, v);
  banned_count_ = std::count(banned_.begin(), banned_.end(), 1);
  check(banned_count_ < v, "every id is banned, so none can be sampled");
  seen_ = marks_of({}, v);
  const auto size = static_cast<std::size_t>(v);
  if (config_.presence_penalty != 0 || config_.frequency_penalty != 0) drawn_.assign(size, 0);
  if (config_.dry_multiplier > 0) {
    breaks_ = marks_of(config_.dry_breakers, v);
    dried_.assign(size, 0);
  }
  candidates_.reserve(size);
  weights_.reserve(size);
}

void Sampler::observe(const int32_t* ids, int64_t count) {
  check_ids("ids", {ids, static_cast<std::size_t>(count)}, config_.vocab_size);
  for (int64_t i = 0; i < count; ++i) see(ids[i]);
}

void Sampler::restrict_next(std::span<const int32_t> ids) {
  check_ids("ids", ids, config_.vocab_size);
  next_.assign(ids.begin(), ids.end());
}

void Sampler::see(int32_t id) {
  if (!seen_[static_cast<std::size_t>(id)]) {
    seen_[static_cast<std::size_t>(id)] = 1;
    seen_ids_.push_back(id);
  }
  if (finds_repetitions()) repetitions_.add(id);
  if (config_.dry_multiplier == 0) return;
  since_breaker_ = breaks_[static_cast<std::size_t>(id)] ? 0 : since_breaker_ + 1;
  if (config_.dry_breaker_sequences.empty()) return;
  text_.push_back(id);
  for (const auto& sequence : config_.dry_breaker_sequences) {
    if (sequence.size() <= text_.size() && std::equal(sequence.rbegin(), sequence.rend(), text_.rbegin())) {
      since_breaker_ = 0;
    }
  }
}

// Copies the logits. What may not be drawn gets -infinity.
void Sampler::take(const float* logits) {
  const auto v = static_cast<std::size_t>(config_.vocab_size);
  if (next_.empty()) {
    logits_.assign(logits, logits + v);
  } else {
    logits_.assign(v, -INFINITY);
    for (const int32_t id : next_) logits_[static_cast<std::size_t>(id)] = logits[id];
  }
  for (const int32_t id : config_.banned_ids) logits_[static_cast<std::size_t>(id)] = -INFINITY;
}

void Sampler::apply_rules() {
  ++round_;
  const auto logit = [this](int32_t id) -> float& { return logits_[static_cast<std::size_t>(id)]; };
  for (const auto& [id, bias] : config_.logit_bias) logit(id) += bias;
  const auto penalty = static_cast<float>(config_.repetition_penalty);
  constexpr float kMost = std::numeric_limits<float>::max();  // of several infinite logits none could be drawn
  for (const int32_t id : seen_ids_) {
    logit(id) = logit(id) > 0 ? std::min(logit(id) / penalty, kMost) : logit(id) * penalty;
  }
  for (const int32_t id : drawn_ids_) {
    const double times = drawn_[static_cast<std::size_t>(id)];
    logit(id) -= static_cast<float>(config_.presence_penalty + config_.frequency_penalty * times);
  }
  const int64_t allowed = config_.dry_allowed_length;
  if (config_.dry_multiplier > 0 && since_breaker_ >= allowed) {
    repetitions_.for_each_follower(allowed, [&](int32_t id, int64_t length) {
      uint64_t& dried = dried_[static_cast<std::size_t>(id)];
      if (dried == round_ || breaks_[static_cast<std::size_t>(id)]) return;  // its longest repetition came first
      dried = round_;
      const auto beyond = static_cast<double>(std::min(length, since_breaker_) - allowed);
      logit(id) -= static_cast<float>(std::min(config_.dry_multiplier * std::pow(config_.dry_base, beyond), 1e30));
    });
  }
  if (config_.no_repeat_ngram_size > 0) {
    repetitions_.for_each_follower(config_.no_repeat_ngram_size - 1,
                                   [&](int32_t id, int64_t) { logit(id) = -INFINITY; });
  }
}

// Finds the `kept` best ids that may be drawn, in no order.
void Sampler::choose_candidates(int64_t kept) {
  const auto v = static_cast<int64_t>(logits_.size());
  candidates_.resize(static_cast<std::size_t>(room_for_best(kept, v)));
  const int32_t* const end = find_best(candidates_.data(), kept, logits_.data(), v, -INFINITY);
  candidates_.resize(static_cast<std::size_t>(end - candidates_.data()));
}

double Sampler::weigh(const float* logits) {
  take(logits);
  int broken = 0;
  for (const float logit : logits_) broken |= static_cast<int>(!(logit < INFINITY));
  check(broken == 0, "a logit is not finite: the model's weights are broken or were trained to divergence");
  apply_rules();
  const int64_t allowed = config_.vocab_size - banned_count_;
  const int64_t top_k = config_.temperature == 0 ? 1 : config_.top_k > 0 ? config_.top_k : allowed;
  const int64_t kept = std::min(top_k, allowed);
  choose_candidates(kept);
  if (candidates_.empty()) {  // the rules leave nothing, so they do not count
    take(logits);
    choose_candidates(kept);
    check(!candidates_.empty(), "every logit that may be drawn is -infinity: the model's weights are broken");
  }
  weights_.clear();
  if (config_.temperature == 0) {
    weights_.push_back(1);
    return 1;
  }
  // Sorted for top-p, and so that the draw does not depend on the search for candidates.
  const auto better = [x = logits_.data()](int32_t a, int32_t b) { return soma::better(x, a, b); };
  if (config_.top_p < 1 || kept < allowed) std::sort(candidates_.begin(), candidates_.end(), better);
  const auto logit = [&](int32_t id) { return static_cast<double>(logits_[static_cast<std::size_t>(id)]); };
  const double top = logit(*std::min_element(candidates_.begin(), candidates_.end(), better));
  double total = 0;
  for (const int32_t id : candidates_) {
    weights_.push_back(std::exp((logit(id) - top) / config_.temperature));
    total += weights_.back();
  }
  if (config_.top_p < 1) {
    double reached = 0;
    std::size_t count = 0;
    while (count < weights_.size() && reached < config_.top_p * total) reached += weights_[count++];
    weights_.resize(std::max<std::size_t>(count, 1));
    candidates_.resize(weights_.size());
    total = reached;
  }
  if (config_.min_p > 0) {
    std::size_t count = 0;
    total = 0;
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i] < config_.min_p) continue;  // the highest weight is 1
      candidates_[count] = candidates_[i];
      total += weights_[count++] = weights_[i];
    }
    candidates_.resize(count);
    weights_.resize(count);
  }
  return total;
}

void Sampler::probabilities(double* out, const float* logits) {
  const double total = weigh(logits);
  std::fill(out, out + config_.vocab_size, 0.0);
  for (std::size_t i = 0; i < weights_.size(); ++i) out[candidates_[i]] = weights_[i] / total;
}

int32_t Sampler::sample(const float* logits) {
  const double total = weigh(logits);
  std::size_t pick = 0;
  if (config_.temperature > 0) {
    uint32_t words[4];
    Philox{config_.seed, 0x5A4D504CULL}.words(draws_, words);
    const double uniform = ((static_cast<uint64_t>(words[0]) << 21) ^ (words[1] >> 11)) * (1.0 / 9007199254740992.0);
    double remaining = uniform * total;
    while (pick + 1 < weights_.size() && remaining >= weights_[pick]) remaining -= weights_[pick++];
  }
  ++draws_;
  next_.clear();
  const int32_t chosen = candidates_[pick];
  if (!drawn_.empty() && drawn_[static_cast<std::size_t>(chosen)]++ == 0) drawn_ids_.push_back(chosen);
  see(chosen);
  return chosen;
}

}  // namespace soma
