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
#define EACH_LANE(F) \
  F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7), F(8), F(9), F(10), F(11), F(12), F(13), F(14), F(15)
#elif defined(__AVX__)
constexpr int LANES = 8;
#define EACH_LANE(F) F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7)
#else
constexpr int LANES = 4;
#define EACH_LANE(F) F(0), F(1), F(2), F(3)
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
// every lane's value where the lane at that distance was, a power of two: log2(LANES) steps reach all
template <int DISTANCE, class Vector>
INLINE Vector moved(Vector a) {
#define PARTNER(lane) ((lane) ^ DISTANCE)
  return __builtin_shufflevector(a, a, EACH_LANE(PARTNER));
#undef PARTNER
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
INLINE uint32_t equal(Float a, Float b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
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
INLINE uint32_t equal(Int a, Int b) { return bits(a == b); }
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

// What join makes of two lanes at a distance, a power of two: in the lower lane of those of a, in the upper of those of b.
template <int DISTANCE, class Vector, class Join>
INLINE Vector join_lanes(Vector a, Vector b, Join join) {
#define OWN(lane) ((lane) & DISTANCE ? LANES + (lane) : (lane))
#define OTHER(lane) ((lane) & DISTANCE ? LANES + (lane) - DISTANCE : (lane) + DISTANCE)
  const Vector own = __builtin_shufflevector(a, b, EACH_LANE(OWN));
  return join(own, __builtin_shufflevector(a, b, EACH_LANE(OTHER)));
#undef OWN
#undef OTHER
}

// For COUNT rows from the first on, each a vector that row(i) returns: lane i holds what join makes of all lanes of
// row first + i % COUNT. A tree: two operations and a half for each of LANES rows.
template <int COUNT, class Row, class Join>
INLINE auto join_rows(int first, Row row, Join join) {
  if constexpr (COUNT == 1) {
    return row(first);
  } else {
    const auto low = join_rows<COUNT / 2>(first, row, join), high = join_rows<COUNT / 2>(first + COUNT / 2, row, join);
    return join_lanes<COUNT / 2>(low, high, join);
  }
}

// Coordinate AXIS of LANES points (x, y, z), which fill three vectors.
template <int AXIS>
INLINE Float coordinates(Float low, Float middle, Float high) {
#define BELOW_HIGH(lane) (3 * (lane) + AXIS < 2 * LANES ? 3 * (lane) + AXIS : 0)
#define WITH_HIGH(lane) (3 * (lane) + AXIS < 2 * LANES ? (lane) : 3 * (lane) + AXIS - LANES)
  const Float some = __builtin_shufflevector(low, middle, EACH_LANE(BELOW_HIGH));
  return __builtin_shufflevector(some, high, EACH_LANE(WITH_HIGH));
#undef BELOW_HIGH
#undef WITH_HIGH
}
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
INLINE Float magnitude(Float a) { return (Float)((Int)a & std::numeric_limits<int32_t>::max()); }
constexpr uint32_t ALL_LANES = (1u << LANES) - 1;
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
  if constexpr (LANES > 8) a += moved<8>(a);
  if constexpr (LANES > 4) a += moved<4>(a);
  a += moved<2>(a);
  return (a + moved<1>(a))[0];
}
