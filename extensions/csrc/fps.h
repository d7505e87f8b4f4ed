// Farthest point sampling of clouds of one size.
#pragma once
#include "buckets.h"

// Choose `count` of the n points of each of `clouds` (batch, n, 3), `start` first; if `means` (batch, 3) is not null
// they act as a choice before. Writes chosen (batch, count).
void sample(const float* clouds, int64_t batch, int64_t n, int64_t count, int64_t start, const float* means,
            bool skip_near_origin, int64_t* chosen);
