// The cost of the approxmatch plan and its gradients; the plan itself, n x m numbers, is never stored.
//
// A round of the matching needs three passes over all pairs. A pass sums over rows (points of x) or columns (points of
// y), and every pass recomputes the distances and exponentials it needs:
//   columns: what all x offer to y_j, and at once the pull of y_j towards them, known up to the accepted part;
//   rows:    what y accept of x_i, its cost and its pull, and at once the denominator of x_i for the next round.
// So a round takes two launches, and memory stays at O(n + m). Sums have a fixed order.
// A block has 32 rows (columns), one a lane, and its eight warps share the other cloud.
#include "common.cuh"

#define SECTIONS 8
#define TILE 256
#define TINY 1e-9f

// Sums `count` values of a lane over the eight warps, into the first warp.
template <int COUNT>
__device__ __forceinline__ void add_sections(float (&values)[COUNT])
{
    __shared__ float parts[COUNT][SECTIONS][WARP];
    const int lane = lane_id();
#pragma unroll
    for (int i = 0; i < COUNT; i++) parts[i][warp_id()][lane] = values[i];
    __syncthreads();
    if (warp_id() != 0) return;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        values[i] = 0;
        for (int s = 0; s < SECTIONS; s++) values[i] += parts[i][s][lane];
    }
}

// The cost of a unit of mass, and the factor of its gradient: twice the difference, or the unit vector.
__device__ __forceinline__ float unit_cost(float d, int squared) { return squared ? d : sqrtf(d); }

__device__ __forceinline__ float unit_pull(float cost, int squared)
{
    return squared ? 2.f : 1.f / fmaxf(cost, 1e-10f);
}

// The end of the round at level `level` and the start of that at `next`, for the points of x.
// accepted (B, m) is the room of y times the accepted part, right (B, m) the room after the round; left, share, cost
// (B, n) and grad (B, n, 3) are updated. Grid: B * ceil(n / 32) blocks.
extern "C" __global__ void __launch_bounds__(SECTIONS * WARP)
    match_rows(const float* x, const float* y, const float* accepted, const float* right, float* left, float* share,
               float* cost, float* grad, int n, int m, float level, float next, int squared)
{
    __shared__ float4 tile[TILE];
    __shared__ float room[TILE];
    const unsigned parts = (n + WARP - 1) / WARP;
    const size_t cloud = blockIdx.x / parts;
    const int row = blockIdx.x % parts * WARP + lane_id();
    const Point p = load_point(x + cloud * n * 3, min(row, n - 1));
    float sums[6] = {0, 0, 0, 0, 0, 0};  // given, pull (x, y, z), cost, denominator
    for (int base = 0; base < m; base += TILE) {
        const int count = min(TILE, m - base), j = base + threadIdx.x;
        __syncthreads();
        if ((int)threadIdx.x < count) {
            const Point q = load_point(y + cloud * m * 3, j);
            tile[threadIdx.x] = {q.x, q.y, q.z, accepted[cloud * m + j]};
            room[threadIdx.x] = right[cloud * m + j];
        }
        __syncthreads();
        for (int t = warp_id(); t < count; t += SECTIONS) {
            const float4 q = tile[t];
            const Point away = minus(p, {q.x, q.y, q.z});
            const float d = squared_norm(away), c = unit_cost(d, squared);
            const float mass = expf(d * -level) * q.w, force = mass * unit_pull(c, squared);
            sums[0] += mass;
            sums[1] += force * away.x;
            sums[2] += force * away.y;
            sums[3] += force * away.z;
            sums[4] += mass * c;
            sums[5] += expf(d * -next) * room[t];
        }
    }
    add_sections(sums);
    if (warp_id() != 0 || row >= n) return;
    const size_t i = cloud * n + row;
    const float given = share[i];
    cost[i] += given * sums[4];
    for (int c = 0; c < 3; c++) grad[3 * i + c] += given * sums[1 + c];
    left[i] = fmaxf(left[i] - given * sums[0], 0.f);
    share[i] = left[i] / (sums[5] + TINY);
}

// The offers of a round to the points of y. share (B, n); right, accepted (B, m), grad (B, m, 3) are updated.
// Grid: B * ceil(m / 32) blocks.
extern "C" __global__ void __launch_bounds__(SECTIONS * WARP)
    match_columns(const float* x, const float* y, const float* share, float* right, float* accepted, float* grad, int n,
                  int m, float level, int squared)
{
    __shared__ float4 tile[TILE];
    const unsigned parts = (m + WARP - 1) / WARP;
    const size_t cloud = blockIdx.x / parts;
    const int column = blockIdx.x % parts * WARP + lane_id();
    const Point q = load_point(y + cloud * m * 3, min(column, m - 1));
    float sums[4] = {0, 0, 0, 0};  // offered, pull (x, y, z)
    for (int base = 0; base < n; base += TILE) {
        const int count = min(TILE, n - base), i = base + threadIdx.x;
        __syncthreads();
        if ((int)threadIdx.x < count) {
            const Point p = load_point(x + cloud * n * 3, i);
            tile[threadIdx.x] = {p.x, p.y, p.z, share[cloud * n + i]};
        }
        __syncthreads();
        for (int t = warp_id(); t < count; t += SECTIONS) {
            const float4 p = tile[t];
            const Point away = minus(q, {p.x, p.y, p.z});
            const float d = squared_norm(away);
            const float mass = expf(d * -level) * p.w, force = mass * unit_pull(unit_cost(d, squared), squared);
            sums[0] += mass;
            sums[1] += force * away.x;
            sums[2] += force * away.y;
            sums[3] += force * away.z;
        }
    }
    add_sections(sums);
    if (warp_id() != 0 || column >= m) return;
    const size_t j = cloud * m + column;
    const float room = right[j], offered = sums[0] * room, part = fminf(room / (offered + TINY), 1.f);
    accepted[j] = room * part;
    for (int c = 0; c < 3; c++) grad[3 * j + c] += room * part * sums[1 + c];
    // what is left of room that was fully taken decides the next round: a difference would round it away
    right[j] = part < 1.f ? room * TINY / (offered + TINY) : room - offered;
}
