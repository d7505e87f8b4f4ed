// Farthest point sampling.
//
// One block samples one cloud. A thread keeps PER points and their distances to the chosen set in registers, so a step
// costs PER distances, two reductions in hardware and one barrier. A cloud too large for the registers of one block is
// shared by several, which meet on a board in global memory once a step; they must run at the same time, hence the
// cooperative launch. Larger still: one block, distances in global memory.
#include "common.cuh"

#define FAR 1e10f         // the running minimum before the first choice, as in pointnet2_ops
#define BROKEN 1e18f      // where a point that is not finite goes: it moves no minimum there
#define NEAR_ORIGIN 1e-3  // squared norm up to which pointnet2_ops takes a point for padding

__device__ __forceinline__ bool is_sound(Point p) { return squared_norm(p) < infinity(); }

__device__ __forceinline__ Point load_sound(const float* cloud, int i)
{
    const Point p = load_point(cloud, i);
    return is_sound(p) ? p : Point{BROKEN, BROKEN, BROKEN};
}

// The first running minimum; -1 never wins against a candidate.
__device__ __forceinline__ float first_closest(const float* cloud, int i, int n, int skip_near_origin)
{
    if (i >= n) return -1.f;
    const Point p = load_point(cloud, i);
    return is_sound(p) && (!skip_near_origin || (double)squared_norm(p) > NEAR_ORIGIN) ? FAR : -1.f;
}

// Largest first, lowest index first among equals, never 0. Flipping the sign orders -1 below the rest.
__device__ __forceinline__ u64 far_key(float distance, int index)
{
    return (u64)(__float_as_uint(distance) ^ 0x80000000u) << 32 | ~(unsigned)index;
}

__device__ __forceinline__ int far_index(u64 key) { return (int)~(unsigned)key; }

// The largest key of the block, for every thread. Two buffers in turn, so that one barrier is enough.
__device__ __forceinline__ u64 block_max(u64 key, int step)
{
    __shared__ u64 best[2][WARP];
    key = warp_max(key);
    if (lane_id() == 0) best[step % 2][warp_id()] = key;
    __syncthreads();
    return warp_max(lane_id() < (int)blockDim.x / WARP ? best[step % 2][lane_id()] : 0ull);
}

// The largest key of the blocks that share a cloud. Every step has its own row of the board, zero before.
__device__ __forceinline__ u64 cloud_max(u64 key, volatile u64* board, int part, int parts)
{
    __shared__ u64 winner;
    if (warp_id() == 0) {
        if (lane_id() == 0) board[part] = key;
        u64 top = 0;
        for (int i = lane_id(); i < parts; i += WARP) {
            u64 other = board[i];
            while (other == 0) {
                __nanosleep(20);
                other = board[i];
            }
            top = max(top, other);
        }
        top = warp_max(top);
        if (lane_id() == 0) winner = top;
    }
    __syncthreads();
    return winner;  // safe until the barrier of the next step
}

template <int THREADS, int PER>
__device__ __forceinline__ void sample(const float* points, const float* before, u64* board, long long* indices,
                                       int n, int num_samples, int start, int skip_near_origin, int parts)
{
    const int cloud = blockIdx.x / parts, part = blockIdx.x % parts;
    const int first = part * THREADS * PER + threadIdx.x;
    const bool writer = part == 0 && threadIdx.x == 0;
    points += (size_t)cloud * n * 3;
    indices += (size_t)cloud * num_samples;
    board += (size_t)cloud * num_samples * parts;

    Point mine[PER];
    float closest[PER];
#pragma unroll
    for (int i = 0; i < PER; i++) {
        const int j = first + i * THREADS;
        mine[i] = j < n ? load_sound(points, j) : Point{0, 0, 0};
        closest[i] = first_closest(points, j, n, skip_near_origin);
    }
    Point center = before ? load_point(before, cloud) : load_sound(points, start);
    if (writer && !before) indices[0] = start;
    for (int step = before ? 0 : 1; step < num_samples; step++) {
        float best = -2.f;
        int winner = 0;
#pragma unroll
        for (int i = 0; i < PER; i++) {
            closest[i] = fminf(closest[i], squared_distance(mine[i], center));
            if (closest[i] > best) {
                best = closest[i];
                winner = first + i * THREADS;
            }
        }
        u64 key = block_max(far_key(best, winner), step);
        if (parts > 1) key = cloud_max(key, board + (size_t)step * parts, part, parts);
        const int chosen = far_index(key);
        if (writer) indices[step] = chosen;
        center = load_sound(points, chosen);
    }
}

// points (B, n, 3); before (B, 3) acts as a choice before the first, or null; board (B, num_samples, parts) of zeros,
// used if parts > 1; indices (B, num_samples). Grid: B * parts blocks.
#define FPS(THREADS, PER)                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS) fps_##THREADS##x##PER(                                      \
        const float* points, const float* before, u64* board, long long* indices, int n, int num_samples, int start,  \
        int skip_near_origin, int parts)                                                                              \
    {                                                                                                                 \
        sample<THREADS, PER>(points, before, board, indices, n, num_samples, start, skip_near_origin, parts);         \
    }

FPS(128, 1)
FPS(256, 1)
FPS(256, 2)
FPS(256, 4)
FPS(512, 4)
FPS(1024, 4)
FPS(1024, 8)

// Any size: the distances `closest` (B, n) are scratch in global memory. Grid: B blocks.
extern "C" __global__ void __launch_bounds__(1024)
    fps_any(const float* points, const float* before, float* closest, long long* indices, int n, int num_samples,
            int start, int skip_near_origin)
{
    points += (size_t)blockIdx.x * n * 3;
    closest += (size_t)blockIdx.x * n;
    indices += (size_t)blockIdx.x * num_samples;
    for (int i = threadIdx.x; i < n; i += blockDim.x) closest[i] = first_closest(points, i, n, skip_near_origin);
    Point center = before ? load_point(before, blockIdx.x) : load_sound(points, start);
    if (threadIdx.x == 0 && !before) indices[0] = start;
    for (int step = before ? 0 : 1; step < num_samples; step++) {
        float best = -2.f;
        int winner = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            const float distance = fminf(closest[i], squared_distance(load_sound(points, i), center));
            closest[i] = distance;
            if (distance > best) {
                best = distance;
                winner = i;
            }
        }
        const int chosen = far_index(block_max(far_key(best, winner), step));
        if (threadIdx.x == 0) indices[step] = chosen;
        center = load_sound(points, chosen);
    }
}
