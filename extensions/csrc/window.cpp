// Attention in windows: scores, weighted sums, and the transpose of the sums. Row r looks at the `window` rows from
// start(r). Every output row is written by one thread, in a fixed order.
#include "common.h"

namespace {

struct Windows {
  const int64_t n, window, before;
  Windows(int64_t n, int64_t window) : n(n), window(window), before((window - 1) / 2) {}
  int64_t start(int64_t r) const { return std::min(std::max<int64_t>(r - before, 0), n - window); }
  // rows whose windows hold row t
  int64_t first(int64_t t) const { return t < window ? 0 : t - window + 1 + before; }
  int64_t last(int64_t t) const { return t >= n - window ? n - 1 : t + before; }
};

INLINE float dot(const float* a, const float* b, int64_t channels) {
  Float total{};
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) total = fused(load(a + c), load(b + c), total);
  float rest = 0;
  for (; c < channels; c++) rest += a[c] * b[c];
  return sum(total) + rest;
}

INLINE void add(float* __restrict row, const float* __restrict source, float weight, int64_t channels) {
  const Float w = all(weight);
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) store(row + c, fused(load(source + c), w, load(row + c)));
  for (; c < channels; c++) row[c] += source[c] * weight;
}

}  // namespace

// rows, keys (B, n, C) -> scores (B, n, w)
extern "C" int64_t pointsmith_window_scores(const float* rows, const float* keys, int64_t batch, int64_t n,
                                            int64_t window, int64_t channels, float* scores, int64_t threads) {
  const Windows windows(n, window);
  parallel(batch * n, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float* key = keys + (i / n * n + windows.start(i % n)) * channels;
      for (int64_t j = 0; j < window; j++)
        scores[i * window + j] = dot(rows + i * channels, key + j * channels, channels);
    }
  });
  return 0;
}

// weights (B, n, w), values (B, n, C) -> out (B, n, C)
extern "C" int64_t pointsmith_window_mix(const float* weights, const float* values, int64_t batch, int64_t n,
                                         int64_t window, int64_t channels, float* out, int64_t threads) {
  const Windows windows(n, window);
  parallel(batch * n, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float* value = values + (i / n * n + windows.start(i % n)) * channels;
      std::fill(out + i * channels, out + (i + 1) * channels, 0.f);
      for (int64_t j = 0; j < window; j++)
        add(out + i * channels, value + j * channels, weights[i * window + j], channels);
    }
  });
  return 0;
}

// weights (B, n, w), rows (B, n, C) -> out (B, n, C)
extern "C" int64_t pointsmith_window_spread(const float* weights, const float* rows, int64_t batch, int64_t n,
                                            int64_t window, int64_t channels, float* out, int64_t threads) {
  const Windows windows(n, window);
  parallel(batch * n, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t cloud = i / n * n, t = i % n;
      std::fill(out + i * channels, out + (i + 1) * channels, 0.f);
      for (int64_t r = windows.first(t); r <= windows.last(t); r++)
        add(out + i * channels, rows + (cloud + r) * channels, weights[(cloud + r) * window + t - windows.start(r)],
            channels);
    }
  });
  return 0;
}
