// Groups of a cloud in one call: farthest points as centres, their nearest neighbours, relative to the centre.
#include "fps.h"
#include "knn.h"

// points (B, n, 3) -> neighborhood (B, groups, size, 3), center (B, groups, 3), indices (B, groups, size)
extern "C" int64_t pointsmith_group(const float* points, int64_t batch, int64_t n, int64_t groups, int64_t size,
                                 int64_t skip_near_origin, float* neighborhood, float* center, int64_t* indices,
                                 int64_t threads) {
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    Planes planes(n, 8 * LANES);
    Array<int64_t> chosen((end - begin) * groups);
    sample(points + begin * n * 3, end - begin, n, groups, 0, nullptr, skip_near_origin, chosen);
    for (int64_t b = begin; b < end; b++) {
      const float* cloud = points + b * n * 3;
      const Neighbours neighbours(cloud, planes, size, groups);
      Neighbours::Scratch scratch(neighbours);
      for (int64_t g = 0; g < groups; g++) {
        float* c = std::copy_n(cloud + chosen[(b - begin) * groups + g] * 3, 3, center + (b * groups + g) * 3) - 3;
        int64_t* members = indices + (b * groups + g) * size;
        neighbours.search(c, scratch, nullptr, members);
        float* out = neighborhood + (b * groups + g) * size * 3;
        for (int64_t i = 0; i < size; i++)
          for (int axis = 0; axis < 3; axis++) *out++ = cloud[members[i] * 3 + axis] - c[axis];
      }
    }
  });
  return 0;
}
