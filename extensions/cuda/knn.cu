// The k nearest points, without a matrix of distances.
//
// A warp serves one query. It reads the cloud 32 points at a time; those nearer than the k-th best so far wait in a
// queue, and whenever 32 wait they are sorted (bitonic, by shuffles) and merged into the list, which lies sorted over
// the registers of the warp. Few points pass the limit once the list is full: about k (1 + ln(N / k)) of N.
// R registers a lane hold 32 R keys; a larger k takes several passes, each for the keys behind those of the one before.
#include "common.cuh"

#define WARPS 4  // queries of a block

__device__ __forceinline__ u64 compare(u64 key, int offset, bool keep_smaller)
{
    const u64 other = __shfl_xor_sync(ALL, key, offset);
    return (key < other) == keep_smaller ? key : other;
}

__device__ __forceinline__ u64 sort_warp(u64 key)
{
    const int lane = lane_id();
#pragma unroll
    for (int size = 2; size <= WARP; size *= 2)
#pragma unroll
        for (int offset = size / 2; offset > 0; offset /= 2)
            key = compare(key, offset, ((lane & offset) == 0) == ((lane & size) == 0));
    return key;
}

// The smallest keys so far, ascending: number i is in register i / 32 of lane i % 32.
template <int R>
struct List {
    u64 keys[R];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int r = 0; r < R; r++) keys[r] = NONE;
    }

    // One new key a lane. The smaller of the list and the new keys, one ascending and the other descending, are the
    // ones to keep, and form a sequence that a bitonic merge sorts.
    __device__ __forceinline__ void merge(u64 key)
    {
        const int lane = lane_id();
        const u64 descending = __shfl_xor_sync(ALL, sort_warp(key), WARP - 1);
        keys[R - 1] = min(keys[R - 1], descending);
#pragma unroll
        for (int half = R / 2; half > 0; half /= 2)
#pragma unroll
            for (int r = 0; r < R; r++)
                if (!(r & half)) {
                    const u64 low = min(keys[r], keys[r + half]);
                    keys[r + half] = max(keys[r], keys[r + half]);
                    keys[r] = low;
                }
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int offset = WARP / 2; offset > 0; offset /= 2)
                keys[r] = compare(keys[r], offset, (lane & offset) == 0);
    }

    // Number i of the list, for every lane. Every register is sent, lest the compiler index them in memory.
    __device__ __forceinline__ u64 at(int i) const
    {
        u64 found = 0;
#pragma unroll
        for (int r = 0; r < R; r++) {
            const u64 key = __shfl_sync(ALL, keys[r], i % WARP);
            if (i / WARP == r) found = key;
        }
        return found;
    }
};

// The `wanted` smallest keys that are not below `floor`.
template <int R>
__device__ __forceinline__ void scan(List<R>& list, const float* cloud, int n, Point query, int wanted, u64 floor)
{
    __shared__ u64 queues[WARPS][2 * WARP];
    u64* queue = queues[warp_id()];
    const int lane = lane_id();
    u64 limit = NONE;
    int waiting = 0;
    list.clear();
    for (int base = 0; base < n; base += WARP) {
        const int j = base + lane;
        const u64 key = j < n ? sort_key(squared_distance(query, load_point(cloud, j)), j) : NONE;
        const bool good = key < limit && key >= floor;
        const unsigned votes = __ballot_sync(ALL, good);
        if (good) queue[waiting + __popc(votes & ((1u << lane) - 1u))] = key;
        waiting += __popc(votes);
        if (waiting >= WARP) {
            __syncwarp();
            list.merge(queue[lane]);
            limit = list.at(wanted - 1);
            waiting -= WARP;
            if (lane < waiting) queue[lane] = queue[WARP + lane];
            __syncwarp();
        }
    }
    __syncwarp();
    list.merge(lane < waiting ? queue[lane] : NONE);
    __syncwarp();
}

// Calls emit(i, key) for the k nearest, i = 0 .. k - 1.
template <int R, class Emit>
__device__ __forceinline__ void nearest(const float* cloud, int n, Point query, int k, Emit emit)
{
    List<R> list;
    u64 floor = 0;
    for (int done = 0; done < k; done += WARP * R) {
        const int wanted = min(WARP * R, k - done);
        scan(list, cloud, n, query, wanted, floor);
#pragma unroll
        for (int r = 0; r < R; r++) {
            const int i = r * WARP + lane_id();
            if (i < wanted) emit(done + i, list.keys[r]);
        }
        floor = list.at(wanted - 1) + 1;
    }
}

template <int R>
__device__ __forceinline__ void knn(const float* query, const float* points, float* distances, long long* indices,
                                    int num_query, int n, int k, int batch)
{
    const size_t row = (size_t)blockIdx.x * WARPS + warp_id();  // query, counted through the batch
    if (row >= (size_t)batch * num_query) return;
    const float* cloud = points + row / num_query * n * 3;
    const Point center = load_point(query + row * 3, 0);
    nearest<R>(cloud, n, center, k, [=](int i, u64 key) {
        distances[row * k + i] = __uint_as_float((unsigned)(key >> 32));
        indices[row * k + i] = (unsigned)key;
    });
}

// The neighbours of chosen points, gathered, relative to them.
template <int R>
__device__ __forceinline__ void group(const float* points, const long long* chosen, float* neighborhood, float* center,
                                      long long* indices, int num_group, int n, int k, int batch)
{
    const size_t row = (size_t)blockIdx.x * WARPS + warp_id();
    if (row >= (size_t)batch * num_group) return;
    const float* cloud = points + row / num_group * n * 3;
    const Point origin = load_point(cloud, (int)chosen[row]);
    if (lane_id() == 0) store_point(center, row, origin);
    nearest<R>(cloud, n, origin, k, [=](int i, u64 key) {
        const int j = (int)(unsigned)key;
        indices[row * k + i] = j;
        store_point(neighborhood, row * k + i, minus(load_point(cloud, j), origin));
    });
}

// query (B, M, 3), points (B, n, 3), distances and indices (B, M, k); chosen (B, G), neighborhood (B, G, k, 3),
// center (B, G, 3). Grid: a block for every 4 queries of the batch.
#define KNN(SIZE, R)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS * WARP)                                                        \
        knn_##SIZE(const float* query, const float* points, float* distances, long long* indices, int num_query,      \
                   int n, int k, int batch)                                                                           \
    {                                                                                                                 \
        knn<R>(query, points, distances, indices, num_query, n, k, batch);                                            \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(WARPS * WARP)                                                        \
        group_##SIZE(const float* points, const long long* chosen, float* neighborhood, float* center,                \
                     long long* indices, int num_group, int n, int k, int batch)                                      \
    {                                                                                                                 \
        group<R>(points, chosen, neighborhood, center, indices, num_group, n, k, batch);                              \
    }

KNN(32, 1)
KNN(64, 2)
KNN(128, 4)
