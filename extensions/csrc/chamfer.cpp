// Chamfer distances both ways without the matrix of distances, and their gradient. Large clouds go into buckets: a leaf
// of queries looks only into the leaves of the other cloud that are nearer than what it has found.
#include <atomic>

#include "buckets.h"
#include "nearest.h"

namespace {

constexpr int64_t BUCKETS_FROM_POINTS = 512;
constexpr int PAIRS_AHEAD = 4;  // patches whose memory is asked for in advance
constexpr int LEAF = std::max(LANES, 8);  // small: two leaves are compared point by point

// Between two clouds in buckets.
template <bool INDEX>
class LeafSearch {
 public:
  LeafSearch(const Buckets<LEAF>& queries, const Buckets<LEAF>& points)
      : q_(queries), p_(points), gap_(points.padded) {}

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
          if (INDEX) indices[i] = index_[v][lane];
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
        const Float d = distance_from<INDEX>(x + v * LANES, y + v * LANES, z + v * LANES, point);
        const Int nearer = d < best[v], lower = (d == best[v]) & (candidate < index[v]);
        if (INDEX) index[v] = (nearer | lower) ? candidate : index[v];
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

// Both ways between clouds, pair by pair; memory for one pair.
template <bool INDEX>
class Pairs {
 public:
  Pairs(int64_t n, int64_t m) : x_(n), y_(m) {}

  void run(const float* x, const float* y, float* dist1, float* dist2, int64_t* idx1, int64_t* idx2) {
    if (x_.n > 0 && x_.n <= 4 * LANES && y_.n > 0) {
      patch(x, y, dist1, dist2, idx1, idx2);
      if (all_within(dist1, x_.n) && all_within(dist2, y_.n)) return;  // else some coordinate may not be finite
    }
    const bool finite = all_within(x, 3 * x_.n) && all_within(y, 3 * y_.n);
    if (finite && std::min(x_.n, y_.n) >= BUCKETS_FROM_POINTS) {
      Buckets<LEAF> one(x_.n), two(y_.n);
      one.fill(x);
      two.fill(y);
      LeafSearch<INDEX>(one, two).run(dist1, idx1);
      LeafSearch<INDEX>(two, one).run(dist2, idx2);
      return;
    }
    x_.fill(x);
    y_.fill(y);
    if (!finite) {
      nearest_broken(x_, y_, dist1, idx1);
      nearest_broken(y_, x_, dist2, idx2);
    } else {
      nearest<INDEX>(x_, y_, dist1, idx1);
      nearest<INDEX>(y_, x_, dist2, idx2);
    }
  }

 private:
  void patch(const float* x, const float* y, float* dist1, float* dist2, int64_t* idx1, int64_t* idx2) {
    prefetch(x + PAIRS_AHEAD * 3 * x_.n, 3 * x_.n);
    prefetch(y + PAIRS_AHEAD * 3 * y_.n, 3 * y_.n);
    x_.fill(x, INF);
    switch (x_.padded / LANES) {
      case 1: return Patch<1, INDEX>(x_).run(y, y_.n, dist1, dist2, idx1, idx2);
      case 2: return Patch<2, INDEX>(x_).run(y, y_.n, dist1, dist2, idx1, idx2);
      case 3: return Patch<3, INDEX>(x_).run(y, y_.n, dist1, dist2, idx1, idx2);
      case 4: return Patch<4, INDEX>(x_).run(y, y_.n, dist1, dist2, idx1, idx2);
    }
  }

