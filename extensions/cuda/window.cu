// Attention in windows: scores, weighted sums, and the transpose of the sums. Row r looks at the `window` rows from
// start(r). A warp a row, channels side by side; every output is written once, in a fixed order.
#include "common.cuh"

#define WARPS 8

__device__ __forceinline__ int start(int r, int n, int window)
{
    return min(max(r - (window - 1) / 2, 0), n - window);
}

// rows, keys (B, n, C), scores (B, n, w). Grid: a block for every 8 rows of the batch.
extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    window_scores(const float* rows, const float* keys, float* scores, int n, int window, int channels, int batch)
{
    const size_t row = (size_t)blockIdx.x * WARPS + warp_id();
    if (row >= (size_t)batch * n) return;
    keys += (row / n * n + start((int)(row % n), n, window)) * channels;
    for (int j = 0; j < window; j++) {
        float total = 0;
        for (int c = lane_id(); c < channels; c += WARP)
            total += rows[row * channels + c] * keys[(size_t)j * channels + c];
        total = warp_sum(total);
        if (lane_id() == 0) scores[row * window + j] = total;
    }
}

// weights (B, n, w), values (B, n, C), out (B, n, C). Grid as above.
extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    window_mix(const float* weights, const float* values, float* out, int n, int window, int channels, int batch)
{
    const size_t row = (size_t)blockIdx.x * WARPS + warp_id();
    if (row >= (size_t)batch * n) return;
    values += (row / n * n + start((int)(row % n), n, window)) * channels;
    for (int c = lane_id(); c < channels; c += WARP) {
        float total = 0;
        for (int j = 0; j < window; j++) total += weights[row * window + j] * values[(size_t)j * channels + c];
        out[row * channels + c] = total;
    }
}

// weights (B, n, w), rows (B, n, C), out (B, n, C). Grid as above.
extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    window_spread(const float* weights, const float* rows, float* out, int n, int window, int channels, int batch)
{
    const size_t row = (size_t)blockIdx.x * WARPS + warp_id();
    if (row >= (size_t)batch * n) return;
    const size_t cloud = row / n * n;
    const int t = (int)(row % n), before = (window - 1) / 2;
    const int first = t < window ? 0 : t - window + 1 + before, last = t >= n - window ? n - 1 : t + before;
    for (int c = lane_id(); c < channels; c += WARP) {
        float total = 0;
        for (int r = first; r <= last; r++)
            total += weights[(cloud + r) * window + t - start(r, n, window)] * rows[(cloud + r) * channels + c];
        out[row * channels + c] = total;
    }
}
