// AMX tiles in memory, for machines without AMX: the functions of amx_tiles.h as Intel's manual defines the
// instructions. To find mistakes it is stricter: a thread may not configure or release tiles twice. Where real tiles
// fault, it ends the process with a message. Slow; for tests alone.

struct TileState {
  bool configured = false;
  int rows[8], bytes_per_row[8];
  alignas(64) float data[8][kTileRows][kTileBytes / 4];
};
thread_local TileState tiles;

inline void expect_tiles(bool condition, const char* message) {
  if (condition) return;
  int64_t length = 0;
  while (message[length] != '\0') ++length;
  if (write(2, message, static_cast<size_t>(length)) != length) __builtin_trap();
  __builtin_abort();
}

inline TileState& configured_tiles() {
  expect_tiles(tiles.configured, "AMX emulation: a tile is used by a thread that has not configured its tiles\n");
  return tiles;
}

inline void tile_configure(const TileConfig& config) {
  expect_tiles(!tiles.configured, "AMX emulation: a thread configures its tiles twice without releasing them\n");
  bool good = config.palette == 1 && config.start_row == 0;
  for (const uint8_t byte : config.reserved) good = good && byte == 0;
  for (int t = 0; t < 16; ++t) {
    const int rows = config.rows[t], bytes = config.bytes_per_row[t];
    good =
        good && (t < 8 ? rows <= kTileRows && bytes <= kTileBytes && (rows == 0) == (bytes == 0) : rows + bytes == 0);
  }
  expect_tiles(good, "AMX emulation: ldtilecfg would refuse this configuration\n");
  tiles = {};
  for (int t = 0; t < 8; ++t) {
    tiles.rows[t] = config.rows[t];
    tiles.bytes_per_row[t] = config.bytes_per_row[t];
  }
  tiles.configured = true;
}

inline void tile_release() { configured_tiles().configured = false; }

template <int kTile>
inline void tile_load(const void* base, int64_t stride) {
  static_assert(kTile >= 0 && kTile < 8);
  TileState& t = configured_tiles();
  for (int r = 0; r < t.rows[kTile]; ++r) {
    __builtin_memcpy(t.data[kTile][r], static_cast<const char*>(base) + r * stride,
                     static_cast<size_t>(t.bytes_per_row[kTile]));
  }
}

template <int kTile>
inline void tile_store(void* base, int64_t stride) {
  static_assert(kTile >= 0 && kTile < 8);
  const TileState& t = configured_tiles();
  for (int r = 0; r < t.rows[kTile]; ++r) {
    __builtin_memcpy(static_cast<char*>(base) + r * stride, t.data[kTile][r],
                     static_cast<size_t>(t.bytes_per_row[kTile]));
  }
}

template <int kTile>
inline void tile_zero() {
  static_assert(kTile >= 0 && kTile < 8);
  __builtin_memset(configured_tiles().data[kTile], 0, sizeof(tiles.data[kTile]));
}

// Even and odd elements of the pairs have sums of their own over the whole depth of a tile, by fused multiply-add. Both
// sums are added to each other and to C. Denormals count as zero, whatever MXCSR says.
template <int kC, int kA, int kB>
inline void tile_dot() {
  static_assert(kC >= 0 && kC < 8 && kA >= 0 && kA < 8 && kB >= 0 && kB < 8);
  static_assert(kC != kA && kC != kB && kA != kB, "three different tiles, or the instruction is undefined");
  TileState& t = configured_tiles();
  const int rows = t.rows[kC], depth = t.rows[kB], bytes = t.bytes_per_row[kC];
  expect_tiles(rows > 0 && depth > 0 && t.rows[kA] == rows && t.bytes_per_row[kA] == 4 * depth &&
                   t.bytes_per_row[kB] == bytes && bytes % 4 == 0,
               "AMX emulation: shapes of tiles do not fit each other\n");
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // no exceptions, round to nearest even, denormals are zero, flush to zero
  __asm__ volatile("" ::: "memory");
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < bytes / 4; j += kWidth) {
      Vec even = set1(0.0f), odd = set1(0.0f);
      for (int u = 0; u < depth; ++u) {
        const Vec a = set1(t.data[kA][i][u]), b = load(&t.data[kB][u][j]);
        even = fma(lower_of_pairs(a), lower_of_pairs(b), even);
        odd = fma(upper_of_pairs(a), upper_of_pairs(b), odd);
      }
      store(&t.data[kC][i][j], add(load(&t.data[kC][i][j]), add(even, odd)));
    }
  }
  __asm__ volatile("" ::: "memory");
  _mm_setcsr(before);
}
