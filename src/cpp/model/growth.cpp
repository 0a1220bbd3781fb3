// The loop of generation: draw, look whether a row ends, append.
#include "model/growth.h"

#include <algorithm>
#include <exception>
#include <span>

#include "base/parallel.h"

namespace soma {
namespace {

constexpr int64_t kWork = int64_t{1} << 26;    // multiply-adds of a call: about a millisecond
constexpr int64_t kShared = int64_t{1} << 13;  // logits to draw from that are worth several threads

void draw(const Decoder& decoder, Growth& g) {
  const float* const logits = decoder.logits() + g.row * decoder.vocab_size();
  try {
    g.tokens.push_back(g.sampler->sample(logits));
    if (g.top >= 0) {
      const std::span row(logits, static_cast<std::size_t>(decoder.vocab_size()));
      g.scores.push_back(score_token(row, g.tokens.back(), g.top));
    }
  } catch (const std::exception& error) {
    g.error = error.what();
  }
}

}  // namespace

void grow(Decoder& decoder, std::vector<Growth>& rows, const std::vector<int32_t>& ends, int64_t steps) {
  std::vector<Growth*> live;
  for (Growth& g : rows) live.push_back(&g);
  std::vector<int32_t> places, ids;
  for (int64_t work = 0; steps > 0 && work < kWork && !live.empty(); --steps) {
    const auto count = static_cast<int64_t>(live.size());
    const auto draw_one = [&](int64_t i) { draw(decoder, *live[static_cast<std::size_t>(i)]); };
    if (count * decoder.vocab_size() >= kShared) {
      parallel_for(count, draw_one);
    } else {
      for (int64_t i = 0; i < count; ++i) draw_one(i);
    }
    const auto leaves = [&](const Growth* g) {
      return !g->error.empty() || static_cast<int64_t>(g->tokens.size()) == g->left ||
             std::find(ends.begin(), ends.end(), g->tokens.back()) != ends.end() ||
             decoder.length(g->row) == decoder.max_length();
    };
    live.erase(std::remove_if(live.begin(), live.end(), leaves), live.end());
    places.clear();
    ids.clear();
    for (const Growth* g : live) {
      places.push_back(static_cast<int32_t>(g->row));
      ids.push_back(g->tokens.back());
    }
    decoder.step(places.data(), ids.data(), static_cast<int64_t>(live.size()));
    work += static_cast<int64_t>(live.size()) * decoder.multiply_adds();
  }
}

}  // namespace soma
