// The nearest points of one cloud for those of another where the clouds are small: all distances are computed.
#pragma once
#include "common.h"

// Indices from number i on, or none where none are asked for.
INLINE int64_t* indices_from(int64_t* indices, int64_t i) { return indices ? indices + i : nullptr; }

// Whole numbers sort as distances do, which are not negative; at twice the rate, but for AVX-512.
using Sortable = std::conditional_t<LANES == 16, Float, Int>;

// Squared distances in the steps of the reference where indices depend on them, else in fewer.
template <bool INDEX>
INLINE Float distance_from(const float* x, const float* y, const float* z, const Point& from) {
  if (INDEX) return squared_distance(x, y, z, from);
  const Float dx = from.x - load(x), dy = from.y - load(y), dz = from.z - load(z);
  return fused(dz, dz, fused(dy, dy, dx * dx));
}

// The nearest that each lane has seen, and its index if that is asked for.
template <bool INDEX>
struct Nearest {
  Sortable distance = (Sortable)all(INF);
  Int index{};

  METHOD void see(Sortable d, Int candidate) {  // candidates in rising order
    if (INDEX) index = d < distance ? candidate : index;
    distance = smaller(d, distance);
  }
  METHOD void write(int64_t count, float* distances, int64_t* indices) const {
    if (INDEX)
      ::write((Float)distance, index, count, distances, indices);
    else
      std::memcpy(distances, &distance, std::min<int64_t>(count, LANES) * sizeof(float));
  }
};

// For WIDTH vectors of queries from position i: the nearest of m points, one point after the other.
template <int WIDTH, bool INDEX>
INLINE void nearest_block(const Planes& q, int64_t i, const Planes& p, float* distances, int64_t* indices) {
  Nearest<INDEX> nearest[WIDTH];
  for (int64_t j = 0; j < p.n; j++) {
    const Point point(p.x[j], p.y[j], p.z[j]);
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; v++) {
      const int64_t at = i + v * LANES;
      nearest[v].see((Sortable)distance_from<INDEX>(q.x + at, q.y + at, q.z + at, point), all(int32_t(j)));
    }
  }
  for (int64_t v = 0, at = i; v < WIDTH && at < q.n; v++, at += LANES)
    nearest[v].write(q.n - at, distances + at, indices_from(indices, at));
}

// Both ways at once where x is WIDTH vectors long: every distance is computed once. Lanes are points of x; the minima
// over them are found for LANES points of y together. What holds a coordinate that is not finite gets a distance that is
// not finite, and some index.
template <int WIDTH, bool INDEX>
class Patch {
 public:
  explicit Patch(const Planes& x) : x_(x) {}  // padded with infinity

  METHOD void run(const float* y, int64_t m, float* dist1, float* dist2, int64_t* idx1, int64_t* idx2) {
    int64_t j = 0;
    for (; j + LANES <= m; j += LANES) block(y + 3 * j, dist2 + j, indices_from(idx2, j));
    if (j < m) {
      float points[3 * LANES], distances[LANES];
      int64_t indices[LANES];
      for (int i = 0; i < 3 * LANES; i++) points[i] = y[std::min(3 * j + i, 3 * (m - 1) + i % 3)];  // the last again
      block(points, distances, indices);
      std::copy_n(distances, m - j, dist2 + j);
      if (INDEX) std::copy_n(indices, m - j, idx2 + j);
    }
    for (int v = 0, i = 0; v < WIDTH; v++, i += LANES) best_[v].write(x_.n - i, dist1 + i, indices_from(idx1, i));
  }

 private:
  METHOD void block(const float* y, float* distances, int64_t* indices) {
    const auto row = [&](int j) __attribute__((always_inline)) { return smallest(j, Point(y + 3 * j)); };
    const auto join = [](Sortable a, Sortable b) __attribute__((always_inline)) { return smaller(a, b); };
    store(distances, (Float)join_rows<LANES>(0, row, join));
    if (!INDEX) return;
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) {
      uint64_t partners = uint64_t(1) << 63;  // a bit for each point of x at that distance: the first is the partner
      for (int v = 0; v < WIDTH; v++)
        partners |= uint64_t(equal(distance_[j][v], (Sortable)all(distances[j]))) << (v * LANES);
      indices[j] = __builtin_ctzll(partners);
    }
  }

  // The smallest distance of a point of y, number j of its block, from those points of x that share a lane.
  METHOD Sortable smallest(int j, const Point& point) {
    Sortable least;
    for (int v = 0, i = 0; v < WIDTH; v++, i += LANES) {
      const Sortable d = (Sortable)distance_from<INDEX>(x_.x + i, x_.y + i, x_.z + i, point);
      best_[v].see(d, number_);
      least = v ? smaller(d, least) : d;
      if (INDEX) distance_[j][v] = d;
    }
    number_ += 1;
    return least;
  }

  const Planes& x_;
  Nearest<INDEX> best_[WIDTH];
  Int number_{};
  Sortable distance_[INDEX ? LANES : 1][WIDTH];
};

// As the reference has it where coordinates are not finite: a NaN is the nearest of all.
INLINE void nearest_broken(const Planes& q, const Planes& p, float* distances, int64_t* indices) {
  for (int64_t i = 0; i < q.n; i++) {
    const float query[3] = {q.x[i], q.y[i], q.z[i]};
    float best = INF;
    int64_t index = 0;
    for (int64_t j = 0; j < p.n && best == best; j++) {
      const float point[3] = {p.x[j], p.y[j], p.z[j]};
      const float d = squared_distance(query, point);
      if (d < best || d != d) best = d, index = j;
    }
    distances[i] = best;
    if (indices) indices[i] = index;
  }
}

// One way, for clouds of any size.
template <bool INDEX>
void nearest(const Planes& q, const Planes& p, float* distances, int64_t* indices) {
  int64_t i = 0;
  for (; i + 4 * LANES <= q.padded; i += 4 * LANES) nearest_block<4, INDEX>(q, i, p, distances, indices);
  for (; i + 2 * LANES <= q.padded; i += 2 * LANES) nearest_block<2, INDEX>(q, i, p, distances, indices);
  for (; i < q.padded; i += LANES) nearest_block<1, INDEX>(q, i, p, distances, indices);
}
