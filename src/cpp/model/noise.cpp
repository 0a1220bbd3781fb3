// The keys of dropout, and the masks of tokens.
#include "model/noise.h"

#include <cmath>

#include "base/check.h"
#include "base/random.h"

namespace soma {
namespace {

constexpr uint64_t kTokens = ~uint64_t{0};  // in the place of a layer

}  // namespace

Noise::Noise(double dropout, double token_mask, const std::vector<uint64_t>& numbers, int64_t first_row)
    : dropout_(dropout), token_mask_(token_mask), first_row_(first_row) {
  check(dropout >= 0 && dropout < 1, "dropout must be at least 0 and below 1, got ", dropout);
  check(token_mask >= 0 && token_mask < 1, "token_mask must be at least 0 and below 1, got ", token_mask);
  for (const uint64_t number : numbers) key_ = mix_bits(key_ ^ mix_bits(number));
}

Dropout Noise::dropout(int64_t layer, DropoutSite site, int64_t first_row) const {
  const uint64_t of_layer = mix_bits(key_ ^ mix_bits(static_cast<uint64_t>(layer)));
  return {dropout_, mix_bits(of_layer + static_cast<uint64_t>(site)), first_row_ + first_row};
}

bool Noise::mask_tokens(int32_t* ids, int64_t count) const {
  if (token_mask_ == 0) return false;
  const uint64_t key = mix_bits(key_ ^ mix_bits(kTokens));
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = mix_bits(key + static_cast<uint64_t>(first_row_ + i)) >> 11;  // as many as a double has
    if (std::ldexp(static_cast<double>(bits), -53) < token_mask_) ids[i] = kMaskedToken;
  }
  return true;
}

}  // namespace soma
