// What all kernels share: memory, threads, and a cloud as three planes.
//
// Rules of every kernel (those of the reference): a squared distance is dx*dx + dy*dy, then + dz*dz, each step rounded;
// among equals the lowest index wins. Sizes are checked by the caller; a size of zero is allowed.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "simd.h"

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float NONE = std::numeric_limits<float>::quiet_NaN();  // padding: nothing is near it, and it compares false
constexpr int32_t NO_INDEX = std::numeric_limits<int32_t>::max();

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Ask for values that are needed soon; a place that is none does no harm.
INLINE void prefetch(const float* values, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(values + i);
}

// Let results in new memory come in large pages: to provide a small one costs more than to fill it.
template <class T>
void in_large_pages(T* values, int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = 1 << 21;
  const uintptr_t begin = (uintptr_t(values) + PAGE - 1) / PAGE * PAGE, end = uintptr_t(values + count) / PAGE * PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // not served: no harm
#endif
}

// An aligned array without initial values, with room for a vector behind its end.
template <class T>
class Array {
 public:
  explicit Array(int64_t n) : data_(static_cast<T*>(std::aligned_alloc(64, round_up((n + LANES) * sizeof(T), 64)))) {
    if (!data_) throw std::bad_alloc();
  }
  ~Array() { std::free(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};

// work(begin, end) for parts of [0, count), on several threads.
template <class Work>
void parallel(int64_t count, int64_t threads, Work work) {
  const int64_t part = threads > 1 ? std::max<int64_t>(1, count / (threads * 8)) : std::max<int64_t>(1, count);
  const int64_t parts = (count + part - 1) / part;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(int(threads)) if (threads > 1 && parts > 1)
#endif
  for (int64_t p = 0; p < parts; p++) work(p * part, std::min(count, (p + 1) * part));
}

// use(i, x, y, z) for the points of a cloud (n, 3) from i on, LANES at a time; behind the last come NONE.
template <class Use>
METHOD static void each_vector(const float* cloud, int64_t n, Use use) {
  const auto split = [&](int64_t i, const float* p) __attribute__((always_inline)) {
    const Float low = load(p), middle = load(p + LANES), high = load(p + 2 * LANES);
    use(i, coordinates<0>(low, middle, high), coordinates<1>(low, middle, high), coordinates<2>(low, middle, high));
  };
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) split(i, cloud + 3 * i);
  if (i == n) return;
  float last[3 * LANES];
  std::fill(std::copy(cloud + 3 * i, cloud + 3 * n, last), last + 3 * LANES, NONE);
  split(i, last);
}

// A cloud (n, 3) as planes x, y, z, filled up to whole blocks, and one more for what a kernel keeps for every point. They
// start in different quarters of a page: a load waits for a store before it whose address has the same last 12 bits.
struct Planes {
  static constexpr int64_t PAGE = 4096 / sizeof(float);
  const int64_t n, padded, stride;
  Array<float> memory;
  float *const x, *const y, *const z, *const kept;

  explicit Planes(int64_t n, int64_t block = LANES)
      : n(n), padded(round_up(n, block)), stride(round_up(padded, PAGE) + PAGE / 4), memory(4 * stride), x(memory),
        y(x + stride), z(y + stride), kept(z + stride) {}

  void fill(const float* cloud, float padding = NONE) {
    each_vector(cloud, n, [&](int64_t i, Float px, Float py, Float pz) __attribute__((always_inline)) {
      store(x + i, px), store(y + i, py), store(z + i, pz);
    });
    for (int64_t i = n; i < padded; i++) x[i] = y[i] = z[i] = padding;
  }
};

// Squared distances from a point to the LANES points at position i. Either difference has the same square; in this one
// the load is part of the instruction.
struct Point {
  Float x, y, z;
  explicit Point(const float* p) : x(all(p[0])), y(all(p[1])), z(all(p[2])) {}
  Point(float px, float py, float pz) : x(all(px)), y(all(py)), z(all(pz)) {}
};
INLINE Float squared_distance(const float* x, const float* y, const float* z, const Point& from) {
  const Float dx = from.x - load(x), dy = from.y - load(y), dz = from.z - load(z);
  return dx * dx + dy * dy + dz * dz;
}
// Write the first `count` lanes of distances and indices.
INLINE void write(Float d, Int index, int64_t count, float* distances, int64_t* indices) {
  typedef int64_t Wide __attribute__((vector_size(8 * LANES)));
  const Wide wide = __builtin_convertvector(index, Wide);
  if (count >= LANES) {
    std::memcpy(distances, &d, sizeof d);
    std::memcpy(indices, &wide, sizeof wide);
  } else {
    std::memcpy(distances, &d, count * sizeof(float));
    std::memcpy(indices, &wide, count * sizeof(int64_t));
  }
}
INLINE float squared_distance(const float* a, const float* b) {
  const float dx = a[0] - b[0], dy = a[1] - b[1], dz = a[2] - b[2];
  return dx * dx + dy * dy + dz * dz;
}
// True if no value is larger than the limit, or NaN.
INLINE bool all_within(const float* values, int64_t n, float limit = std::numeric_limits<float>::max()) {
  uint32_t outside = 0;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) outside |= ~not_above(magnitude(load(values + i)), all(limit)) & ALL_LANES;
  for (; i < n; i++) outside |= !(std::fabs(values[i]) <= limit);
  return !outside;
}