  Planes x_, y_;
};

// In each lane the sum of the values that fall on it, or of their roots; a vector behind the n values is overwritten.
Float lane_sums(float* values, int64_t n, bool root) {
  constexpr int64_t BLOCK = 64 * LANES;  // a sum of sums loses less
  store(values + n, Float{});
  Float total{};
  for (int64_t first = 0; first < n; first += BLOCK) {
    Float part{};
    for (int64_t i = first; i < std::min(n, first + BLOCK); i += LANES)
      part += root ? square_root(load(values + i)) : load(values + i);
    total += part;
  }
  return total;
}

// Means of up to LANES rows of n values, or of their roots.
void row_means(float* rows, int64_t stride, int64_t count, int64_t n, bool root, float* means) {
  Float sums[LANES]{};
  for (int64_t i = 0; i < count; i++) sums[i] = lane_sums(rows + i * stride, n, root);
  const auto row = [&](int i) __attribute__((always_inline)) { return sums[i]; };
  const auto add = [](Float a, Float b) __attribute__((always_inline)) { return a + b; };
  const Float mean = join_rows<LANES>(0, row, add) / float(n);
  std::memcpy(means, &mean, count * sizeof(float));
}

// A point and a lane that is not used.
typedef float Quad __attribute__((vector_size(16)));
INLINE Quad quad(const float* p) { return Quad{p[0], p[1], p[2], 0}; }

// Pull both ends of every pair (i, index[i]) together, by the way between them times weight(i, way).
template <class Weight>
void pull(const float* x, const float* y, const int64_t* index, int64_t n, Quad* grad_x, Quad* grad_y, Weight weight) {
  for (int64_t i = 0; i < n; i++) {
    const Quad way = quad(x + 3 * i) - quad(y + 3 * index[i]);
    const Quad force = weight(i, way) * way;
    grad_x[i] += force;
    grad_y[index[i]] -= force;
  }
}

// The weight where distances count, not their squares: none where a distance is zero, as in the reference.
float weight_of_root(float share, Quad way) {
  const float length = std::sqrt(way[0] * way[0] + way[1] * way[1] + way[2] * way[2]);
  return length == 0 ? 0 : share / length;
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

// Means of the distances of every pair, or of their roots, each way, or of the whole batch; indices where asked for.
template <bool INDEX>
void means(const float* x, const float* y, int64_t batch, int64_t n, int64_t m, bool root, bool whole, float* mean1,
           float* mean2, int64_t* idx1, int64_t* idx2, int64_t threads) {
  const int64_t some = std::max(n, m) <= 64 ? LANES : 1;  // small pairs whose means are found together
  const int64_t row1 = round_up(n, LANES) + LANES, row2 = round_up(m, LANES) + LANES;
  Array<float> each1(batch), each2(batch);
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    Pairs<INDEX> pairs(n, m);
    Array<float> dist1(some * row1), dist2(some * row2);
    for (int64_t first = begin; first < end; first += some) {
      const int64_t count = std::min(some, end - first);
      for (int64_t i = 0, b = first; i < count; i++, b++)
        pairs.run(x + 3 * b * n, y + 3 * b * m, dist1 + i * row1, dist2 + i * row2, indices_from(idx1, b * n),
                  indices_from(idx2, b * m));
      row_means(dist1, row1, count, n, root, each1 + first);
      row_means(dist2, row2, count, m, root, each2 + first);
    }
  });
  if (whole) {
    row_means(each1, batch, 1, batch, false, mean1);
    row_means(each2, batch, 1, batch, false, mean2);
  } else {
    std::copy_n(+each1, batch, mean1);
    std::copy_n(+each2, batch, mean2);
  }
}

// Gradients of x and y; pull_pair(b, pulled_x, pulled_y) does the work for a pair. False if an index is out of range.
template <class Pull>
bool backward(const int64_t* idx1, const int64_t* idx2, int64_t batch, int64_t n, int64_t m, float* grad_x,
              float* grad_y, int64_t threads, Pull pull_pair) {
  std::atomic<bool> sound{true};
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    Array<Quad> pulled_x(n), pulled_y(m);
    for (int64_t b = begin; b < end; b++) {
      if (!all_below(idx1 + b * n, n, m) || !all_below(idx2 + b * m, m, n)) sound = false;
      if (!sound) break;
      std::fill_n(+pulled_x, n, Quad{});
      std::fill_n(+pulled_y, m, Quad{});
      pull_pair(b, pulled_x, pulled_y);
      write(pulled_x, n, grad_x + 3 * b * n);
      write(pulled_y, m, grad_y + 3 * b * m);
    }
  });
  return sound;
}

}  // namespace

