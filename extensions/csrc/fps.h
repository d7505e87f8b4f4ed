// Farthest point sampling of one cloud.
#pragma once
#include "buckets.h"

// Choose `count` of the n points of `cloud` (n, 3), `start` first; if `mean` is not null it acts as a choice before.
// Scratch: `planes` for n points, in blocks of a multiple of 4 * LANES.
void sample(const float* cloud, Planes& planes, int64_t count, int64_t start, const float* mean, bool skip_near_origin,
            int64_t* chosen);
