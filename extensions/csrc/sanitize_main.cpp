// Calls every kernel on random and edge inputs; built by scripts/sanitize.sh with the sanitizers of the compiler, and
// no part of the library.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

using Floats = std::vector<float>;
using Indices = std::vector<int64_t>;

extern "C" {
int64_t pointsmith_farthest_point_sample(const float*, const float*, int64_t, int64_t, int64_t, int64_t, int64_t,
                                         int64_t*, int64_t);
int64_t pointsmith_knn(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float*, int64_t*, int64_t);
int64_t pointsmith_ball_query(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float, int64_t*, int64_t*,
                              int64_t);
int64_t pointsmith_group(const float*, int64_t, int64_t, int64_t, int64_t, int64_t, float*, float*, int64_t*, int64_t);
int64_t pointsmith_three_nn(const float*, const float*, int64_t, int64_t, int64_t, float*, int64_t*, int64_t);
int64_t pointsmith_three_interpolate(const float*, const int64_t*, const float*, int64_t, int64_t, int64_t, int64_t,
                                     int64_t, float*, int64_t);
int64_t pointsmith_three_interpolate_backward(const float*, const float*, const int64_t*, const float*, int64_t,
                                              int64_t, int64_t, int64_t, int64_t, float*, float*, int64_t);
int64_t pointsmith_chamfer(const float*, const float*, int64_t, int64_t, int64_t, float*, float*, int64_t*, int64_t*,
                           int64_t);
int64_t pointsmith_chamfer_loss(const float*, const float*, int64_t, int64_t, int64_t, int64_t, int64_t, float*, float*,
                                int64_t*, int64_t*, int64_t);
int64_t pointsmith_chamfer_means(const float*, const float*, int64_t, int64_t, int64_t, int64_t, int64_t, float*,
                                 float*, int64_t);
int64_t pointsmith_chamfer_loss_backward(const float*, const float*, const float*, const float*, const int64_t*,
                                          const int64_t*, int64_t, int64_t, int64_t, int64_t, int64_t, float*, float*,
                                          int64_t);
int64_t pointsmith_chamfer_backward(const float*, const float*, const float*, const float*, const int64_t*,
                                    const int64_t*, int64_t, int64_t, int64_t, float*, float*, int64_t);
int64_t pointsmith_approx_match_cost(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float*, float*,
                                     float*, int64_t);
int64_t pointsmith_normalize(const float*, int64_t, int64_t, float*, int64_t);
int64_t pointsmith_auction(const float*, const float*, int64_t, int64_t, int64_t, double, int64_t*, int64_t);
int64_t pointsmith_sort_order(const float*, int64_t, int64_t, int64_t*, int64_t);
int64_t pointsmith_window_scores(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float*, int64_t);
int64_t pointsmith_window_mix(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float*, int64_t);
int64_t pointsmith_window_spread(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float*, int64_t);
int64_t pointsmith_norm_statistics(const void*, const void*, int64_t, int64_t, int64_t, int64_t, float*, float*,
                                   int64_t);
int64_t pointsmith_norm_relu(const void*, const void*, int64_t, int64_t, int64_t, int64_t, const float*, const float*,
                             const float*, const float*, void*, int64_t);
int64_t pointsmith_norm_relu_backward(const void*, const void*, const void*, int64_t, int64_t, int64_t, int64_t,
                                      const float*, const float*, const float*, const float*, void*, void*, float*,
                                      float*, int64_t);
int64_t pointsmith_group_max(const void*, int64_t, int64_t, int64_t, int64_t, void*, int32_t*, int64_t);
int64_t pointsmith_group_max_backward(const void*, const int32_t*, int64_t, int64_t, int64_t, int64_t, void*, int64_t);
int64_t pointsmith_lift(const float*, int64_t, int64_t, int64_t, const float*, const float*, const float*, void*,
                        int64_t);
int64_t pointsmith_lift_sums(const void*, const float*, int64_t, int64_t, int64_t, const float*, const float*,
                             const float*, double*, int64_t);
}

