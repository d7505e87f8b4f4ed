// Chamfer distances both ways without the matrix of distances, and their gradient. Large clouds go into buckets: a leaf
// of queries looks only into the leaves of the other cloud that are nearer than what it has found.
#include "buckets.h"

namespace {

constexpr int64_t BUCKETS_FROM_POINTS = 512;
constexpr int LEAF = std::max(LANES, 8);  // small: two leaves are compared point by point

// For WIDTH vectors of queries from position i: the nearest of m points, one point after the other.
template <int WIDTH>
INLINE void nearest_block(const Planes& q, int64_t i, const Planes& p, float* distances, int64_t* indices) {
  Float best[WIDTH];
  Int index[WIDTH];
  for (int v = 0; v < WIDTH; v++) best[v] = all(INF), index[v] = Int{};
  for (int64_t j = 0; j < p.n; j++) {
    const Point point(p.x[j], p.y[j], p.z[j]);
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; v++) {
      const int64_t at = i + v * LANES;
      const Float d = squared_distance(q.x + at, q.y + at, q.z + at, point);
      index[v] = d < best[v] ? all(int32_t(j)) : index[v];
      best[v] = smaller(d, best[v]);
    }
  }
  for (int64_t v = 0, at = i; v < WIDTH && at < q.n; v++, at += LANES)
    write(best[v], index[v], q.n - at, distances + at, indices + at);
}

// Both ways at once where x is WIDTH vectors long: every distance is computed once, and stays in registers. Distances are
// compared as whole numbers, which sort alike where nothing is negative, and at twice the rate.
template <int WIDTH>
void nearest_patch(const Planes& x, const Planes& y, float* dist1, float* dist2, int64_t* idx1, int64_t* idx2) {
  Int best[WIDTH], index[WIDTH], number{};
  for (int v = 0; v < WIDTH; v++) best[v] = (Int)all(INF), index[v] = Int{};
  for (int64_t j = 0; j < y.n; j++, number += 1) {
    const Point point(y.x[j], y.y[j], y.z[j]);
    Int d[WIDTH], least = (Int)all(INF);
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; v++) {
      d[v] = (Int)squared_distance(x.x + v * LANES, x.y + v * LANES, x.z + v * LANES, point);
      index[v] = d[v] < best[v] ? number : index[v];
      best[v] = smaller(d[v], best[v]);
      least = smaller(d[v], least);
    }
    const int32_t smallest = smallest_lane(least);
    std::memcpy(dist2 + j, &smallest, sizeof(float));
    uint64_t nearest = 0;  // a bit for each point of x at that distance: the first is the partner
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; v++) nearest |= uint64_t(bits(d[v] == all(smallest))) << (v * LANES);
    idx2[j] = __builtin_ctzll(nearest);
  }
  for (int v = 0, at = 0; v < WIDTH; v++, at += LANES) write((Float)best[v], index[v], x.n - at, dist1 + at, idx1 + at);
}

// As the reference has it where coordinates are not finite: a NaN is the nearest of all.
void nearest_broken(const Planes& q, const Planes& p, float* distances, int64_t* indices) {
  for (int64_t i = 0; i < q.n; i++) {
    const float query[3] = {q.x[i], q.y[i], q.z[i]};
    float best = INF;
    int64_t index = 0;
    for (int64_t j = 0; j < p.n && best == best; j++) {
      const float point[3] = {p.x[j], p.y[j], p.z[j]};
      const float d = squared_distance(query, point);
      if (d < best || d != d) best = d, index = j;
    }
    distances[i] = best, indices[i] = index;
  }
}

// The same for two clouds in buckets.
class LeafSearch {
 public:
  LeafSearch(const Buckets<LEAF>& queries, const Buckets<LEAF>& points) : q_(queries), p_(points), gap_(points.padded) {}

