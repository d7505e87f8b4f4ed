// k nearest neighbours without a heap and without a full sort:
//   1. the distances to all points (or to the points of the nearest buckets), and from the minima of disjoint groups an
//      upper bound of the kth smallest: r-th smallest of each lane's minima, over all lanes, covers LANES * r points;
//   2. the survivors within the bound (a few more than k) are packed together;
//   3. each survivor's rank is the number of smaller survivors, counted by brute force. It is its place in the result.
// Equal distances share a rank; that is noticed, and a sort by (distance, index) decides.
#include "knn.h"

namespace {

constexpr int GROUPS = 8, MOST_PARTS = 8;
constexpr int64_t BLOCK = GROUPS * LANES;
constexpr int64_t SLACK = 8;  // survivors beyond k that are not worth another step
constexpr float FIRST_REACH = 0.3f;
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

// An upper bound of the kth smallest distance from the minima of disjoint groups: those of a lane are sorted, so that the
// largest lane of row r bounds LANES * (r + 1) of a part. That is far from tight, but among the lanes of such a row is
// one that is a little above the bound of k groups: it is found by counting the groups within each.
INLINE float bound(Float* minima, int64_t parts, int64_t k) {
  if (k > parts * GROUPS * LANES) return INF;
  const int64_t row = (k - 1) / (parts * LANES);
  Float safe = minima[0], candidates;
  if (row == 0) {
    for (int64_t g = 1; g < parts * GROUPS; g++) safe = smaller(safe, minima[g]);
    if (k <= 4) return kth_lane(safe, k);
    candidates = safe;
  } else {
    for (int64_t part = 0; part < parts; part++) sort_lanes(minima + part * GROUPS);
    candidates = safe = minima[row];
    for (int64_t part = 1; part < parts; part++) safe = larger(safe, minima[part * GROUPS + row]);
  }
  const float* values = reinterpret_cast<const float*>(minima);
  Int within{};
  for (int64_t i = 0; i < parts * GROUPS * LANES; i++) within -= all(values[i]) <= candidates;
  return smallest_lane(within >= all(int32_t(k)) ? candidates : all(largest_lane(safe)));
}

// Append what is within the limit to the survivors; returns their number.
INLINE int64_t keep(Float distance, Int index, Float limit, float* found, int32_t* indices, int64_t count) {
  const uint32_t which = not_above(distance, limit);
  compact(found + count, distance, which);
  compact(indices + count, index, which);
  return count + __builtin_popcount(which);
}

// Drop survivors that cannot be among the k nearest, by a few steps of regula falsi on the number within a limit; returns
// the new limit. At least k survive.
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

Neighbours::Neighbours(const Planes& planes, int64_t k, int64_t expected)
    : planes_(planes),
      k_(k),
      parts_(std::min({int64_t(MOST_PARTS), planes.padded / BLOCK, (2 * k - 1) / BLOCK + 1})) {
  if (planes.n < BUCKETS_FROM_POINTS || expected < BUCKETS_FROM_QUERIES || k > GROUPS * LANES / 2) return;
  buckets_ = std::make_unique<Buckets<LEAF>>(planes.n);
  buckets_->fill(planes);
}

Neighbours::Scratch::Scratch(const Neighbours& of)
    : distance(of.planes_.padded), found(of.planes_.padded + LEAF), index(of.planes_.padded + LEAF) {}

void Neighbours::search(const float* query, Scratch& s, float* distances, int64_t* indices) const {
  int64_t count = buckets_ ? scan_buckets(Point(query), s) : scan(Point(query), s);
  if (count < k_) return sort_all(query, distances, indices);  // some distances are not numbers
  if (count <= RANK_LIMIT && write_ranked(s.found, s.index, count, k_, distances, indices)) return;
  Array<uint64_t> keys(count);
  for (int64_t i = 0; i < count; i++) keys[i] = sort_key(s.found[i], s.index[i]);
  write_sorted(keys, count, k_, distances, indices);
}

int64_t Neighbours::scan(const Point query, Scratch& s) const {
  const float *x = planes_.x, *y = planes_.y, *z = planes_.z;
  const int64_t padded = planes_.padded;
  float *distance = s.distance, *found = s.found;
  int32_t* indices = s.index;
  Float minima[MOST_PARTS * GROUPS];
  for (int64_t part = 0; part < parts_; part++) {
    Float least[GROUPS];
    for (Float& g : least) g = all(INF);
    for (int64_t i = part * BLOCK; i < padded; i += parts_ * BLOCK)
#pragma GCC unroll 8
      for (int t = 0; t < GROUPS; t++) {
        const int64_t j = i + t * LANES;
        const Float d = squared_distance(x + j, y + j, z + j, query);
        store(distance + j, d);
        least[t] = smaller(d, least[t]);
      }
    std::copy_n(least, GROUPS, minima + part * GROUPS);
  }
  const float limit = bound(minima, parts_, k_);
  int64_t count = 0;
  for (int64_t i = 0; i < padded; i += BLOCK)
#pragma GCC unroll 8
    for (int t = 0; t < GROUPS; t++) {
      const int64_t j = i + t * LANES;
      const uint32_t which = not_above(load(distance + j), all(limit));
      compact_lanes(indices + count, int32_t(j), which);
      count += __builtin_popcount(which);
    }
  store(indices + count, Int{});
  for (int64_t i = 0; i < count; i += 4)
#pragma GCC unroll 4
    for (int64_t j = i; j < i + 4; j++) found[j] = distance[indices[j]];
  if (count > k_ + SLACK) tighten(found, indices, count, k_, limit);
  return count;
}

int64_t Neighbours::scan_buckets(const Point query, Scratch& s) const {
  const Buckets<LEAF>& b = *buckets_;
  const float *x = b.points.x, *y = b.points.y, *z = b.points.z;
  const int32_t* original = b.original;
  const int64_t padded = b.padded;
  float *distance = s.distance, *found = s.found;
  int32_t* indices = s.index;
  Float closest = all(INF);
  for (int64_t i = 0; i < padded; i += LANES) {
    const Float d = b.box_distance(i, query, query);
    store(distance + i, d);
    closest = smaller(d, closest);
  }
  std::fill(distance + b.leaves, distance + padded, NONE);  // nothing is in those

  // the nearest boxes first, until there are k points to give a limit; then those within part of it; then the rest
  int64_t count = 0;
  float limit = INF, reach = smallest_lane(closest);
  for (bool last = false; !last;) {
    Float farther = all(INF);
    for (int64_t i = 0; i < padded; i += LANES) {
      const Float d = load(distance + i);
      const uint32_t near = not_above(d, all(reach));
      for (uint32_t rest = near; rest; rest &= rest - 1) {
        const int64_t first = (i + __builtin_ctz(rest)) * LEAF;
        distance[i + __builtin_ctz(rest)] = NONE;
        for (int64_t j = first; j < first + LEAF; j += LANES)
          count = keep(squared_distance(x + j, y + j, z + j, query), load(original + j), all(limit), found, indices,
                       count);
      }
      farther = smaller(d > all(reach) ? d : all(INF), farther);
    }
    const float next = smallest_lane(farther);
    const bool first_limit = limit == INF && count >= k_;
    last = reach >= limit || (limit == INF && !first_limit && next == INF);
    if (first_limit || count > k_ + SLACK) limit = tighten(found, indices, count, k_, limit);
    reach = limit == INF ? next : first_limit ? limit * FIRST_REACH : limit;
  }
  return count;
}

void Neighbours::sort_all(const float* query, float* distances, int64_t* indices) const {
  Array<uint64_t> keys(planes_.n);
  for (int64_t i = 0; i < planes_.n; i++) {
    const float point[3] = {planes_.x[i], planes_.y[i], planes_.z[i]};
    keys[i] = sort_key(squared_distance(point, query), uint32_t(i));
  }
  write_sorted(keys, planes_.n, k_, distances, indices);
}

// query (B, m, 3), points (B, n, 3) -> distances and indices (B, m, k)
extern "C" int64_t pointsmith_knn(const float* query, const float* points, int64_t batch, int64_t m, int64_t n, int64_t k,
                               float* distances, int64_t* indices, int64_t threads) {
  const bool split_queries = batch < threads;
  parallel(batch, split_queries ? 1 : threads, [&](int64_t begin, int64_t end) {
    Planes planes(n, GROUPS * LANES);
    for (int64_t b = begin; b < end; b++) {
      planes.fill(points + b * n * 3);
      const Neighbours cloud(planes, k, m);
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
            compact(found + count, iota() + int32_t(i), one);
            count += __builtin_popcount(one);
            compact(found + count, iota() + int32_t(j), two);
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
