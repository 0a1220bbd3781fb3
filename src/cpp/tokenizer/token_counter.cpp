// Each task counts a stretch of the corpus into a table of its own; the tables are merged when somebody asks.
#include "tokenizer/token_counter.h"

#include <algorithm>
#include <exception>

#include "base/interrupt.h"
#include "base/parallel.h"
#include "tokenizer/split.h"

namespace soma {
namespace {
constexpr size_t kPieceBytes = size_t{1} << 16;  // small beside a round, so that tasks get equal shares
constexpr size_t kRoundBytes = size_t{1} << 20;  // for one task
}  // namespace

void TokenCounter::Shard::add(std::string_view token, uint64_t position) {
  const uint32_t number = tokens.insert(token);
  if (number == counts.size()) {
    counts.push_back(0);
    firsts.push_back(position);
  }
  ++counts[number];
}

void TokenCounter::add(const std::vector<std::string_view>& texts) {
  if (kind_ == TokenizerKind::kByte) {  // all bytes are in the vocabulary anyway
    for (const std::string_view text : texts) bytes_seen_ += text.size();
    return;
  }
  struct Piece {
    std::string_view text;
    uint64_t position;
  };
  std::vector<Piece> pieces;
  uint64_t bytes = 0;
  for (const std::string_view text : texts) {
    for (const std::string_view piece : cut_at_word_ends(text, kPieceBytes)) {
      pieces.push_back({piece, bytes_seen_ + bytes});
      bytes += piece.size();
    }
  }
  // Short rounds between which a caller may interrupt; in each, task t takes the t-th stretch of the pieces.
  const auto tasks = static_cast<size_t>(num_threads());
  if (shards_.size() < tasks) shards_.resize(tasks);
  for (size_t begin = 0; begin < pieces.size();) {
    size_t end = begin;
    uint64_t round_bytes = 0;
    for (; end < pieces.size() && round_bytes < tasks * kRoundBytes; ++end) round_bytes += pieces[end].text.size();
    std::vector<size_t> starts = {begin};
    uint64_t passed = 0;
    for (size_t i = begin; i < end; ++i) {
      if (passed * tasks >= starts.size() * round_bytes) starts.push_back(i);
      passed += pieces[i].text.size();
    }
    starts.push_back(end);
    std::vector<std::exception_ptr> failures(starts.size() - 1);
    parallel_for(static_cast<int64_t>(failures.size()), [&](int64_t t) {
      try {
        Shard& shard = shards_[t];
        for (size_t i = starts[t]; i < starts[t + 1]; ++i) {
          const auto [text, position] = pieces[i];
          if (kind_ == TokenizerKind::kWord) {
            for_each_word(text, [&shard, position = position](std::string_view word, size_t first, size_t) {
              shard.add(word, position + first);
            });
          } else {
            for (size_t at = 0; at < text.size();) {
              const size_t length = utf8_length(static_cast<unsigned char>(text[at]));
              shard.add(text.substr(at, length), position + at);
              at += length;
            }
          }
        }
      } catch (...) {
        failures[t] = std::current_exception();
      }
    });
    for (const std::exception_ptr& failure : failures) {
      if (failure) std::rethrow_exception(failure);
    }
    begin = end;
    check_interrupt();
  }
  bytes_seen_ += bytes;
}

uint64_t TokenCounter::total() const {
  if (kind_ == TokenizerKind::kByte) return bytes_seen_;
  uint64_t total = 0;
  for (const Shard& shard : shards_) {
    for (const uint64_t count : shard.counts) total += count;
  }
  return total;
}

std::vector<TokenCount> TokenCounter::ranked() const {
  StringTable merged;
  std::vector<TokenCount> ranked;
  for (const Shard& shard : shards_) {
    for (uint32_t i = 0; i < shard.tokens.size(); ++i) {
      const uint32_t number = merged.insert(shard.tokens.key(i));
      if (number == ranked.size()) ranked.push_back({std::string(shard.tokens.key(i)), 0, shard.firsts[i]});
      ranked[number].count += shard.counts[i];
      ranked[number].first = std::min(ranked[number].first, shard.firsts[i]);
    }
  }
  std::sort(ranked.begin(), ranked.end(), [](const TokenCount& a, const TokenCount& b) {
    return a.count != b.count ? a.count > b.count : a.first < b.first;
  });
  return ranked;
}

}  // namespace soma