  void run(float* distances, int64_t* indices) {
    for (int64_t leaf = 0; leaf < q_.leaves; leaf++) {
      const int64_t first = leaf * LEAF;
      for (int v = 0; v < WIDTH; v++) {
        index_[v] = all(NO_INDEX);
        best_[v] = load(q_.original + first + v * LANES) == all(NO_INDEX) ? all(-1.f) : all(INF);  // padding is done
      }
      search(leaf);
      for (int v = 0; v < WIDTH; v++)
        for (int lane = 0; lane < LANES && first + v * LANES + lane < q_.points.n; lane++) {
          const int32_t i = q_.original[first + v * LANES + lane];
          distances[i] = best_[v][lane];
          indices[i] = index_[v][lane];
        }
    }
  }

 private:
  static constexpr int WIDTH = LEAF / LANES;

  void search(int64_t leaf) {
    const float* box = q_.boxes + leaf;
    const Point low(box[0], box[q_.padded], box[2 * q_.padded]);
    const Point high(box[3 * q_.padded], box[4 * q_.padded], box[5 * q_.padded]);
    Float closest = all(INF);
    for (int64_t b = 0; b < p_.padded; b += LANES) {
      const Float d = p_.box_distance(b, low, high);
      store(gap_ + b, d);
      closest = smaller(d, closest);
    }
    std::fill(gap_ + p_.leaves, gap_ + p_.padded, NONE);
    visit_within(leaf, smallest_lane(closest), false);
    visit_within(leaf, farthest_best(), true);
  }

  float farthest_best() const {
    Float most = best_[0];
    for (int v = 1; v < WIDTH; v++) most = larger(best_[v], most);
    return largest_lane(most);
  }

  void visit_within(int64_t leaf, float reach, bool shrink) {
    for (int64_t b = 0; b < p_.padded; b += LANES)
      for (uint32_t near = not_above(load(gap_ + b), all(reach)); near; near &= near - 1) {
        const int64_t other = b + __builtin_ctz(near);
        if (gap_[other] > reach) continue;
        gap_[other] = NONE;
        visit(leaf * LEAF, other * LEAF);
        if (shrink) reach = farthest_best();
      }
  }

  // Without a branch, which would be taken now and then; padding is near nothing.
  void visit(int64_t i, int64_t first) {
    const float *x = q_.points.x + i, *y = q_.points.y + i, *z = q_.points.z + i;
    Float best[WIDTH];
    Int index[WIDTH];
    for (int v = 0; v < WIDTH; v++) best[v] = best_[v], index[v] = index_[v];
#pragma GCC unroll 8
    for (int64_t j = first; j < first + LEAF; j++) {
      const Point point(p_.points.x[j], p_.points.y[j], p_.points.z[j]);
      const Int candidate = all(p_.original[j]);
      for (int v = 0; v < WIDTH; v++) {
        const Float d = squared_distance(x + v * LANES, y + v * LANES, z + v * LANES, point);
        const Int nearer = d < best[v], lower = (d == best[v]) & (candidate < index[v]);
        index[v] = (nearer | lower) ? candidate : index[v];
        best[v] = smaller(d, best[v]);
      }
    }
    for (int v = 0; v < WIDTH; v++) best_[v] = best[v], index_[v] = index[v];
  }

  const Buckets<LEAF> &q_, &p_;
  Array<float> gap_;
  Float best_[WIDTH];
  Int index_[WIDTH];
};

void nearest(const Planes& q, const Planes& p, float* distances, int64_t* indices) {
  int64_t i = 0;
  for (; i + 4 * LANES <= q.padded; i += 4 * LANES) nearest_block<4>(q, i, p, distances, indices);
  for (; i + 2 * LANES <= q.padded; i += 2 * LANES) nearest_block<2>(q, i, p, distances, indices);
  for (; i < q.padded; i += LANES) nearest_block<1>(q, i, p, distances, indices);
}

