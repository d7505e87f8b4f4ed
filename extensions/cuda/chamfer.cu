// The nearest point of the other cloud, both ways in one launch, without a matrix of distances; and its gradient.
//
// As for torch.min a distance that is not a number is the smallest of all. To spare a test in the inner loop the
// distances are also added up: a NaN shows in the sum, and only then the row is searched again.
#include "common.cuh"

#define PATCH 64       // largest cloud of the small kernel
#define PATCHES 4      // pairs of a block of the small kernel
#define SECTIONS 8     // warps that share the rows of a block
#define ROWS 64        // rows of a block: two a lane
#define TILE 512

struct Best {
    float distance = infinity();
    int index = 0;
    float poison = 0;

    __device__ __forceinline__ void see(float value, int j)
    {
        poison += value;
        if (value < distance) distance = value, index = j;
    }

    // Of another part of the same row, seen in any order.
    __device__ __forceinline__ void join(float value, int j, float other_poison)
    {
        poison += other_poison;
        if (value < distance || (value == distance && j < index)) distance = value, index = j;
    }

    __device__ __forceinline__ void store(const float* own, int row, const float* other, int m, float* dist,
                                          long long* idx)
    {
        if (is_nan(poison))
            for (index = 0; index < m; index++) {
                distance = squared_distance(load_point(own, row), load_point(other, index));
                if (is_nan(distance)) break;
            }
        dist[row] = distance;
        idx[row] = index;
    }
};

__device__ __forceinline__ float4 load_tile(const float* cloud, int i)
{
    const Point p = load_point(cloud, i);
    return {p.x, p.y, p.z, 0};
}

__device__ __forceinline__ Point point_of(float4 p) { return {p.x, p.y, p.z}; }

__device__ __forceinline__ void one_patch(const float4* own_tile, const float* own, int n, const float4* other_tile,
                                          const float* other, int m, float* dist, long long* idx)
{
    for (int row = lane_id(); row < n; row += WARP) {
        const Point p = point_of(own_tile[row]);
        Best best;
        for (int j = 0; j < m; j++) best.see(squared_distance(p, point_of(other_tile[j])), j);
        best.store(own, row, other, m, dist, idx);
    }
}

// Both clouds have at most 64 points: a warp a pair, everything in its shared memory.
// x (B, n, 3), y (B, m, 3); dist1, idx1 (B, n); dist2, idx2 (B, m). Grid: a block for every 4 pairs.
extern "C" __global__ void __launch_bounds__(PATCHES * WARP)
    chamfer_patches(const float* x, const float* y, float* dist1, float* dist2, long long* idx1, long long* idx2, int n,
                    int m, int batch)
{
    __shared__ float4 tiles[PATCHES][2][PATCH];
    const size_t pair = (size_t)blockIdx.x * PATCHES + warp_id();
    if (pair >= (size_t)batch) return;
    float4 *tile_x = tiles[warp_id()][0], *tile_y = tiles[warp_id()][1];
    x += pair * n * 3;
    y += pair * m * 3;
    for (int i = lane_id(); i < n; i += WARP) tile_x[i] = load_tile(x, i);
    for (int j = lane_id(); j < m; j += WARP) tile_y[j] = load_tile(y, j);
    __syncwarp();
    one_patch(tile_x, x, n, tile_y, y, m, dist1 + pair * n, idx1 + pair * n);
    one_patch(tile_y, y, m, tile_x, x, n, dist2 + pair * m, idx2 + pair * m);
}

// 64 rows of `own` against all of `other`: a lane holds two rows, the eight warps share the other cloud.
__device__ __forceinline__ void one_way(const float* own, int n, const float* other, int m, float* dist, long long* idx,
                                        int first)
{
    __shared__ float4 tile[TILE];
    __shared__ float distances[SECTIONS][ROWS], poisons[SECTIONS][ROWS];
    __shared__ int indices[SECTIONS][ROWS];
    const int lane = lane_id(), section = warp_id();
    const Point p = load_point(own, min(first + lane, n - 1)), q = load_point(own, min(first + lane + WARP, n - 1));
    Best best_p, best_q;
    for (int base = 0; base < m; base += TILE) {
        const int count = min(TILE, m - base);
        __syncthreads();
        for (int t = threadIdx.x; t < count; t += blockDim.x) tile[t] = load_tile(other, base + t);
        __syncthreads();
        for (int t = section; t < count; t += SECTIONS) {
            const Point r = point_of(tile[t]);
            best_p.see(squared_distance(p, r), base + t);
            best_q.see(squared_distance(q, r), base + t);
        }
    }
    distances[section][lane] = best_p.distance, distances[section][lane + WARP] = best_q.distance;
    poisons[section][lane] = best_p.poison, poisons[section][lane + WARP] = best_q.poison;
    indices[section][lane] = best_p.index, indices[section][lane + WARP] = best_q.index;
    __syncthreads();
    const int row = threadIdx.x;
    if (row >= ROWS || first + row >= n) return;
    Best best;
    for (int s = 0; s < SECTIONS; s++) best.join(distances[s][row], indices[s][row], poisons[s][row]);
    best.store(own, first + row, other, m, dist, idx);
}

