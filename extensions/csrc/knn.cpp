// k nearest neighbours without a heap and without a full sort:
//   1. the distances to all points (or to the points of the nearest buckets), and from the minima of disjoint groups an
//      upper bound of the kth smallest: k groups whose minima it bounds hold k points that it bounds;
//   2. the survivors within the bound (a few more than k) are packed together: their positions, then their distances;
//   3. each survivor's rank is the number of smaller survivors, counted by brute force. It is its place in the result.
// Equal distances share a rank; that is noticed, and a sort by (distance, index) decides.
#include "knn.h"

namespace {

constexpr int GROUPS = 8;
constexpr int64_t BLOCK = GROUPS * LANES, MOST_PARTS = 8;
constexpr int64_t SLACK = 16;        // survivors beyond k that are not worth another step
constexpr int64_t RANK_LIMIT = 512;  // above, counting ranks is slower than a sort
constexpr int64_t BUCKETS_FROM_POINTS = 2048, BUCKETS_FROM_QUERIES = 128;

INLINE void order(Float& a, Float& b) {
  const Float low = smaller(a, b);
  b = larger(a, b);
  a = low;
}

// Sort the GROUPS values of each lane.
INLINE void sort_lanes(Float* g) {
  constexpr int NETWORK[19][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {1, 2}, {5, 6},
                                  {0, 4}, {1, 5}, {2, 6}, {3, 7}, {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
#pragma GCC unroll 19
  for (int i = 0; i < 19; i++) order(g[NETWORK[i][0]], g[NETWORK[i][1]]);
}

// The kth smallest of the lanes, equals counted once.
INLINE float kth_lane(Float least, int64_t k) {
  float value = smallest_lane(least);
  for (int64_t i = 1; i < k; i++) {
    least = least == all(value) ? all(INF) : least;
    value = smallest_lane(least);
  }
  return value;
}

// An upper bound of the kth smallest of n distances, n a multiple of BLOCK, from the minima of disjoint groups; at(i)
// gives the LANES distances from position i. Where the minima of each lane are sorted, the largest lane of row r bounds
// LANES * (r + 1) of a part. That is far from tight, but among the lanes of such a row is one a little above the kth
// smallest minimum: counting the groups within each finds it.
template <class Distances>
INLINE float bound(int64_t n, int64_t k, Distances at) {
  const int64_t parts = std::max<int64_t>(1, std::min({MOST_PARTS, n / BLOCK, (2 * k - 1) / BLOCK + 1}));
  const int64_t row = (k - 1) / (parts * LANES);
  alignas(64) float minima[MOST_PARTS * BLOCK];
  Float candidates{}, safe{};
  for (int64_t part = parts; part-- > 0;) {
    Float least[GROUPS];
    for (Float& g : least) g = all(INF);
    for (int64_t i = part * BLOCK; i < n; i += parts * BLOCK)
#pragma GCC unroll 8
      for (int t = 0; t < GROUPS; t++) least[t] = smaller(at(i + t * LANES), least[t]);
    sort_lanes(least);
    for (int t = 0; t < GROUPS; t++) store(minima + part * BLOCK + t * LANES, least[t]);
    candidates = row < GROUPS ? load(minima + part * BLOCK + row * LANES) : all(INF);
    safe = larger(candidates, safe);
  }
  if (k <= 4) return kth_lane(candidates, k);
  const int64_t rows = std::min<int64_t>(row + 3, GROUPS) * LANES;  // hardly any group of the rows behind is within
  Int within{};
  for (int64_t part = 0; part < parts; part++)
#pragma GCC unroll 4
    for (int64_t i = part * BLOCK; i < part * BLOCK + rows; i++) within -= all(minima[i]) <= candidates;
  return smallest_lane(within >= all(int32_t(k)) ? candidates : all(largest_lane(safe)));
}

// Write the positions of the distances within the limit, n a multiple of BLOCK; returns their number.
INLINE int64_t survivors(const float* distance, int64_t n, float limit, int32_t* positions) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += BLOCK)
#pragma GCC unroll 8
    for (int t = 0; t < GROUPS; t++) {
      const int64_t j = i + t * LANES;
      const uint32_t which = not_above(load(distance + j), all(limit));
      compact_lanes(positions + count, int32_t(j), which);
      count += __builtin_popcount(which);
    }
  store(positions + count, Int{});  // loops in steps of four end there
  return count;
}

// Append what is within the limit to the survivors; returns their number.
INLINE int64_t keep(Float distance, Int index, Float limit, float* found, int32_t* indices, int64_t count) {
  const uint32_t which = not_above(distance, limit);
  compact(found + count, distance, which);
  compact(indices + count, index, which);
  return count + __builtin_popcount(which);
}

// Drop survivors that cannot be among the k nearest, by a few steps of regula falsi on the number within a limit;
// returns the new limit. At least k survive.
float tighten(float* found, int32_t* indices, int64_t& count, int64_t k, float limit) {
  store(found + count, all(NONE));
  if (limit == INF) {
    Float most{};
    for (int64_t i = 0; i < count; i += LANES) most = larger(load(found + i), most);
    limit = largest_lane(most);
  }
  float low = 0;
  int64_t outside = 0, inside = count;
  for (int step = 0; step < 6 && inside > k + SLACK; step++) {
    const float middle = low + (limit - low) * (float(k + SLACK / 2 - outside) / float(inside - outside));
    int64_t within = 0;
    for (int64_t i = 0; i < count; i += LANES) within += __builtin_popcount(not_above(load(found + i), all(middle)));
    if (within >= k)
      limit = middle, inside = within;
    else
      low = middle, outside = within;
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < count; i += LANES)
    kept = keep(load(found + i), load(indices + i), all(limit), found, indices, kept);
  count = kept;
  return limit;
}

// The bits of a non-negative float sort like the float itself; the mask drops the sign a NaN may carry.
INLINE uint64_t sort_key(float distance, uint32_t index) {
  uint32_t value;
  std::memcpy(&value, &distance, 4);
  return uint64_t(value & 0x7FFFFFFF) << 32 | index;
}

void write_sorted(uint64_t* keys, int64_t n, int64_t k, float* distances, int64_t* indices) {
  if (k < n) std::nth_element(keys, keys + k, keys + n);
  std::sort(keys, keys + k);
  for (int64_t i = 0; i < k; i++) {
    const uint32_t value = uint32_t(keys[i] >> 32);
    indices[i] = uint32_t(keys[i]);
    if (distances) std::memcpy(distances + i, &value, 4);
  }
}

// For WIDTH vectors of survivors: how many of the n survivors are smaller; the sum is added to the total.
template <int WIDTH>
INLINE void count_smaller(const float* found, int64_t n, int64_t at, int32_t* rank, Int& total) {
  Float mine[WIDTH];
  Int smaller_ones[WIDTH] = {};
  for (int v = 0; v < WIDTH; v++) mine[v] = load(found + at + v * LANES);
  for (int64_t j = 0; j < n; j++) {
    const Float other = all(found[j]);
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; v++) smaller_ones[v] -= other < mine[v];
  }
  for (int v = 0; v < WIDTH; v++) store(rank + at + v * LANES, smaller_ones[v]), total += smaller_ones[v];
}

