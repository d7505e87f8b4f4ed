// A cloud sorted along a Morton curve and cut into leaves of LEAF points with their bounding boxes.
//
// Rounding is monotonic, so the distance to a box, computed in the same steps as that to a point, never exceeds the
// computed distance to a point inside: leaving boxes out by it is exact, to the bit.
#pragma once
#include <vector>

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

  void fill(const Planes& cloud) {
    const std::vector<uint32_t> order = curve(cloud);
    for (int64_t i = 0; i < points.padded; i++) {
      const bool real = i < cloud.n;
      const int64_t j = real ? order[i] : 0;
      original[i] = real ? int32_t(j) : NO_INDEX;
      points.x[i] = real ? cloud.x[j] : NONE;
      points.y[i] = real ? cloud.y[j] : NONE;
      points.z[i] = real ? cloud.z[j] : NONE;
    }
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
  static uint32_t spread(uint32_t v) {  // the ten low bits, two zeros between each
    v = (v | (v << 16)) & 0x030000FF;
    v = (v | (v << 8)) & 0x0300F00F;
    v = (v | (v << 4)) & 0x030C30C3;
    return (v | (v << 2)) & 0x09249249;
  }

  static std::vector<uint32_t> curve(const Planes& cloud) {
    const float* planes[3] = {cloud.x, cloud.y, cloud.z};
    float low[3], width = 0;
    for (int axis = 0; axis < 3; axis++) {
      Float least = all(INF), most = all(-INF);
      for (int64_t i = 0; i < cloud.padded; i += LANES) {
        least = smaller(load(planes[axis] + i), least);
        most = larger(load(planes[axis] + i), most);
      }
      low[axis] = smallest_lane(least);
      width = std::max(width, largest_lane(most) - low[axis]);
    }
    const float scale = 1023.f / std::max(width, 1e-30f);
    std::vector<uint32_t> key(cloud.n), order(cloud.n), key2(cloud.n), order2(cloud.n);
    for (int64_t i = 0; i < cloud.n; i++) {
      uint32_t code = 0;
      for (int axis = 0; axis < 3; axis++) {
        const float cell = (planes[axis][i] - low[axis]) * scale;
        code |= spread(cell > 0 ? uint32_t(std::min(cell, 1023.f)) : 0) << axis;  // a NaN goes to cell 0
      }
      key[i] = code, order[i] = uint32_t(i);
    }
    for (int shift = 0; shift < 30; shift += 10) {  // radix sort
      uint32_t start[1025] = {0};
      for (int64_t i = 0; i < cloud.n; i++) start[((key[i] >> shift) & 1023) + 1]++;
      for (int d = 0; d < 1024; d++) start[d + 1] += start[d];
      for (int64_t i = 0; i < cloud.n; i++) {
        const uint32_t to = start[(key[i] >> shift) & 1023]++;
        key2[to] = key[i], order2[to] = order[i];
      }
      key.swap(key2), order.swap(order2);
    }
    return order;
  }
};