// Clouds of any size. Grid: B * ceil(n / 64) blocks for x, then B * ceil(m / 64) for y.
extern "C" __global__ void __launch_bounds__(SECTIONS * WARP)
    chamfer_clouds(const float* x, const float* y, float* dist1, float* dist2, long long* idx1, long long* idx2, int n,
                   int m, int batch)
{
    const unsigned parts_x = (n + ROWS - 1) / ROWS, parts_y = (m + ROWS - 1) / ROWS;
    const unsigned block = blockIdx.x, blocks_x = batch * parts_x;
    const bool forth = block < blocks_x;
    const unsigned parts = forth ? parts_x : parts_y, part = forth ? block : block - blocks_x;
    const size_t cloud = part / parts;
    const int first = part % parts * ROWS;
    x += cloud * n * 3;
    y += cloud * m * 3;
    one_way(forth ? x : y, forth ? n : m, forth ? y : x, forth ? m : n, forth ? dist1 + cloud * n : dist2 + cloud * m,
            forth ? idx1 + cloud * n : idx2 + cloud * m, first);
}

// The gradient of a row of `own`: the pull of its own nearest point, less the pulls of the points whose nearest it is.
// Those are found by comparing the indices of the whole other cloud, a tenth of the cost of the distances, so that the
// sum has a fixed order without atomics.
__device__ __forceinline__ void pull(const float* own, const float* own_grad, const long long* own_idx, int n,
                                     const float* other, const float* other_grad, const long long* other_idx, int m,
                                     float* out, int row)
{
    __shared__ int tile[TILE];
    const bool active = row < n;
    const Point p = active ? load_point(own, row) : Point{0, 0, 0};
    Point total = {0, 0, 0};
    for (int base = 0; base < m; base += TILE) {
        const int count = min(TILE, m - base);
        __syncthreads();
        for (int t = threadIdx.x; t < count; t += blockDim.x) tile[t] = (int)other_idx[base + t];
        __syncthreads();
        for (int t = 0; t < count && active; t++)
            if (tile[t] == row) {
                const float weight = 2 * other_grad[base + t];
                const Point away = minus(load_point(other, base + t), p);
                total.x += weight * away.x, total.y += weight * away.y, total.z += weight * away.z;
            }
    }
    if (!active) return;
    const float weight = 2 * own_grad[row];
    const Point away = minus(p, load_point(other, (int)own_idx[row]));
    store_point(out, row, {weight * away.x - total.x, weight * away.y - total.y, weight * away.z - total.z});
}

// grad1 (B, n), grad2 (B, m), grad_x (B, n, 3), grad_y (B, m, 3). Grid: B * ceil(n / threads) blocks for x, then
// B * ceil(m / threads) for y.
extern "C" __global__ void __launch_bounds__(128)
    chamfer_backward(const float* grad1, const float* grad2, const float* x, const float* y, const long long* idx1,
                     const long long* idx2, float* grad_x, float* grad_y, int n, int m, int batch)
{
    const unsigned parts_x = (n + blockDim.x - 1) / blockDim.x, parts_y = (m + blockDim.x - 1) / blockDim.x;
    const unsigned block = blockIdx.x, blocks_x = batch * parts_x;
    const bool forth = block < blocks_x;
    const unsigned parts = forth ? parts_x : parts_y, part = forth ? block : block - blocks_x;
    const size_t cloud = part / parts, at_x = cloud * n, at_y = cloud * m;
    const int row = part % parts * blockDim.x + threadIdx.x;
    if (forth)
        pull(x + at_x * 3, grad1 + at_x, idx1 + at_x, n, y + at_y * 3, grad2 + at_y, idx2 + at_y, m, grad_x + at_x * 3,
             row);
    else
        pull(y + at_y * 3, grad2 + at_y, idx2 + at_y, m, x + at_x * 3, grad1 + at_x, idx1 + at_x, n, grad_y + at_y * 3,
             row);
}
