// The three nearest known points, and weighted sums of their features.
//
// three_nn: a thread a query, known points through shared memory, the best three in registers.
// three_interpolate: a warp a row, channels side by side. The gradient of the features is gathered, not scattered: a
// warp owns a row and looks for the places that used it, so no atomics are needed and the sum has a fixed order.
#include "common.cuh"

#define WARPS 8
#define TILE 512
#define EMPTY 0xffffffffu  // behind every distance, NaN included

// The bits of three distances and their indices, ascending; equal ones in the order of their coming.
struct Three {
    unsigned bits[3] = {EMPTY, EMPTY, EMPTY};
    int index[3] = {0, 0, 0};

    __device__ __forceinline__ void insert(unsigned value, int j)
    {
        if (value >= bits[2]) return;
        int place = 2;
        if (value < bits[1]) bits[2] = bits[1], index[2] = index[1], place = 1;
        if (value < bits[0]) bits[1] = bits[0], index[1] = index[0], place = 0;
#pragma unroll
        for (int i = 0; i < 3; i++)
            if (i == place) bits[i] = value, index[i] = j;
    }
};

// unknown (B, n, 3), known (B, m, 3), distances and indices (B, n, 3). Grid: B * ceil(n / threads) blocks.
extern "C" __global__ void __launch_bounds__(128)
    three_nn(const float* unknown, const float* known, float* distances, long long* indices, int n, int m)
{
    __shared__ float4 tile[TILE];
    const int parts = (n + blockDim.x - 1) / blockDim.x;
    const size_t cloud = blockIdx.x / parts;
    const int i = blockIdx.x % parts * blockDim.x + threadIdx.x;
    known += cloud * m * 3;
    const Point query = i < n ? load_point(unknown + cloud * n * 3, i) : Point{0, 0, 0};
    Three best;
    for (int base = 0; base < m; base += TILE) {
        const int count = min(TILE, m - base);
        __syncthreads();
        for (int t = threadIdx.x; t < count; t += blockDim.x) {
            const Point p = load_point(known, base + t);
            tile[t] = {p.x, p.y, p.z, 0};
        }
        __syncthreads();
        for (int t = 0; t < count; t++) {
            const float4 p = tile[t];
            best.insert(__float_as_uint(squared_distance(query, {p.x, p.y, p.z})) & 0x7fffffffu, base + t);
        }
    }
    if (i >= n) return;
    const size_t row = (cloud * n + i) * 3;
#pragma unroll
    for (int t = 0; t < 3; t++) {
        distances[row + t] = best.bits[t] == EMPTY ? infinity() : __uint_as_float(best.bits[t]);
        indices[row + t] = best.index[t];
    }
}

// An index as PyTorch takes it: negative ones count from the end, others outside stop the kernel.
__device__ __forceinline__ int checked(long long index, int m)
{
    if (index < 0) index += m;
    if (index < 0 || index >= m) __trap();
    return (int)index;
}

// features (B, m, C), indices and weights (B, n, K), out (B, n, C). Grid: a block for every 8 rows of the batch.
extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    three_interpolate(const float* features, const long long* indices, const float* weights, float* out, int n, int m,
                      int channels, int k, int batch)
{
    const size_t row = (size_t)blockIdx.x * WARPS + warp_id();
    if (row >= (size_t)batch * n) return;
    features += row / n * m * channels;
    for (int c = lane_id(); c < channels; c += WARP) {
        float total = 0;
        for (int t = 0; t < k; t++)
            total += features[(size_t)checked(indices[row * k + t], m) * channels + c] * weights[row * k + t];
        out[row * channels + c] = total;
    }
}

// grad_weights (B, n, K): the product of a gradient (B, n, C) with a row of features. Grid as above.
extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    interpolate_grad_weights(const float* grad, const float* features, const long long* indices, float* grad_weights,
                             int n, int m, int channels, int k, int batch)
{
    const size_t row = (size_t)blockIdx.x * WARPS + warp_id();
    if (row >= (size_t)batch * n) return;
    features += row / n * m * channels;
    for (int t = 0; t < k; t++) {
        const float* used = features + (size_t)checked(indices[row * k + t], m) * channels;
        float total = 0;
        for (int c = lane_id(); c < channels; c += WARP) total += used[c] * grad[row * channels + c];
        total = warp_sum(total);
        if (lane_id() == 0) grad_weights[row * k + t] = total;
    }
}

// out[c] += weight * grad[c] for the places in the queue.
__device__ __forceinline__ void add_places(float* out, const float* grad, const float* weights, const int* queue,
                                           int waiting, int channels, int k)
{
    for (int c = lane_id(); c < channels; c += WARP) {
        float total = out[c];
        for (int q = 0; q < waiting; q++) total += grad[(size_t)(queue[q] / k) * channels + c] * weights[queue[q]];
        out[c] = total;
    }
}

// grad_features (B, m, C). A warp a row: it scans the n K indices of its cloud, collects the places of its own row in a
// queue, and adds them up in order. Grid: a block for every 8 rows of features in the batch.
extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    interpolate_grad_features(const float* grad, const long long* indices, const float* weights, float* grad_features,
                              int n, int m, int channels, int k, int batch)
{
    __shared__ int queues[WARPS][2 * WARP];
    int* queue = queues[warp_id()];
    const size_t row = (size_t)blockIdx.x * WARPS + warp_id();
    if (row >= (size_t)batch * m) return;
    const int lane = lane_id(), own = (int)(row % m), places = n * k;
    const size_t cloud = row / m;
    grad += cloud * n * channels;
    indices += cloud * places;
    weights += cloud * places;
    grad_features += row * channels;
    for (int c = lane; c < channels; c += WARP) grad_features[c] = 0;
    int waiting = 0;
    for (int base = 0; base < places; base += WARP) {
        const int place = base + lane;
        const bool hit = place < places && checked(indices[place], m) == own;
        const unsigned votes = __ballot_sync(ALL, hit);
        if (hit) queue[waiting + __popc(votes & ((1u << lane) - 1u))] = place;
        waiting += __popc(votes);
        if (waiting >= WARP) {
            __syncwarp();
            add_places(grad_features, grad, weights, queue, waiting, channels, k);
            waiting = 0;
            __syncwarp();
        }
    }
    __syncwarp();
    add_places(grad_features, grad, weights, queue, waiting, channels, k);
}
