// The first k points, in index order, strictly inside a ball.
//
// A warp serves one query, reads the cloud 32 points at a time and stops as soon as k are found.
#include "common.cuh"

#define WARPS 4  // queries of a block

// query (B, M, 3), points (B, n, 3), limit: the squared radius; indices (B, M, k), counts (B, M).
// Grid: a block for every 4 queries of the batch.
extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    ball_query(const float* query, const float* points, float limit, long long* indices, long long* counts,
               int num_query, int n, int k, int batch)
{
    const size_t row = (size_t)blockIdx.x * WARPS + warp_id();
    if (row >= (size_t)batch * num_query) return;
    const float* cloud = points + row / num_query * n * 3;
    const Point center = load_point(query + row * 3, 0);
    const int lane = lane_id();
    indices += row * k;
    int found = 0, first = 0;
    for (int base = 0; base < n && found < k; base += WARP) {
        const int j = base + lane;
        const bool inside = j < n && squared_distance(center, load_point(cloud, j)) < limit;
        const unsigned votes = __ballot_sync(ALL, inside);
        const int place = found + __popc(votes & ((1u << lane) - 1u));
        if (inside && place < k) indices[place] = j;
        if (found == 0 && votes) first = base + __ffs(votes) - 1;
        found += __popc(votes);
    }
    found = min(found, k);
    for (int i = found + lane; i < k; i += WARP) indices[i] = first;  // the first fills the rest; none: zeros
    if (lane == 0) counts[row] = found;
}
