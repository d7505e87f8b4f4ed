// What all kernels share: points, distances, sort keys, and reductions over a warp.
//
// The sources need no header of CUDA or of the standard library, so nvcc, the run-time compiler and (in the tests) an
// emulator on the CPU compile the same text. They are compiled with --fmad=false: every result must be rounded as the
// plain PyTorch rounds it, or equal distances would stop being equal.
#pragma once

typedef unsigned long long u64;

#define WARP 32
#define ALL 0xffffffffu          // every lane of a warp takes part
#define NONE 0xffffffffffffffffull  // a key behind every real one

struct Point {
    float x, y, z;
};

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

__device__ __forceinline__ bool is_nan(float value) { return value != value; }

__device__ __forceinline__ Point load_point(const float* cloud, int i)
{
    const float* p = cloud + 3 * (size_t)i;
    return {__ldg(p), __ldg(p + 1), __ldg(p + 2)};
}

__device__ __forceinline__ void store_point(float* cloud, size_t i, Point p)
{
    cloud[3 * i] = p.x;
    cloud[3 * i + 1] = p.y;
    cloud[3 * i + 2] = p.z;
}

__device__ __forceinline__ Point minus(Point a, Point b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }

__device__ __forceinline__ float squared_norm(Point p) { return p.x * p.x + p.y * p.y + p.z * p.z; }

__device__ __forceinline__ float squared_distance(Point a, Point b) { return squared_norm(minus(a, b)); }

// Distance in the high word, index in the low: keys sort by distance, then by index, and NaN comes last. The bits of a
// float that is not negative sort like the float; the mask drops the sign that a NaN may carry.
__device__ __forceinline__ u64 sort_key(float distance, int index)
{
    return (u64)(__float_as_uint(distance) & 0x7fffffffu) << 32 | (unsigned)index;
}

__device__ __forceinline__ int lane_id() { return threadIdx.x % WARP; }

__device__ __forceinline__ int warp_id() { return threadIdx.x / WARP; }

__device__ __forceinline__ unsigned warp_max(unsigned value)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    for (int offset = WARP / 2; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(ALL, value, offset));
    return value;
#else
    return __reduce_max_sync(ALL, value);
#endif
}

__device__ __forceinline__ u64 warp_max(u64 key)
{
    const unsigned high = warp_max((unsigned)(key >> 32));
    const unsigned low = warp_max((unsigned)(key >> 32) == high ? (unsigned)key : 0u);
    return (u64)high << 32 | low;
}

// Lanes add in the order of a tree, always the same.
__device__ __forceinline__ float warp_sum(float value)
{
    for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
    return value;
}
