// Hints to the compiler: inlining, unrolling, prefetching.
#pragma once

#if defined(__clang__)
#define SOMA_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define SOMA_UNROLL _Pragma("GCC unroll 16")
#else
#define SOMA_UNROLL
#endif

#if defined(__GNUC__)
#define SOMA_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define SOMA_INLINE __forceinline
#else
#define SOMA_INLINE inline
#endif

// Prefetches a cache line into L2, not L1: L2 has more fetches under way than L1 has places for.
#if defined(__GNUC__)
#define SOMA_FETCH(pointer) __builtin_prefetch(pointer, 0, 2)
#else
#define SOMA_FETCH(pointer) ((void)(pointer))
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#include <math.h>
#include <string.h>
#define __builtin_memcpy memcpy
#define __builtin_sqrtf sqrtf
#endif
