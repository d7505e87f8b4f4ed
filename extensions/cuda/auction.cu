// The assignment problem by an auction with falling epsilon: one block solves one pair of clouds.
//
// In a round every point of x without a partner bids for the point of y that is worth most to it, by so much that it
// would then be as well off with its second choice, and epsilon more; the highest bid wins (of equal bids the lowest
// bidder) and turns the previous owner out. A warp makes a bid: n costs, recomputed from coordinates that stay in the
// cache. Bids meet by atomic maximum and minimum, whose results do not depend on the order. Nothing waits for the host.
#include "common.cuh"

#define THREADS 1024
#define SHRINK 5.0   // from one epsilon to the next
#define FINEST 1e-9  // of the largest cost: below, prices would stop rising

// Costs that are not finite count as 0.
__device__ __forceinline__ float cost_of(Point p, Point q, int squared)
{
    float cost = squared_distance(p, q);
    if (!squared) cost = sqrtf(cost);
    return cost < infinity() ? cost : 0.f;
}

// The arrays of one cloud, all of length n.
struct Market {
    const float *x, *y;
    int n, squared;
    double *price, *offer;  // of every object, by every bidder
    u64* highest;           // bits of the highest offer of the round for every object, else 0
    int* winner;            // the lowest bidder who made it, else n
    int* owner;             // point of x, or -1
    int* wanted;            // the object a bidder bids for
};

// The best object for point i, found by a warp, and what to offer for it.
__device__ __forceinline__ double make_offer(const Market& market, int i, double eps, int& object)
{
    const Point p = load_point(market.x, i);
    double best = -(double)infinity(), second = best;
    int choice = market.n;
#pragma unroll 4
    for (int j = lane_id(); j < market.n; j += WARP) {
        const double value = -((double)cost_of(p, load_point(market.y, j), market.squared) + market.price[j]);
        second = fmax(second, fmin(value, best));
        if (value > best) best = value, choice = j;
    }
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const double other = __shfl_xor_sync(ALL, best, offset), runner_up = __shfl_xor_sync(ALL, second, offset);
        const int other_choice = __shfl_xor_sync(ALL, choice, offset);
        second = fmax(fmax(second, runner_up), fmin(other, best));
        if (other > best || (other == best && other_choice < choice)) best = other, choice = other_choice;
    }
    object = choice;
    return market.price[choice] + (market.n > 1 ? best - second : 0.0) + eps;
}

// One round of `count` bidders; those left without a partner go to the list `losers`, which is `lost` long.
__device__ __forceinline__ void bid(const Market& market, double eps, const int* bidders, int count, int* losers,
                                    int* lost)
{
    for (int b = warp_id(); b < count; b += THREADS / WARP) {
        int object;
        const double offer = make_offer(market, bidders[b], eps, object);
        if (lane_id() == 0) {
            market.wanted[bidders[b]] = object;
            market.offer[bidders[b]] = offer;
            atomicMax(market.highest + object, (u64)__double_as_longlong(offer));  // offers are positive
        }
    }
    __syncthreads();
    for (int b = threadIdx.x; b < count; b += THREADS) {
        const int i = bidders[b], object = market.wanted[i];
        if ((u64)__double_as_longlong(market.offer[i]) == market.highest[object]) atomicMin(market.winner + object, i);
    }
    __syncthreads();
    for (int b = threadIdx.x; b < count; b += THREADS) {
        const int i = bidders[b], object = market.wanted[i];
        int left = i;
        if (market.winner[object] == i) {  // losers see the winner, or n if it was quicker
            left = market.owner[object];
            market.owner[object] = i;
            market.price[object] = market.offer[i];
            market.highest[object] = 0;
            market.winner[object] = market.n;
        }
        if (left >= 0) losers[atomicAdd(lost, 1)] = left;
    }
    __syncthreads();
}

// Rounds until every object has an owner; raises the prices. Points of x without a partner are in the list `now`.
__device__ __forceinline__ void assign(const Market& market, double eps, int* now, int* next)
{
    __shared__ int counts[2];
    for (int i = threadIdx.x; i < market.n; i += THREADS) {
        market.owner[i] = -1;
        now[i] = i;
    }
    if (threadIdx.x == 0) counts[0] = market.n;
    __syncthreads();
    for (int round = 0;; round = 1 - round) {
        const int count = counts[round];
        if (count == 0) break;
        if (threadIdx.x == 0) counts[1 - round] = 0;  // there are barriers before it is counted up
        bid(market, eps, now, count, next, counts + 1 - round);
        int* const spare = now;
        now = next;
        next = spare;
    }
    __syncthreads();  // all have read the last count
}

__device__ __forceinline__ double largest_cost(const Market& market)
{
    __shared__ unsigned largest[THREADS / WARP];
    unsigned bits = 0;
    for (int i = warp_id(); i < market.n; i += THREADS / WARP) {
        const Point p = load_point(market.x, i);
        for (int j = lane_id(); j < market.n; j += WARP)
            bits = max(bits, __float_as_uint(cost_of(p, load_point(market.y, j), market.squared)));
    }
    bits = warp_max(bits);
    if (lane_id() == 0) largest[warp_id()] = bits;
    __syncthreads();
    return __uint_as_float(warp_max(largest[lane_id()]));
}

// x, y (B, n, 3); doubles (B, 3, n) and integers (B, 5, n) are scratch; indices (B, n), the partners in y.
// Grid: B blocks.
extern "C" __global__ void __launch_bounds__(THREADS)
    auction(const float* x, const float* y, double* doubles, int* integers, long long* indices, int n, int squared,
            double eps)
{
    const size_t cloud = blockIdx.x;
    doubles += cloud * 3 * n;
    integers += cloud * 5 * n;
    indices += cloud * n;
    const Market market = {x + cloud * n * 3, y + cloud * n * 3, n, squared, doubles, doubles + n,
                           (u64*)(doubles + 2 * (size_t)n), integers, integers + n, integers + 2 * (size_t)n};
    int *now = integers + 3 * (size_t)n, *next = now + n;
    for (int j = threadIdx.x; j < n; j += THREADS) {
        market.price[j] = 0;
        market.highest[j] = 0;
        market.winner[j] = n;
    }
    const double largest = largest_cost(market), final = fmax(eps, FINEST * largest);
    for (double step = largest / SHRINK; step > final; step /= SHRINK) assign(market, step, now, next);
    assign(market, final, now, next);
    for (int j = threadIdx.x; j < n; j += THREADS) indices[market.owner[j]] = j;
}
