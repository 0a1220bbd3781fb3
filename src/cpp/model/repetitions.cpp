// Builds the suffix automaton.
#include "model/repetitions.h"

namespace soma {

void Repetitions::add_edge(int32_t state, int32_t token, int32_t target) {
  const auto edge = static_cast<int32_t>(edges_.size());
  edges_.push_back({token, target, states_[state].first_edge});
  states_[state].first_edge = edge;
  edge_of_[key(state, token)] = edge;
}

void Repetitions::add(int32_t token) {
  const auto whole = static_cast<int32_t>(states_.size());
  states_.push_back({states_[last_].length + 1, 0, -1});
  int32_t s = last_;
  last_ = whole;
  auto found = edge_of_.end();
  for (; s >= 0 && (found = edge_of_.find(key(s, token))) == edge_of_.end(); s = states_[s].link) {
    add_edge(s, token, whole);
  }
  if (s < 0) return;  // the token is new: only the empty end occurs elsewhere

  const int32_t longer = edges_[found->second].target;
  if (states_[longer].length == states_[s].length + 1) {
    states_[whole].link = longer;
    return;
  }
  // `longer` has parts that do not end here. Its shorter parts, which do, get a state of their own.
  const auto shorter = static_cast<int32_t>(states_.size());
  states_.push_back({states_[s].length + 1, states_[longer].link, -1});
  for (int32_t e = states_[longer].first_edge; e >= 0; e = edges_[e].next) {
    add_edge(shorter, edges_[e].token, edges_[e].target);
  }
  for (; s >= 0; s = states_[s].link) {
    int32_t& target = edges_[edge_of_.at(key(s, token))].target;
    if (target != longer) break;
    target = shorter;
  }
  states_[longer].link = states_[whole].link = shorter;
}

}  // namespace soma
