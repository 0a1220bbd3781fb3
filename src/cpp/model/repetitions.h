// Finds what the end of a growing text repeats.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace soma {

// The suffix automaton of all tokens so far (Blumer et al., "The smallest automaton recognizing the subwords of a
// text", 1985), built online: n tokens take O(n) time and memory in all. A state is a set of parts of the text that end
// at the same places.
class Repetitions {
 public:
  void add(int32_t token);

  // Calls f(token, length) for each token that followed the last `length` tokens before, where these are the longest
  // such end of the text and at least `least`. A token may come again with a smaller length.
  template <typename F>
  void for_each_follower(int64_t least, F&& f) const {
    for (int32_t s = states_[last_].link; s >= 0 && states_[s].length >= least; s = states_[s].link) {
      for (int32_t e = states_[s].first_edge; e >= 0; e = edges_[e].next) f(edges_[e].token, states_[s].length);
    }
  }

 private:
  struct State {
    int64_t length;      // of its longest part
    int32_t link;        // the state of the longest end of this part that also ends elsewhere; -1 for the empty part
    int32_t first_edge;  // to a part that is one token longer; -1: none
  };
  struct Edge {
    int32_t token, target, next;  // `next` of the same state; -1: none
  };

  static uint64_t key(int32_t state, int32_t token) {
    return static_cast<uint64_t>(state) << 32 | static_cast<uint32_t>(token);
  }
  void add_edge(int32_t state, int32_t token, int32_t target);

  std::vector<State> states_{{0, -1, -1}};
  std::vector<Edge> edges_;
  std::unordered_map<uint64_t, int32_t> edge_of_;  // by state and token
  int32_t last_ = 0;                               // of the whole text
};

}  // namespace soma