// False if equal distances leave the order open.
bool write_ranked(float* found, const int32_t* index, int64_t n, int64_t k, float* distances, int64_t* indices) {
  alignas(64) int32_t rank[RANK_LIMIT + LANES];
  Int total{};
  store(found + n, all(NONE));
  int64_t v = 0;
  for (; v + 3 * LANES < n; v += 4 * LANES) count_smaller<4>(found, n, v, rank, total);
  for (; v + LANES < n; v += 2 * LANES) count_smaller<2>(found, n, v, rank, total);
  for (; v < n; v += LANES) count_smaller<1>(found, n, v, rank, total);
  if (sum(total) != n * (n - 1) / 2) return false;
  store(rank + n, all(int32_t(RANK_LIMIT)));
  int64_t sorted[RANK_LIMIT + 1];
  float ascending[RANK_LIMIT + 1];
  for (int64_t i = 0; i < n; i += 4)
#pragma GCC unroll 4
    for (int64_t j = i; j < i + 4; j++) sorted[rank[j]] = index[j], ascending[rank[j]] = found[j];
  std::copy_n(sorted, k, indices);
  if (distances) std::copy_n(ascending, k, distances);
  return true;
}

}  // namespace

Neighbours::Neighbours(const float* cloud, Planes& planes, int64_t k, int64_t expected)
    : cloud_(cloud), planes_(planes), k_(k) {
  if (planes.n >= BUCKETS_FROM_POINTS && expected >= BUCKETS_FROM_QUERIES && k <= GROUPS * LANES / 2) {
    buckets_ = std::make_unique<Buckets<LEAF>>(planes.n);
    buckets_->fill(cloud);
  } else {
    planes.fill(cloud);
  }
}

