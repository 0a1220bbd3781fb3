// Each merge visits only the places of its pair. It sums its changes by neighbour first, so that it reads the table of
// pairs once per neighbour and not once per place.
#include "tokenizer/bpe_train.h"

#include <algorithm>
#include <stdexcept>

#include "base/check.h"
#include "base/interrupt.h"

namespace soma {
namespace {
constexpr uint32_t kEnd = 0xFFFFFFFFu;
constexpr uint32_t kInside = 0xFFFFFFFEu;
constexpr uint64_t kFloorFraction = 64;  // rarer pairs than 1/64 of the most frequent are not indexed yet
constexpr uint32_t kNotKnown = 0xFFFFFFFFu;
}  // namespace

BpeTrainer::BpeTrainer(std::vector<CountedChunk> chunks, uint64_t min_frequency, std::vector<std::string> reserved)
    : min_frequency_(min_frequency), reserved_(std::move(reserved)) {
  check(min_frequency >= 1, "min_frequency must be at least 1, got ", min_frequency);
  for (int byte = 0; byte < 256; ++byte) tokens_.emplace_back(1, static_cast<char>(byte));
  lengths_.assign(256, 1);
  std::erase_if(chunks, [](const CountedChunk& chunk) { return chunk.bytes.size() < 2; });
  std::sort(chunks.begin(), chunks.end(),
            [](const CountedChunk& a, const CountedChunk& b) { return a.count > b.count; });
  size_t cells = 1;
  for (const CountedChunk& chunk : chunks) cells += chunk.bytes.size() + 1;
  if (cells >= kInside) throw std::length_error("the distinct chunks of the texts have more than 2^32 bytes");
  cells_.reserve(cells);
  cells_.push_back(kEnd);
  for (const CountedChunk& chunk : chunks) {
    if (stretches_.empty() || stretches_.back().count != chunk.count) {
      stretches_.push_back({static_cast<uint32_t>(cells_.size()), chunk.count});
    }
    for (const char byte : chunk.bytes) cells_.push_back(static_cast<unsigned char>(byte));
    cells_.push_back(kEnd);
  }
  stretches_.push_back({static_cast<uint32_t>(cells_.size()), 0});
  floor_ = min_frequency_ + 1;  // no pair is indexed yet
}

size_t BpeTrainer::merge(size_t most) {
  for (size_t done = 0; done < most;) {
    check_interrupt();
    if (heap_.empty()) {
      if (floor_ <= min_frequency_) return done;
      index();
      continue;
    }
    std::pop_heap(heap_.begin(), heap_.end());
    PairCount& top = heap_.back();
    const PairEntry entry = *pairs_.find(top.pair);
    if (entry.count < floor_ || is_reserved(top.pair)) {
      heap_.pop_back();
    } else if (entry.count < top.count) {
      top.count = entry.count;
      std::push_heap(heap_.begin(), heap_.end());
    } else {
      heap_.pop_back();
      apply(entry);
      ++done;
    }
  }
  return most;
}

// Calls visit(pair, place, count of the chunk) for every pair of neighbours in every chunk, by ascending place.
template <typename Visit>
void BpeTrainer::for_each_pair(Visit&& visit) const {
  for (size_t s = 0; s + 1 < stretches_.size(); ++s) {
    for (uint32_t place = stretches_[s].begin; place < stretches_[s + 1].begin; ++place) {
      for (uint32_t left = cells_[place]; left != kEnd;) {
        const uint32_t next = place + lengths_[left];
        const uint32_t right = cells_[next];
        if (right != kEnd) visit(make_pair_key(left, right), place, stretches_[s].count);
        place = next;
        left = right;
      }
    }
  }
}

// Counts all pairs anew and keeps the pairs with a count of at least the new floor.
void BpeTrainer::index() {
  PairTable all;
  for_each_pair([&](uint64_t pair, uint32_t, uint64_t count) {
    PairEntry& entry = all.insert(pair);
    entry.count += count;
    ++entry.places;
  });
  uint64_t highest = 0;
  all.for_each([&](const PairEntry& entry) {
    if (!is_reserved(entry.pair)) highest = std::max(highest, entry.count);
  });
  floor_ = std::max(min_frequency_, highest / kFloorFraction);
  pairs_ = PairTable();
  size_t postings = 0;
  all.for_each([&](const PairEntry& entry) {
    if (entry.count < floor_) return;
    PairEntry& kept = pairs_.insert(entry.pair);
    kept = entry;
    kept.begin = static_cast<uint32_t>(postings);
    kept.places = 0;
    postings += entry.places;
    heap_.push_back({entry.count, entry.pair});
  });
  std::make_heap(heap_.begin(), heap_.end());
  postings_.resize(postings);
  for_each_pair([&](uint64_t pair, uint32_t place, uint64_t) {
    PairEntry* entry = pairs_.find(pair);
    if (entry != nullptr) postings_[entry->begin + entry->places++] = place;
  });
}

// Merges the two tokens of a pair at all places of the pair, from left to right. A place that no longer holds the pair
// is skipped.
void BpeTrainer::apply(const PairEntry& entry) {
  const auto left = static_cast<uint32_t>(entry.pair >> 32), right = static_cast<uint32_t>(entry.pair);
  const auto merged = static_cast<uint32_t>(tokens_.size());
  const uint32_t left_length = lengths_[left], right_length = lengths_[right];
  tokens_.push_back(tokens_[left] + tokens_[right]);
  lengths_.push_back(left_length + right_length);
  merges_.emplace_back(left, right);
  before_.by_id.resize(tokens_.size());
  after_.by_id.resize(tokens_.size());

  uint64_t twice = 0;  // count of the new token next to itself
  std::vector<uint32_t> twice_places;
  size_t stretch = 0;
  for (uint32_t i = entry.begin; i < entry.begin + entry.places; ++i) {
    const uint32_t place = postings_[i];
    const uint32_t middle = place + left_length;
    if (cells_[place] != left || cells_[middle] != right) continue;
    const uint32_t end = middle + right_length;
    if (place >= stretches_[stretch + 1].begin) {
      const auto after = std::upper_bound(stretches_.begin() + static_cast<ptrdiff_t>(stretch), stretches_.end(), place,
                                          [](uint32_t p, const Stretch& s) { return p < s.begin; });
      stretch = static_cast<size_t>(after - stretches_.begin()) - 1;
    }
    const uint64_t count = stretches_[stretch].count;
    cells_[middle] = kInside;
    cells_[place] = cells_[end - 1] = merged;
    const uint32_t before = cells_[place - 1], after = cells_[end];
    if (before == merged) {
      after_.take_back(count);
      twice += count;
      twice_places.push_back(place - lengths_[merged]);
    } else if (before != kEnd) {
      before_.add(before, place - lengths_[before], count);
    }
    if (after != kEnd) after_.add(after, place, count);
  }
  pairs_.find(entry.pair)->count = 0;
  settle(before_, left, merged, true);
  settle(after_, right, merged, false);
  if (twice == 0) return;
  if (left != right) take(right, left, twice);
  if (uint32_t* postings = create(merged, merged, twice, static_cast<uint32_t>(twice_places.size()))) {
    std::copy(twice_places.begin(), twice_places.end(), postings);
  }
}

void BpeTrainer::Side::add(uint32_t id, uint32_t place, uint64_t count) {
  Neighbour& neighbour = by_id[id];
  if (neighbour.places == 0) ids.push_back(id);
  neighbour.count += count;
  ++neighbour.places;
  places.emplace_back(id, place);
}

void BpeTrainer::Side::take_back(uint64_t count) {
  Neighbour& neighbour = by_id[places.back().first];
  neighbour.count -= count;
  --neighbour.places;
  places.pop_back();
}

// Moves the counts of one side from pairs with `old` to pairs with `merged`. `before`: the neighbours are on the left.
void BpeTrainer::settle(Side& side, uint32_t old, uint32_t merged, bool before) {
  for (const uint32_t id : side.ids) {
    Neighbour& neighbour = side.by_id[id];
    if (neighbour.places == 0) continue;  // taken back, or listed twice and done
    before ? take(id, old, neighbour.count) : take(old, id, neighbour.count);
    const uint32_t* postings = before ? create(id, merged, neighbour.count, neighbour.places)
                                      : create(merged, id, neighbour.count, neighbour.places);
    neighbour = {0, 0, postings == nullptr ? kNotKnown : static_cast<uint32_t>(postings - postings_.data())};
  }
  for (const auto& [id, place] : side.places) {
    uint32_t& next = side.by_id[id].next_posting;
    if (next != kNotKnown) postings_[next++] = place;
  }
  side.ids.clear();
  side.places.clear();
}

void BpeTrainer::take(uint32_t left, uint32_t right, uint64_t count) {
  PairEntry* entry = pairs_.find(make_pair_key(left, right));
  if (entry != nullptr && entry->count != 0) entry->count -= count;
}

// Indexes a new pair and returns the room for its places. Returns null for a pair below the floor.
uint32_t* BpeTrainer::create(uint32_t left, uint32_t right, uint64_t count, uint32_t places) {
  if (count < floor_) return nullptr;
  if (postings_.size() + places > kEnd) throw std::length_error("the texts have more than 2^32 places of pairs");
  PairEntry& entry = pairs_.insert(make_pair_key(left, right));
  entry.count = count;
  entry.begin = static_cast<uint32_t>(postings_.size());
  entry.places = places;
  heap_.push_back({count, entry.pair});
  std::push_heap(heap_.begin(), heap_.end());
  postings_.resize(postings_.size() + places);
  return postings_.data() + entry.begin;
}

bool BpeTrainer::is_reserved(uint64_t pair) const {
  const std::string& left = tokens_[pair >> 32];
  const std::string& right = tokens_[static_cast<uint32_t>(pair)];
  return std::any_of(reserved_.begin(), reserved_.end(), [&](const std::string& token) {
    return token.size() == left.size() + right.size() && token.starts_with(left) && token.ends_with(right);
  });
}

}  // namespace soma
