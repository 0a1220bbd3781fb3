// What the kernels ask of the compiler by its own names.
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

#if defined(_MSC_VER) && !defined(__clang__)
#include <math.h>
#include <string.h>
#define __builtin_memcpy memcpy
#define __builtin_sqrtf sqrtf
#endif
