// A cloud in its standard place: mean 0, largest radius 1. A block serves one cloud.
#include "common.cuh"

#define THREADS 256
#define WARPS (THREADS / WARP)

// The sum over the block, in the order of a tree: the same in every thread and at every call.
__device__ __forceinline__ float block_sum(float value, float* board)
{
    value = warp_sum(value);
    __syncthreads();  // whoever still reads the board has finished
    if (lane_id() == 0) board[warp_id()] = value;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < WARPS; i++) total += board[i];
    return total;
}

// points (B, n, 3) -> out (B, n, 3). Grid: a block for every cloud.
extern "C" __global__ void __launch_bounds__(THREADS) normalize(const float* points, float* out, int n)
{
    __shared__ float board[WARPS];
    __shared__ unsigned farthest;
    const float* cloud = points + (size_t)blockIdx.x * n * 3;
    out += (size_t)blockIdx.x * n * 3;
    Point mean = {0, 0, 0};
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const Point p = load_point(cloud, i);
        mean = {mean.x + p.x, mean.y + p.y, mean.z + p.z};
    }
    mean = {block_sum(mean.x, board) / n, block_sum(mean.y, board) / n, block_sum(mean.z, board) / n};
    if (threadIdx.x == 0) farthest = 0;
    __syncthreads();
    unsigned own = 0;  // the bits of a float that is not negative sort like the float, NaN above all
    for (int i = threadIdx.x; i < n; i += THREADS)
        own = max(own, __float_as_uint(squared_distance(load_point(cloud, i), mean)) & 0x7fffffffu);
    own = warp_max(own);
    if (lane_id() == 0) atomicMax(&farthest, own);
    __syncthreads();
    const float radius = sqrtf(__uint_as_float(farthest)), scale = radius < 1e-12f ? 1e-12f : radius;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const Point p = minus(load_point(cloud, i), mean);
        store_point(out, i, {p.x / scale, p.y / scale, p.z / scale});
    }
}
