// The last, partial vector of a row. load_n and store_n touch only the n lanes that exist.

inline Vec load_tail(const float* p, int64_t n) { return n >= kWidth ? load(p) : load_n(p, n > 0 ? n : 0); }
inline void store_tail(float* p, Vec a, int64_t n) {
  if (n >= kWidth) {
    store(p, a);
  } else if (n > 0) {
    store_n(p, a, n);
  }
}