static std::mt19937 generator(0);

// kind 0 normal, 1 lattice, 2 one point, 3 huge, 4 with NaN, 5 with infinity
static Floats cloud(int64_t batch, int64_t n, int kind) {
  std::normal_distribution<float> normal;
  Floats points(batch * n * 3);
  for (float& v : points) {
    v = kind == 2 ? 0.25f : normal(generator);
    if (kind == 1) v = std::round(v);
    if (kind == 3) v *= 3e37f;
    if (kind >= 4 && generator() % 20 == 0)
      v = kind == 4 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  }
  return points;
}

static void run(int64_t batch, int64_t n, int64_t m, int64_t k, int kind, int64_t threads) {
  const Floats x = cloud(batch, n, kind), y = cloud(batch, m, kind == 2 ? 0 : kind), means(batch * 3, 0.1f);
  Indices idx1(batch * n), idx2(batch * m), chosen(batch * k), found(batch * m * k), counts(batch * m);
  Floats d1(batch * n), d2(batch * m), distances(batch * m * k), gx(x.size()), gy(y.size());
  pointsmith_farthest_point_sample(x.data(), nullptr, batch, n, k, n - 1, 1, chosen.data(), threads);
  pointsmith_farthest_point_sample(x.data(), means.data(), batch, n, k, 0, 0, chosen.data(), threads);
  pointsmith_knn(y.data(), x.data(), batch, m, n, k, distances.data(), found.data(), threads);
  pointsmith_ball_query(y.data(), x.data(), batch, m, n, k, 0.5f, found.data(), counts.data(), threads);
  Floats neighborhood(batch * k * k * 3), center(batch * k * 3);
  Indices members(batch * k * k);
  pointsmith_group(x.data(), batch, n, k, k, 1, neighborhood.data(), center.data(), members.data(), threads);
  pointsmith_chamfer(x.data(), y.data(), batch, n, m, d1.data(), d2.data(), idx1.data(), idx2.data(), threads);
  Floats mean1(batch + 1), mean2(batch + 1);
  pointsmith_chamfer_means(x.data(), y.data(), batch, n, m, n % 2, m % 2, mean1.data(), mean2.data(), threads);
  pointsmith_chamfer_loss(x.data(), y.data(), batch, n, m, n % 2, m % 2, mean1.data(), mean2.data(), idx1.data(),
                          idx2.data(), threads);
  pointsmith_chamfer_loss_backward(mean1.data(), mean2.data(), x.data(), y.data(), idx1.data(), idx2.data(), batch, n,
                                    m, n % 2, m % 2, gx.data(), gy.data(), threads);
  pointsmith_chamfer_backward(d1.data(), d2.data(), x.data(), y.data(), idx1.data(), idx2.data(), batch, n, m,
                              gx.data(), gy.data(), threads);

  pointsmith_normalize(x.data(), batch, n, gx.data(), threads);

  const int64_t channels = 1 + k % 37;
  Floats near(batch * n * 3), features(batch * m * channels, 1.f), out(batch * n * channels), weights(batch * n * 3);
  Indices three(batch * n * 3, 0);
  pointsmith_three_nn(x.data(), y.data(), batch, n, m, near.data(), three.data(), threads);
  Floats grad_features(features.size()), grad_weights(weights.size());
  pointsmith_three_interpolate(features.data(), three.data(), weights.data(), batch, m, channels, n, 3, out.data(),
                               threads);
  pointsmith_three_interpolate_backward(out.data(), features.data(), three.data(), weights.data(), batch, m, channels,
                                        n, 3, grad_features.data(), grad_weights.data(), threads);
  if (!three.empty()) {
    three.back() = m;  // an index outside must be refused
    if (pointsmith_three_interpolate(features.data(), three.data(), weights.data(), batch, m, channels, n, 3,
                                     out.data(), threads) != 1)
      std::puts("an index outside was taken"), std::exit(1);
  }
  Indices order(x.size());
  pointsmith_sort_order(x.data(), batch, 3 * n, order.data(), threads);
  const int64_t window = std::min(k, n);
  Floats scores(batch * n * window), rows(batch * n * channels, 1.f), mixed(rows.size());
  pointsmith_window_scores(rows.data(), rows.data(), batch, n, window, channels, scores.data(), threads);
  pointsmith_window_mix(scores.data(), rows.data(), batch, n, window, channels, mixed.data(), threads);
  pointsmith_window_spread(scores.data(), rows.data(), batch, n, window, channels, mixed.data(), threads);
  if (n * m > 300 * 300) return;
  Floats cost(batch);
  for (int squared = 0; squared < 2; squared++) {
    pointsmith_approx_match_cost(x.data(), y.data(), batch, n, m, squared, cost.data(), gx.data(), gy.data(), threads);
    for (double eps : {0.1, 1e-3, 1e-9})
      pointsmith_auction(x.data(), x.data(), batch, n, squared, eps, idx1.data(), threads);
  }
}