// x (B, n, 3), y (B, m, 3) -> squared distances and indices of the nearest, (B, n) and (B, m)
extern "C" int64_t pointsmith_chamfer(const float* x, const float* y, int64_t batch, int64_t n, int64_t m, float* dist1,
                                      float* dist2, int64_t* idx1, int64_t* idx2, int64_t threads) {
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    Pairs<true> pairs(n, m);
    for (int64_t b = begin; b < end; b++) {
      const int64_t i = b * n, j = b * m;
      pairs.run(x + 3 * i, y + 3 * j, dist1 + i, dist2 + j, idx1 + i, idx2 + j);
    }
  });
  return 0;
}

// The means of those distances, or of their roots, each way: for every pair, (B,) and (B,), or for the whole batch, one
// and one; and the indices.
extern "C" int64_t pointsmith_chamfer_loss(const float* x, const float* y, int64_t batch, int64_t n, int64_t m,
                                           int64_t root, int64_t whole, float* mean1, float* mean2, int64_t* idx1,
                                           int64_t* idx2, int64_t threads) {
  means<true>(x, y, batch, n, m, root, whole, mean1, mean2, idx1, idx2, threads);
  return 0;
}

// The means alone.
extern "C" int64_t pointsmith_chamfer_means(const float* x, const float* y, int64_t batch, int64_t n, int64_t m,
                                            int64_t root, int64_t whole, float* mean1, float* mean2, int64_t threads) {
  means<false>(x, y, batch, n, m, root, whole, mean1, mean2, nullptr, nullptr, threads);
  return 0;
}

// From the gradients of the distances those of x and y; returns 1 if an index is out of range.
extern "C" int64_t pointsmith_chamfer_backward(const float* grad1, const float* grad2, const float* x, const float* y,
                                               const int64_t* idx1, const int64_t* idx2, int64_t batch, int64_t n,
                                               int64_t m, float* grad_x, float* grad_y, int64_t threads) {
  const auto pull_pair = [&](int64_t b, Quad* pulled_x, Quad* pulled_y) {
    const float *from = x + 3 * b * n, *to = y + 3 * b * m;
    pull(from, to, idx1 + b * n, n, pulled_x, pulled_y, [&](int64_t i, Quad) { return 2 * grad1[b * n + i]; });
    pull(to, from, idx2 + b * m, m, pulled_y, pulled_x, [&](int64_t i, Quad) { return 2 * grad2[b * m + i]; });
  };
  return !backward(idx1, idx2, batch, n, m, grad_x, grad_y, threads, pull_pair);
}

// From the gradients of the means those of x and y; returns 1 if an index is out of range.
extern "C" int64_t pointsmith_chamfer_loss_backward(const float* grad1, const float* grad2, const float* x,
                                                     const float* y, const int64_t* idx1, const int64_t* idx2,
                                                     int64_t batch, int64_t n, int64_t m, int64_t root, int64_t whole,
                                                     float* grad_x, float* grad_y, int64_t threads) {
  const auto pull_pair = [&](int64_t b, Quad* pulled_x, Quad* pulled_y) {
    const float *from = x + 3 * b * n, *to = y + 3 * b * m;
    const float clouds = whole ? float(batch) : 1;
    const float share1 = grad1[whole ? 0 : b] / clouds / float(n), share2 = grad2[whole ? 0 : b] / clouds / float(m);
    const auto each_way = [&](auto weight) {
      pull(from, to, idx1 + b * n, n, pulled_x, pulled_y, [&](int64_t, Quad way) { return weight(share1, way); });
      pull(to, from, idx2 + b * m, m, pulled_y, pulled_x, [&](int64_t, Quad way) { return weight(share2, way); });
    };
    root ? each_way(weight_of_root) : each_way([](float share, Quad) { return 2 * share; });
  };
  return !backward(idx1, idx2, batch, n, m, grad_x, grad_y, threads, pull_pair);
}
