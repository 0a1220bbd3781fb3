// Draws tokens for rows of a decoder and appends them: several steps in one call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "model/sampler.h"
#include "model/token_score.h"

namespace soma {

// A row that grows by at most `left` tokens, which `sampler` draws from its logits. With top >= 0, each token has a
// score with that many of the likeliest.
struct Growth {
  int64_t row;
  Sampler* sampler;
  int64_t left;
  int64_t top = -1;
  std::vector<int32_t> tokens = {};
  std::vector<TokenScore> scores = {};
  std::string error = {};  // why no further token could be drawn
};

// Takes at most `steps` steps, and fewer if these cost long: a caller has to hear of others that wait. In a step each
// row draws a token and appends it. A row leaves with a token of `ends`, its last one, one that does not fit into the
// context, or an error. It does not append that token.
void grow(Decoder& decoder, std::vector<Growth>& rows, const std::vector<int32_t>& ends, int64_t steps);

}  // namespace soma