Neighbours::Scratch::Scratch(const Neighbours& of)
    : gap(of.planes_.padded / LEAF + 2 * LANES),
      leaf(of.planes_.padded / LEAF + 2 * LANES),
      distance(of.planes_.padded + LEAF + BLOCK),
      found(of.planes_.padded + LEAF),
      index(of.planes_.padded + LEAF) {}

void Neighbours::search(const float* query, Scratch& s, float* distances, int64_t* indices) const {
  int64_t count = buckets_ ? scan_buckets(Point(query), s) : scan(Point(query), s);
  if (count > k_ + SLACK) tighten(s.found, s.index, count, k_, INF);
  if (count < k_) return sort_all(query, distances, indices);  // some distances are not numbers
  if (count <= RANK_LIMIT && write_ranked(s.found, s.index, count, k_, distances, indices)) return;
  Array<uint64_t> keys(count);
  for (int64_t i = 0; i < count; i++) keys[i] = sort_key(s.found[i], s.index[i]);
  write_sorted(keys, count, k_, distances, indices);
}

int64_t Neighbours::scan(const Point query, Scratch& s) const {
  const float *x = planes_.x, *y = planes_.y, *z = planes_.z;
  float *distance = s.distance, *found = s.found;
  int32_t* index = s.index;
  const int64_t padded = planes_.padded;
  const float limit = bound(padded, k_, [&](int64_t i) __attribute__((always_inline)) {
    const Float d = squared_distance(x + i, y + i, z + i, query);
    store(distance + i, d);
    return d;
  });
  const int64_t count = survivors(distance, padded, limit, index);
  for (int64_t i = 0; i < count; i += 4)
#pragma GCC unroll 4
    for (int64_t j = i; j < i + 4; j++) found[j] = distance[index[j]];
  return count;
}

// Put the distances to the points of all boxes within the limit behind those of the first leaves, and the boxes out of
// reach of the next call; returns the number of leaves.
INLINE int64_t add_leaves(const Buckets<Neighbours::LEAF>& b, const Point& query, float limit, int64_t leaves,
                          Neighbours::Scratch& s) {
  constexpr int LEAF = Neighbours::LEAF;
  const float *x = b.points.x, *y = b.points.y, *z = b.points.z;
  float *gap = s.gap, *distance = s.distance;
  int32_t* leaf = s.leaf;
  int64_t first = leaves;
  for (int64_t i = 0; i < b.padded; i += LANES) {
    const Float d = load(gap + i);
    const uint32_t near = not_above(d, all(limit));
    compact_lanes(leaf + leaves, int32_t(i), near);
    leaves += __builtin_popcount(near);
    store(gap + i, d <= all(limit) ? all(NONE) : d);
  }
  for (; first < leaves; first++)
    for (int64_t v = 0, i = leaf[first] * LEAF; v < LEAF; v += LANES, i += LANES)
      store(distance + first * LEAF + v, squared_distance(x + i, y + i, z + i, query));
  return leaves;
}

