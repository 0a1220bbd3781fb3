// The eight tile registers of AMX: one function for each instruction that we use. They are assembly, because GCC 12's
// intrinsics hide from the compiler most of the memory that the instructions read. The compiler may then drop or move
// stores before them. With SOMA_EMULATE_AMX tiles are memory: see amx_emulation.h.

constexpr int kTileRows = 16, kTileBytes = 64;  // of every tile: 16 x 16 floats or pairs of bfloat16

// What ldtilecfg reads.
struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "the layout is the instruction's");

// All eight tiles, each of full size.
alignas(64) constexpr TileConfig kWholeTiles = {
    1,
    0,
    {},
    {kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes},
    {kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows}};

#ifdef SOMA_EMULATE_AMX
#include "kernels/amx_emulation.h"
#else

inline void tile_configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
inline void tile_release() { __asm__ volatile("tilerelease" ::: "memory"); }

// `stride` is the distance between rows in bytes.
template <int kTile>
inline void tile_load(const void* base, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void tile_store(void* base, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// C += A B over pairs of bfloat16. Row i of A holds the pairs of C's row i. Row u of B holds pair u of each column.
template <int kC, int kA, int kB>
inline void tile_dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

#endif
