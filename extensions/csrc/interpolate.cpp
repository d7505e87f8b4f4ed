// The three nearest known points, and interpolation of features from them (channels last).
#include "knn.h"

namespace {

constexpr int64_t SCAN_FROM = 256;  // known points from which packing survivors beats insertion

// LANES queries side by side: every known point is inserted into the three best of each, which few still change.
void three_nearest(const Planes& q, const float* known, int64_t m, float* distances, int64_t* indices) {
  for (int64_t i = 0; i < q.padded; i += LANES) {
    Float d0 = all(INF), d1 = d0, d2 = d0;
    Int i0{}, i1{}, i2{};
    for (int64_t j = 0; j < m; j++) {
      const Float d = squared_distance(q.x + i, q.y + i, q.z + i, Point(known + 3 * j));
      if (!below(d, d2)) continue;
      const Int index = all(int32_t(j)), nearer0 = d < d0, nearer1 = d < d1, nearer2 = d < d2;
      i2 = nearer1 ? i1 : nearer2 ? index : i2;
      d2 = nearer1 ? d1 : nearer2 ? d : d2;
      i1 = nearer0 ? i0 : nearer1 ? index : i1;
      d1 = nearer0 ? d0 : nearer1 ? d : d1;
      i0 = nearer0 ? index : i0;
      d0 = nearer0 ? d : d0;
    }
    const Float d[3] = {d0, d1, d2};
    const Int index[3] = {i0, i1, i2};
    for (int lane = 0; lane < LANES && i + lane < q.n; lane++)
      for (int t = 0; t < 3; t++) {
        distances[(i + lane) * 3 + t] = d[t][lane];
        indices[(i + lane) * 3 + t] = index[t][lane];
      }
  }
}

// -1 counts from the end, as in PyTorch; false if any index is out of range.
bool valid(const int64_t* indices, int64_t count, int64_t m) {
  bool good = true;
  for (int64_t i = 0; i < count; i++) good &= indices[i] >= -m && indices[i] < m;
  return good;
}
INLINE int64_t wrap(int64_t index, int64_t m) { return index < 0 ? index + m : index; }

// One point's features: the sum of k rows of a cloud (m, C) times their weights.
struct Mix {
  const float* cloud;
  const int64_t* indices;
  const float* weights;
  const int64_t m, channels, k;

  void write(float* out) const {
    int64_t c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES) write_vectors<4>(c, out);
    for (; c + LANES <= channels; c += LANES) write_vectors<1>(c, out);
    for (; c < channels; c++) {
      float total = 0;
      for (int64_t t = 0; t < k; t++) total += source(t)[c] * weights[t];
      out[c] = total;
    }
  }

 private:
  const float* source(int64_t t) const { return cloud + wrap(indices[t], m) * channels; }

  template <int WIDTH>
  METHOD void write_vectors(int64_t c, float* out) const {
    Float total[WIDTH]{};
    for (int64_t t = 0; t < k; t++)
      for (int v = 0; v < WIDTH; v++) total[v] += load(source(t) + c + v * LANES) * weights[t];
    for (int v = 0; v < WIDTH; v++) store(out + c + v * LANES, total[v]);
  }
};

}  // namespace

// unknown (B, n, 3), known (B, m, 3) -> distances and indices (B, n, 3); places without a point: inf, 0. Returns 1 and
// does nothing if coordinates are not finite or too large for distances below inf.
extern "C" int64_t pointsmith_three_nn(const float* unknown, const float* known, int64_t batch, int64_t n, int64_t m,
                                       float* distances, int64_t* indices, int64_t threads) {
  constexpr float LARGE = 1e18f;
  if (!all_within(unknown, batch * n * 3, LARGE) || !all_within(known, batch * m * 3, LARGE)) return 1;
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    Planes queries(n), points(m, 8 * LANES);
    for (int64_t b = begin; b < end; b++) {
      const float *query = unknown + b * n * 3, *cloud = known + b * m * 3;
      float* distance = distances + b * n * 3;
      int64_t* index = indices + b * n * 3;
      if (m < SCAN_FROM) {
        queries.fill(query);
        three_nearest(queries, cloud, m, distance, index);
        continue;
      }
      const Neighbours neighbours(cloud, points, 3, n);
      Neighbours::Scratch scratch(neighbours);
      for (int64_t i = 0; i < n; i++) neighbours.search(query + i * 3, scratch, distance + i * 3, index + i * 3);
    }
  });
  return 0;
}

// features (B, m, C), indices and weights (B, n, k) -> out (B, n, C); returns 1 if an index is out of range.
extern "C" int64_t pointsmith_three_interpolate(const float* __restrict features, const int64_t* indices,
                                                const float* weights, int64_t batch, int64_t m, int64_t channels,
                                                int64_t n, int64_t k, float* __restrict out, int64_t threads) {
  if (!valid(indices, batch * n * k, m)) return 1;
  in_large_pages(out, batch * n * channels);
  parallel(batch * n, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const Mix row{features + i / n * m * channels, indices + i * k, weights + i * k, m, channels, k};
      row.write(out + i * channels);
    }
  });
  return 0;
}

// grad (B, n, C) -> gradients of features (B, m, C) and weights (B, n, k); returns 1 if an index is out of range.
extern "C" int64_t pointsmith_three_interpolate_backward(const float* __restrict grad, const float* __restrict features,
                                                         const int64_t* indices, const float* weights, int64_t batch,
                                                         int64_t m, int64_t channels, int64_t n, int64_t k,
                                                         float* __restrict grad_features, float* grad_weights,
                                                         int64_t threads) {
  if (!valid(indices, batch * n * k, m)) return 1;
  in_large_pages(grad_features, batch * m * channels);
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    std::fill(grad_features + begin * m * channels, grad_features + end * m * channels, 0.f);
    for (int64_t i = begin * n; i < end * n; i++)
      for (int64_t t = 0; t < k; t++) {
        const int64_t source = (i / n * m + wrap(indices[i * k + t], m)) * channels;
        const float weight = weights[i * k + t];
        const float* row = grad + i * channels;
        Float dot{};
        int64_t c = 0;
        for (; c + LANES <= channels; c += LANES) {
          store(grad_features + source + c, load(grad_features + source + c) + load(row + c) * weight);
          dot += load(row + c) * load(features + source + c);
        }
        float total = sum(dot);
        for (; c < channels; c++) {
          grad_features[source + c] += row[c] * weight;
          total += row[c] * features[source + c];
        }
        grad_weights[i * k + t] = total;
      }
  });
  return 0;
}
