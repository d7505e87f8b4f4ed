// A cloud in its standard place: mean 0, largest radius 1. It is read once and stays in the cache for the rest.
#include "common.h"

namespace {

float mean_of(const float* values, int64_t n) {
  Float total = all(0.f);
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) total += load(values + i);
  float rest = sum(total);
  for (; i < n; i++) rest += values[i];
  return rest / n;
}

}  // namespace

// points (B, n, 3) -> out (B, n, 3)
extern "C" int64_t pointsmith_normalize(const float* points, int64_t batch, int64_t n, float* out, int64_t threads) {
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    Planes p(n);
    for (int64_t b = begin; b < end; b++) {
      p.fill(points + b * n * 3);
      const float mean[3] = {mean_of(p.x, n), mean_of(p.y, n), mean_of(p.z, n)};
      const Point center(mean);
      Float farthest = all(0.f);  // padding is NaN and counts for nothing
      for (int64_t i = 0; i < p.padded; i += LANES)
        farthest = larger(squared_distance(p.x + i, p.y + i, p.z + i, center), farthest);
      float radius = std::max(std::sqrt(largest_lane(farthest)), 1e-12f);
      if (!all_within(mean, 3)) radius = NONE;  // a broken cloud is broken as a whole
      Float shift[3];  // x, y, z, x, ... as they lie in a cloud
      for (int i = 0; i < 3 * LANES; i++) shift[i / LANES][i % LANES] = mean[i % 3];
      const float* from = points + b * n * 3;
      float* to = out + b * n * 3;
      int64_t i = 0;
      for (; i + 3 * LANES <= 3 * n; i += 3 * LANES)
        for (int v = 0; v < 3; v++) store(to + i + v * LANES, (load(from + i + v * LANES) - shift[v]) / all(radius));
      for (; i < 3 * n; i++) to[i] = (from[i] - mean[i % 3]) / radius;
    }
  });
  return 0;
}
