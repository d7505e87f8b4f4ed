// Vectors of LANES floats, by the compiler's vector extensions: the same source for AVX-512, AVX2, SSE and NEON.
// Only what the extensions cannot say (reductions, compaction, minimum in one instruction) has an AVX-512 form beside
// the portable one. All arithmetic is IEEE single steps (the build forbids contraction), so results do not depend on
// the width.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__SSE__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
#define METHOD inline __attribute__((always_inline))
#define INLINE static METHOD

typedef float Float __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));

INLINE Float load(const float* p) {
  Float v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
INLINE Int load(const int32_t* p) {
  Int v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store(float* p, Float v) { std::memcpy(p, &v, sizeof v); }
INLINE void store(int32_t* p, Int v) { std::memcpy(p, &v, sizeof v); }
INLINE Float all(float v) { return v - Float{}; }
INLINE Int all(int32_t v) { return v - Int{}; }
INLINE Int iota() {
  Int v;
  for (int i = 0; i < LANES; i++) v[i] = i;
  return v;
}

// where a is NaN the result is b
template <class Vector>
INLINE Vector smaller(Vector a, Vector b) {
  return a < b ? a : b;
}
template <class Vector>
INLINE Vector larger(Vector a, Vector b) {
  return a > b ? a : b;
}
#if defined(__AVX512F__)
INLINE Float smaller(Float a, Float b) { return (Float)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE Float larger(Float a, Float b) { return (Float)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE float smallest_lane(Float a) { return _mm512_reduce_min_ps((__m512)a); }
INLINE float largest_lane(Float a) { return _mm512_reduce_max_ps((__m512)a); }
INLINE int32_t smallest_lane(Int a) { return _mm512_reduce_min_epi32((__m512i)a); }
INLINE int32_t largest_lane(Int a) { return _mm512_reduce_max_epi32((__m512i)a); }
INLINE uint32_t bits(Int mask) { return _mm512_movepi32_mask((__m512i)mask); }
INLINE uint32_t not_above(Float a, Float limit) { return _mm512_cmp_ps_mask((__m512)a, (__m512)limit, _CMP_LE_OQ); }
INLINE uint32_t below(Float a, Float limit) { return _mm512_cmp_ps_mask((__m512)a, (__m512)limit, _CMP_LT_OQ); }
// write the lanes that the bits name, one after the other; up to LANES elements behind them are overwritten
INLINE void compact(float* out, Float v, uint32_t which) {
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps((__mmask16)which, (__m512)v));
}
INLINE void compact(int32_t* out, Int v, uint32_t which) {
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32((__mmask16)which, (__m512i)v));
}
// the same for first, first + 1 and so on
INLINE void compact_lanes(int32_t* out, int32_t first, uint32_t which) { compact(out, iota() + first, which); }
#else
// the lanes behind the middle in front, and so on: log2(LANES) steps
template <int DISTANCE, class Vector>
INLINE Vector moved(Vector a) {
#if defined(__AVX__)
  constexpr int D = DISTANCE;
  return __builtin_shufflevector(a, a, 0 ^ D, 1 ^ D, 2 ^ D, 3 ^ D, 4 ^ D, 5 ^ D, 6 ^ D, 7 ^ D);
#else
  return __builtin_shufflevector(a, a, 0 ^ DISTANCE, 1 ^ DISTANCE, 2 ^ DISTANCE, 3 ^ DISTANCE);
#endif
}
template <class Vector>
INLINE auto smallest_lane(Vector a) {
  if (LANES > 4) a = smaller(moved<LANES / 2>(a), a);
  a = smaller(moved<2>(a), a);
  return smaller(moved<1>(a), a)[0];
}
template <class Vector>
INLINE auto largest_lane(Vector a) {
  if (LANES > 4) a = larger(moved<LANES / 2>(a), a);
  a = larger(moved<2>(a), a);
  return larger(moved<1>(a), a)[0];
}
INLINE uint32_t bits(Int mask) {  // one bit for each lane that is true
#if defined(__AVX__)
  return _mm256_movemask_ps((__m256)mask);
#elif defined(__SSE__)
  return _mm_movemask_ps((__m128)mask);
#else
  uint32_t result = 0;
  for (int i = 0; i < LANES; i++) result |= (mask[i] & 1u) << i;
  return result;
#endif
}
INLINE uint32_t not_above(Float a, Float limit) { return bits(a <= limit); }
INLINE uint32_t below(Float a, Float limit) { return bits(a < limit); }
#if defined(__AVX2__)
// for every set of lanes their numbers, one after the other
struct Packing {
  alignas(64) uint8_t lanes[256][8] = {};
  constexpr Packing() {
    for (int which = 0; which < 256; which++)
      for (int lane = 0, place = 0; lane < 8; lane++)
        if (which >> lane & 1) lanes[which][place++] = uint8_t(lane);
  }
};
inline constexpr Packing PACKING;
template <class Element, class Vector>
INLINE void compact(Element* out, Vector v, uint32_t which) {
  const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)PACKING.lanes[which]));
  _mm256_storeu_si256((__m256i*)out, _mm256_permutevar8x32_epi32((__m256i)v, lanes));
}
INLINE void compact_lanes(int32_t* out, int32_t first, uint32_t which) {
  store(out, (Int)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)PACKING.lanes[which])) + first);
}
#else
template <class Element, class Vector>
INLINE void compact(Element* out, Vector v, uint32_t which) {
  for (; which; which &= which - 1) *out++ = v[__builtin_ctz(which)];
}
INLINE void compact_lanes(int32_t* out, int32_t first, uint32_t which) {
  for (; which; which &= which - 1) *out++ = first + __builtin_ctz(which);
}
#endif
#endif

template <class Vector>
INLINE Vector square_root(Vector a) {
  using Lane = decltype(a[0] + a[0]);
#if defined(__AVX512F__)  // GCC makes two halves of it, by way of memory
  if constexpr (sizeof(Lane) == sizeof(float)) return (Vector)_mm512_sqrt_ps((__m512)a);
  if constexpr (sizeof(Lane) == sizeof(double)) return (Vector)_mm512_sqrt_pd((__m512d)a);
#endif
  for (unsigned i = 0; i < sizeof a / sizeof(Lane); i++) a[i] = std::sqrt(a[i]);
  return a;
}
// a * b + c, in one rounding where the CPU can: only for results that no index depends on
INLINE Float fused(Float a, Float b, Float c) {
#if defined(__AVX512F__)
  return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
INLINE Float gather(const float* p, Int index) {
#if defined(__AVX512F__)
  return (Float)_mm512_i32gather_ps((__m512i)index, p, sizeof(float));
#else
  Float v;
  for (int i = 0; i < LANES; i++) v[i] = p[index[i]];
  return v;
#endif
}
template <class Vector>
INLINE auto sum(Vector a) {
  decltype(a[0] + a[0]) total = 0;
  for (int i = 0; i < LANES; i++) total += a[i];
  return total;
}
