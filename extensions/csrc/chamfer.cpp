// Chamfer distances both ways without the matrix of distances, and their gradient.
#include "common.h"

namespace {

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
  for (int v = 0; v < WIDTH; v++)
    for (int lane = 0; lane < LANES && i + v * LANES + lane < q.n; lane++) {
      distances[i + v * LANES + lane] = best[v][lane];
      indices[i + v * LANES + lane] = index[v][lane];
    }
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

void nearest(const Planes& q, const Planes& p, bool finite, float* distances, int64_t* indices) {
  if (!finite) return nearest_broken(q, p, distances, indices);
  int64_t i = 0;
  for (; i + 4 * LANES <= q.padded; i += 4 * LANES) nearest_block<4>(q, i, p, distances, indices);
  for (; i + 2 * LANES <= q.padded; i += 2 * LANES) nearest_block<2>(q, i, p, distances, indices);
  for (; i < q.padded; i += LANES) nearest_block<1>(q, i, p, distances, indices);
}

// Pull both ends of every pair (i, index[i]) together.
void pull(const float* x, const float* y, const int64_t* index, const float* grad, int64_t n, float* grad_x,
          float* grad_y) {
  for (int64_t i = 0; i < n; i++)
    for (int axis = 0; axis < 3; axis++) {
      const int64_t j = 3 * index[i] + axis;
      const float force = 2 * grad[i] * (x[3 * i + axis] - y[j]);
      grad_x[3 * i + axis] += force;
      grad_y[j] -= force;
    }
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
      nearest(one, two, finite, dist1 + b * n, idx1 + b * n);
      nearest(two, one, finite, dist2 + b * m, idx2 + b * m);
    }
  });
  return 0;
}

// Gradients of x and y; returns 1 if an index is out of range.
extern "C" int64_t pointsmith_chamfer_backward(const float* grad1, const float* grad2, const float* x, const float* y,
                                               const int64_t* idx1, const int64_t* idx2, int64_t batch, int64_t n,
                                               int64_t m, float* grad_x, float* grad_y, int64_t threads) {
  for (int64_t i = 0; i < batch * n; i++)
    if (idx1[i] < 0 || idx1[i] >= m) return 1;
  for (int64_t i = 0; i < batch * m; i++)
    if (idx2[i] < 0 || idx2[i] >= n) return 1;
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    std::fill(grad_x + begin * n * 3, grad_x + end * n * 3, 0.f);
    std::fill(grad_y + begin * m * 3, grad_y + end * m * 3, 0.f);
    for (int64_t b = begin; b < end; b++) {
      const int64_t i = b * n * 3, j = b * m * 3;
      pull(x + i, y + j, idx1 + b * n, grad1 + b * n, n, grad_x + i, grad_y + j);
      pull(y + j, x + i, idx2 + b * m, grad2 + b * m, m, grad_y + j, grad_x + i);
    }
  });
  return 0;
}