// Both ways between two clouds.
void nearest_both(const Planes& x, const Planes& y, bool finite, float* dist1, float* dist2, int64_t* idx1,
                  int64_t* idx2) {
  if (!finite) {
    nearest_broken(x, y, dist1, idx1);
    nearest_broken(y, x, dist2, idx2);
  } else if (x.n > 0 && x.padded <= 4 * LANES) {
    switch (x.padded / LANES) {
      case 1: return nearest_patch<1>(x, y, dist1, dist2, idx1, idx2);
      case 2: return nearest_patch<2>(x, y, dist1, dist2, idx1, idx2);
      case 3: return nearest_patch<3>(x, y, dist1, dist2, idx1, idx2);
      case 4: return nearest_patch<4>(x, y, dist1, dist2, idx1, idx2);
    }
  } else if (std::min(x.n, y.n) < BUCKETS_FROM_POINTS) {
    nearest(x, y, dist1, idx1);
    nearest(y, x, dist2, idx2);
  } else {
    Buckets<LEAF> one(x.n), two(y.n);
    one.fill(x);
    two.fill(y);
    LeafSearch(one, two).run(dist1, idx1);
    LeafSearch(two, one).run(dist2, idx2);
  }
}

// A point and a lane that is not used.
typedef float Quad __attribute__((vector_size(16)));
INLINE Quad quad(const float* p) { return Quad{p[0], p[1], p[2], 0}; }

// Pull both ends of every pair (i, index[i]) together.
void pull(const float* x, const float* y, const int64_t* index, const float* grad, int64_t n, Quad* grad_x,
          Quad* grad_y) {
  for (int64_t i = 0; i < n; i++) {
    const Quad force = 2 * grad[i] * (quad(x + 3 * i) - quad(y + 3 * index[i]));
    grad_x[i] += force;
    grad_y[index[i]] -= force;
  }
}

void write(const Quad* points, int64_t n, float* cloud) {
  for (int64_t i = 0; i < n; i++)
    for (int axis = 0; axis < 3; axis++) cloud[3 * i + axis] = points[i][axis];
}

bool all_below(const int64_t* index, int64_t n, int64_t limit) {
  bool bad = false;
  for (int64_t i = 0; i < n; i++) bad |= uint64_t(index[i]) >= uint64_t(limit);
  return !bad;
}

}  // namespace

// x (B, n, 3), y (B, m, 3) -> squared distances and indices of the nearest, (B, n) and (B, m)
extern "C" int64_t pointsmith_chamfer(const float* x, const float* y, int64_t batch, int64_t n, int64_t m, float* dist1,
                                   float* dist2, int64_t* idx1, int64_t* idx2, int64_t threads) {
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    Planes one(n), two(m);
    for (int64_t b = begin; b < end; b++) {
      const float *cloud1 = x + b * n * 3, *cloud2 = y + b * m * 3;
      const bool finite = all_within(cloud1, n * 3) && all_within(cloud2, m * 3);
      one.fill(cloud1);
      two.fill(cloud2);
      nearest_both(one, two, finite, dist1 + b * n, dist2 + b * m, idx1 + b * n, idx2 + b * m);
    }
  });
  return 0;
}

// Gradients of x and y; returns 1 if an index is out of range.
extern "C" int64_t pointsmith_chamfer_backward(const float* grad1, const float* grad2, const float* x, const float* y,
                                               const int64_t* idx1, const int64_t* idx2, int64_t batch, int64_t n,
                                               int64_t m, float* grad_x, float* grad_y, int64_t threads) {
  if (!all_below(idx1, batch * n, m) || !all_below(idx2, batch * m, n)) return 1;
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    Array<Quad> pulled_x(n), pulled_y(m);
    for (int64_t b = begin; b < end; b++) {
      const int64_t i = b * n * 3, j = b * m * 3;
      std::fill_n(+pulled_x, n, Quad{});
      std::fill_n(+pulled_y, m, Quad{});
      pull(x + i, y + j, idx1 + b * n, grad1 + b * n, n, pulled_x, pulled_y);
      pull(y + j, x + i, idx2 + b * m, grad2 + b * m, m, pulled_y, pulled_x);
      write(pulled_x, n, grad_x + i);
      write(pulled_y, m, grad_y + j);
    }
  });
  return 0;
}
