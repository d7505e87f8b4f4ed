// A cloud sorted along a Hilbert curve and cut into leaves of LEAF points with their bounding boxes.
//
// Rounding is monotonic, so the distance to a box, computed in the same steps as that to a point, never exceeds the
// computed distance to a point inside: leaving boxes out by it is exact, to the bit.
#pragma once
#include "common.h"

template <int LEAF>  // a multiple of LANES
struct Buckets {
  Planes points;            // in curve order
  Array<int32_t> original;  // index of each in the cloud; NO_INDEX for padding
  int64_t leaves, padded;   // boxes are filled up to whole vectors, with boxes at infinity
  Array<float> boxes;       // planes: low x, y, z, high x, y, z

  explicit Buckets(int64_t n)
      : points(n, LEAF),
        original(points.padded),
        leaves(points.padded / LEAF),
        padded(round_up(leaves, LANES)),
        boxes(6 * padded) {}

  void fill(const float* cloud) {
    arrange(cloud);
    bound();
  }

  // The points in their order, without boxes.
  void arrange(const float* cloud) {
    const int64_t n = points.n;
    sort(cloud, n, original);
    for (int64_t i = 0; i < n; i++) {
      const float* p = cloud + 3 * int64_t(original[i]);
      points.x[i] = p[0], points.y[i] = p[1], points.z[i] = p[2];
    }
    for (int64_t i = n; i < points.padded; i++) {
      original[i] = NO_INDEX;
      points.x[i] = points.y[i] = points.z[i] = NONE;
    }
  }

  void bound() {
    const float* planes[3] = {points.x, points.y, points.z};
    for (int axis = 0; axis < 3; axis++)
      for (int64_t b = 0; b < padded; b++) {
        Float low = all(INF), high = all(-INF);
        for (int64_t i = b * LEAF; b < leaves && i < (b + 1) * LEAF; i += LANES) {
          low = smaller(load(planes[axis] + i), low);
          high = larger(load(planes[axis] + i), high);
        }
        boxes[axis * padded + b] = smallest_lane(low);
        boxes[(axis + 3) * padded + b] = largest_lane(high);
      }
  }

  // Squared distances from the box between two points to LANES boxes; from a point, if both are the same.
  inline __attribute__((always_inline)) Float box_distance(int64_t b, const Point& low, const Point& high) const {
    const float* p = boxes + b;
    const Float dx = gap(load(p) - high.x, low.x - load(p + 3 * padded));
    const Float dy = gap(load(p + padded) - high.y, low.y - load(p + 4 * padded));
    const Float dz = gap(load(p + 2 * padded) - high.z, low.z - load(p + 5 * padded));
    return dx * dx + dy * dy + dz * dz;
  }
  INLINE Float gap(Float above, Float below) { return larger(above, larger(below, Float{})); }

 private:
  INLINE Int spread(Int v) {  // the eight low bits, two zeros between each
    v = (v | (v << 8)) & 0x0300F00F;
    v = (v | (v << 4)) & 0x030C30C3;
    return (v | (v << 2)) & 0x09249249;
  }

  // How far along the Hilbert curve a cell lies, in 24 bits (J. Skilling 2004). Neighbours on it are neighbours in
  // space, which those on a Morton curve need not be: boxes are smaller.
  INLINE Int along_the_curve(Int (&cell)[3]) {
    for (int32_t bit = 128; bit > 1; bit >>= 1)
      for (int axis = 0; axis < 3; axis++) {
        const Int below = all(bit - 1), set = (cell[axis] & bit) != 0;
        const Int exchanged = ~set & below & (cell[0] ^ cell[axis]);
        cell[0] ^= exchanged | (set & below);
        cell[axis] ^= exchanged;
      }
    cell[1] ^= cell[0];
    cell[2] ^= cell[1];
    Int turned{};
    for (int32_t bit = 128; bit > 1; bit >>= 1) turned ^= ((cell[2] & bit) != 0) & all(bit - 1);
    return spread(cell[0] ^ turned) << 2 | spread(cell[1] ^ turned) << 1 | spread(cell[2] ^ turned);
  }

  // Means over the finite points of use(axis, coordinate).
  template <class Use>
  static void means(const float* cloud, int64_t n, float (&mean)[3], Use use) {
    Float total[3] = {};
    each_vector(cloud, n, [&](int64_t, Float x, Float y, Float z) __attribute__((always_inline)) {
      const Float at[3] = {x, y, z};
      for (int axis = 0; axis < 3; axis++) {
        const Float value = use(axis, at[axis]);
        total[axis] += value - value == Float{} ? value : Float{};
      }
    });
    for (int axis = 0; axis < 3; axis++) mean[axis] = sum(total[axis]) / float(n);
  }

  // Place on the curve of every point. A few points far out do not make the cells of all others large: the cells reach
  // three times as far as points deviate from the mean, and what lies beyond counts to the outer ones.
  static void places(const float* cloud, int64_t n, int32_t* place) {
    float center[3], spread[3];
    means(cloud, n, center, [](int, Float v) __attribute__((always_inline)) { return v; });
    means(cloud, n, spread, [&](int axis, Float v) __attribute__((always_inline)) {
      return larger(v - all(center[axis]), all(center[axis]) - v);
    });
    const float reach = 3 * std::max({spread[0], spread[1], spread[2], 1e-30f});
    each_vector(cloud, n, [&](int64_t i, Float x, Float y, Float z) __attribute__((always_inline)) {
      const Float at[3] = {x, y, z};
      Int cell[3];
      for (int axis = 0; axis < 3; axis++) {
        const Float inside = (at[axis] - all(center[axis] - reach)) * all(127.5f / reach);
        cell[axis] = __builtin_convertvector(smaller(larger(inside, Float{}), all(255.f)), Int);  // NaN: cell 0
      }
      store(place + i, along_the_curve(cell));
    });
  }

  // Write the numbers of the points along the curve.
  static void sort(const float* cloud, int64_t n, int32_t* sorted) {
    struct Pair {
      uint32_t place, point;
    };
    constexpr int BITS = 12, SIZE = 1 << BITS;
    Array<int32_t> place(n);
    Array<Pair> half(n);
    places(cloud, n, place);
    uint32_t start[2][SIZE] = {};
    for (int64_t i = 0; i < n; i++) start[0][place[i] & (SIZE - 1)]++, start[1][place[i] >> BITS]++;
    for (auto& counts : start)
      for (uint32_t d = 0, total = 0; d < SIZE; d++) total += counts[d], counts[d] = total - counts[d];
    for (int64_t i = 0; i < n; i++) half[start[0][place[i] & (SIZE - 1)]++] = {uint32_t(place[i]), uint32_t(i)};
    for (int64_t i = 0; i < n; i++) sorted[start[1][half[i].place >> BITS]++] = int32_t(half[i].point);
  }
};
