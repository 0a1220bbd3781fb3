// The log-probability of a token that was drawn, and of those that were likelier.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace soma {

struct TokenScore {
  double log_probability;                       // nats, of the softmax of the logits
  std::vector<std::pair<int32_t, double>> top;  // the most likely ids and their log-probabilities, best first
};

// Of equal logits the smaller id comes first, as the sampler takes them.
TokenScore score_token(std::span<const float> logits, int32_t id, int64_t top);

}  // namespace soma