// The passes over features, T float or uint16_t (the bits of a bfloat16).
template <class T>
static void run_features(int64_t patches, int64_t size, int64_t channels, int64_t threads) {
  const int64_t half = sizeof(T) == 2, rows = patches * size;
  std::vector<T> x(rows * channels, T(1)), shared(patches * channels, T(2)), y(x), grad_x(x), grad_shared(shared);
  for (T& v : x) v = T(generator() % 0x4000);
  Floats mean(channels), inverse(channels, 1.f), weight(3 * channels, 0.5f), points = cloud(1, rows, 0);
  std::vector<int32_t> index(patches * channels);
  std::vector<double> sums(4 * channels);
  for (const void* added : {static_cast<const void*>(nullptr), static_cast<const void*>(shared.data())}) {
    void* grad_added = added ? grad_shared.data() : nullptr;
    pointsmith_norm_statistics(x.data(), added, rows, size, channels, half, mean.data(), inverse.data(), threads);
    pointsmith_norm_relu(x.data(), added, rows, size, channels, half, weight.data(), mean.data(), mean.data(),
                         inverse.data(), y.data(), threads);
    pointsmith_norm_relu_backward(y.data(), x.data(), added, rows, size, channels, half, weight.data(), mean.data(),
                                  mean.data(), inverse.data(), grad_x.data(), grad_added, mean.data(), inverse.data(),
                                  threads);
  }
  pointsmith_group_max(x.data(), patches, size, channels, half, shared.data(), index.data(), threads);
  pointsmith_group_max_backward(shared.data(), index.data(), patches, size, channels, half, y.data(), threads);
  pointsmith_lift(points.data(), rows, channels, half, weight.data(), mean.data(), mean.data(), y.data(), threads);
  pointsmith_lift_sums(y.data(), points.data(), rows, channels, half, weight.data(), mean.data(), mean.data(),
                       sums.data(), threads);
}

int main() {
  for (int64_t channels : {1, 7, 16, 37, 130})
    for (int64_t patches : {1, 3, 70}) {
      run_features<float>(patches, 1 + channels % 33, channels, 2);
      run_features<uint16_t>(patches, 1 + channels % 33, channels, 1);
    }
  for (int kind = 0; kind < 6; kind++) {
    run(0, 5, 5, 2, kind, 1);
    run(1, 1, 1, 1, kind, 2);
    run(2, 7, 1, 7, kind, 1);
    run(3, 33, 20, 33, kind, 2);
    run(1, 129, 140, 129, kind, 2);
    run(2, 300, 270, 16, kind, 1);
    run(1, 2100, 1100, 16, kind, 2);
    run(1, 8200, 130, 512, kind, 1);
  }
  std::puts("every kernel ran");
}