// The nearest boxes give a limit, then what lies within it is added.
int64_t Neighbours::scan_buckets(const Point query, Scratch& s) const {
  const Buckets<LEAF>& b = *buckets_;
  float *distance = s.distance, *gap = s.gap, *found = s.found;
  int32_t *leaf = s.leaf, *index = s.index;
  Float closest = all(INF);
  for (int64_t i = 0; i < b.padded; i += LANES) {
    const Float d = b.box_distance(i, query, query);
    store(gap + i, d);
    closest = smaller(d, closest);
  }
  std::fill(gap + b.leaves, gap + b.padded, NONE);  // nothing is in those

  int64_t leaves = 0, padded = 0;
  float limit = kth_lane(closest, 1 + 2 * k_ / LEAF);
  for (int pass = 0; pass < 2; pass++) {
    leaves = add_leaves(b, query, limit, leaves, s);
    padded = round_up(leaves * LEAF, BLOCK);
    std::fill(distance + leaves * LEAF, distance + padded, NONE);
    limit = bound(padded, k_, [&](int64_t i) { return load(distance + i); });
  }
  const int64_t count = survivors(distance, padded, limit, index);
  for (int64_t i = 0; i < count; i += 4)
#pragma GCC unroll 4
    for (int64_t j = i; j < i + 4; j++) {
      const int32_t at = index[j];
      found[j] = distance[at];
      index[j] = b.original[leaf[at / LEAF] * LEAF + at % LEAF];
    }
  return count;
}

void Neighbours::sort_all(const float* query, float* distances, int64_t* indices) const {
  Array<uint64_t> keys(planes_.n);
  for (int64_t i = 0; i < planes_.n; i++) keys[i] = sort_key(squared_distance(cloud_ + 3 * i, query), uint32_t(i));
  write_sorted(keys, planes_.n, k_, distances, indices);
}

// query (B, m, 3), points (B, n, 3) -> distances and indices (B, m, k)
extern "C" int64_t pointsmith_knn(const float* query, const float* points, int64_t batch, int64_t m, int64_t n,
                                  int64_t k, float* distances, int64_t* indices, int64_t threads) {
  const bool split_queries = batch < threads;
  in_large_pages(distances, batch * m * k);
  in_large_pages(indices, batch * m * k);
  parallel(batch, split_queries ? 1 : threads, [&](int64_t begin, int64_t end) {
    Planes planes(n, GROUPS * LANES);
    for (int64_t b = begin; b < end; b++) {
      const Neighbours cloud(points + b * n * 3, planes, k, m);
      parallel(m, split_queries ? threads : 1, [&](int64_t first, int64_t last) {
        Neighbours::Scratch scratch(cloud);
        for (int64_t i = b * m + first; i < b * m + last; i++)
          cloud.search(query + i * 3, scratch, distances + i * k, indices + i * k);
      });
    }
  });
  return 0;
}

// The first k points (B, m, k) closer than the radius, and how many were found (B, m).
extern "C" int64_t pointsmith_ball_query(const float* query, const float* points, int64_t batch, int64_t m, int64_t n,
                                      int64_t k, float squared_radius, int64_t* indices, int64_t* counts,
                                      int64_t threads) {
  const bool split_queries = batch < threads;
  parallel(batch, split_queries ? 1 : threads, [&](int64_t begin, int64_t end) {
    Planes p(n, 2 * LANES);
    const Float limit = all(squared_radius);
    for (int64_t b = begin; b < end; b++) {
      p.fill(points + b * n * 3);
      parallel(m, split_queries ? threads : 1, [&](int64_t first, int64_t last) {
        Array<int32_t> found(k + 2 * LANES);
        for (int64_t q = b * m + first; q < b * m + last; q++) {
          const Point center(query + q * 3);
          int64_t count = 0;
          for (int64_t i = 0; i < p.padded && count < k; i += 2 * LANES) {
            const uint32_t one = below(squared_distance(p.x + i, p.y + i, p.z + i, center), limit);
            const int64_t j = i + LANES;
            const uint32_t two = below(squared_distance(p.x + j, p.y + j, p.z + j, center), limit);
            if (!(one | two)) continue;
            compact_lanes(found + count, int32_t(i), one);
            count += __builtin_popcount(one);
            compact_lanes(found + count, int32_t(j), two);
            count += __builtin_popcount(two);
          }
          counts[q] = count = std::min(count, k);
          for (int64_t i = 0; i < k; i++) indices[q * k + i] = count ? found[i < count ? i : 0] : 0;
        }
      });
    }
  });
  return 0;
}
