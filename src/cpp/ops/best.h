// The best of a row of logits.
#pragma once

#include <cstdint>

namespace soma {

// Of equal logits the smaller id is better.
inline bool better(const float* x, int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); }

// The ids that find_best has room for, of n logits.
int64_t room_for_best(int64_t count, int64_t n);

// ids = the `count` best of the row x of n logits, in no order. Takes only logits above `least`, or all where that is
// NaN. Returns the end of what it found. `ids` has room_for_best(count, n) places, and x no NaN.
int32_t* find_best(int32_t* ids, int64_t count, const float* x, int64_t n, float least);

}  // namespace soma
