// Runs the CUDA kernels on a CPU, slowly but strictly, to check their logic where there is no GPU.
//
// Every thread of a block is a fiber; a fiber runs until it reaches a barrier or an exchange within its warp, and goes
// on when all threads concerned have arrived at the same place. Fibers take turns in a random order, so that a missing
// barrier shows as a wrong result. Not tolerated, though a GPU may: threads of a warp, or of a block, that arrive at
// different places, or that have left. The blocks of a cooperative launch run in parallel, others one after the other.
// Included before a .cu file that is compiled as C++; what it cannot show is speed, and how the GPU orders memory.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <setjmp.h>
#include <thread>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local  // the threads of a block share one thread of the CPU

struct dim3 {
    unsigned x, y, z;
};
struct float4 {
    float x, y, z, w;
};
static thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

typedef unsigned long long Word;
const unsigned WARP_SIZE = 32, EVERY_LANE = 0xffffffffu;
const size_t STACK = 1 << 16;

enum State { RUNNING, AT_WARP, AT_BLOCK, DONE };

struct Fiber {
    ucontext_t context;  // for the first entry; jumps, which need no system call, do the rest
    jmp_buf place_in_kernel;
    bool entered = false;
    std::unique_ptr<char[]> stack;
    State state = RUNNING;
    const char* place = "";
    bool second = false;  // which of the two exchange buffers comes next
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Word> words[2];  // what each thread offers to its warp
    jmp_buf scheduler;
    std::function<void()> kernel;
};
static thread_local Block* block;

[[noreturn]] inline void fail(const char* reason, const char* first, const char* second)
{
    std::fprintf(stderr, "emulator: block %u: %s: %s / %s\n", blockIdx.x, reason, first, second);
    std::abort();
}

inline void pause(State state, const char* place)
{
    Fiber& fiber = block->fibers[threadIdx.x];
    fiber.state = state;
    fiber.place = place;
    if (!_setjmp(fiber.place_in_kernel)) _longjmp(block->scheduler, 1);
}

inline void start()
{
    block->kernel();
    block->fibers[threadIdx.x].state = DONE;
    _longjmp(block->scheduler, 1);
}

// Runs a thread until it pauses or ends.
__attribute__((noinline)) inline void resume(unsigned thread)
{
    Fiber& fiber = block->fibers[thread];
    threadIdx.x = thread;
    if (_setjmp(block->scheduler)) return;
    if (std::exchange(fiber.entered, true)) _longjmp(fiber.place_in_kernel, 1);
    setcontext(&fiber.context);
}

// Lets the threads [from, to) go on if all wait in the given state, at one place.
inline bool release(unsigned from, unsigned to, State state)
{
    auto& fibers = block->fibers;
    for (unsigned i = from; i < to; i++) {
        if (fibers[i].state != state) return false;
        if (std::strcmp(fibers[i].place, fibers[from].place))
            fail("threads wait at different places", fibers[i].place, fibers[from].place);
    }
    for (unsigned i = from; i < to; i++) fibers[i].state = RUNNING;
    return true;
}

inline void check_stuck()
{
    const Fiber *waiting = nullptr, *other = nullptr;
    for (Fiber& fiber : block->fibers)
        (fiber.state == AT_WARP || fiber.state == AT_BLOCK ? waiting : other) = &fiber;
    if (waiting) fail("threads wait for others that never come", waiting->place, other ? "left" : "other barrier");
}

inline void run_block(unsigned index, unsigned blocks, unsigned threads, std::function<void()> kernel, unsigned seed)
{
    Block own;
    block = &own;
    own.kernel = kernel;
    own.fibers = std::vector<Fiber>(threads);
    for (auto& words : own.words) words.resize(threads);
    blockIdx = {index, 0, 0}, gridDim = {blocks, 1, 1}, blockDim = {threads, 1, 1};
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = own.fibers[i];
        order[i] = i;
        fiber.stack.reset(new char[STACK]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
    }
    std::minstd_rand random(seed + index);
    std::shuffle(order.begin(), order.end(), random);
    for (bool alive = true; alive;) {
        alive = false;
        for (unsigned i : order)
            if (own.fibers[i].state == RUNNING) {
                alive = true;
                resume(i);
            }
        for (unsigned warp = 0; warp < threads; warp += WARP_SIZE) alive |= release(warp, warp + WARP_SIZE, AT_WARP);
        if (!alive) alive = release(0, threads, AT_BLOCK);
    }
    check_stuck();
}

template <class... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), void** values, std::index_sequence<I...>)
{
    kernel(*static_cast<std::remove_reference_t<Arguments>*>(values[I])...);
}

// `values` point to the arguments, as in cuLaunchKernel.
template <class... Arguments>
void launch(void (*kernel)(Arguments...), unsigned blocks, unsigned threads, void** values, bool cooperative,
            unsigned seed)
{
    auto body = [=] { call(kernel, values, std::index_sequence_for<Arguments...>{}); };
    std::vector<std::thread> running;
    for (unsigned i = 0; i < blocks; i++) {
        running.emplace_back(run_block, i, blocks, threads, body, seed);
        if (!cooperative) running.back().join();
    }
    if (cooperative)
        for (std::thread& thread : running) thread.join();
}

inline const Word* exchange(Word word, const char* place, unsigned mask)
{
    if (mask != EVERY_LANE) fail("only whole warps are emulated", place, "");
    Fiber& fiber = block->fibers[threadIdx.x];
    std::vector<Word>& words = block->words[fiber.second];
    fiber.second = !fiber.second;
    words[threadIdx.x] = word;
    pause(AT_WARP, place);
    return words.data() + threadIdx.x / WARP_SIZE * WARP_SIZE;
}

template <class T>
T shuffle(T value, unsigned lane, const char* place, unsigned mask)
{
    Word word = 0;
    std::memcpy(&word, &value, sizeof value);
    word = exchange(word, place, mask)[lane % WARP_SIZE];
    std::memcpy(&value, &word, sizeof value);
    return value;
}

inline unsigned ballot(bool vote, const char* place, unsigned mask)
{
    const Word* votes = exchange(vote, place, mask);
    unsigned bits = 0;
    for (unsigned i = 0; i < WARP_SIZE; i++) bits |= unsigned(votes[i] != 0) << i;
    return bits;
}

inline unsigned reduce_max(unsigned value, const char* place, unsigned mask)
{
    const Word* values = exchange(value, place, mask);
    return unsigned(*std::max_element(values, values + WARP_SIZE));
}

template <class To, class From>
To bits(From value)
{
    static_assert(sizeof(To) == sizeof(From), "");
    To out;
    std::memcpy(&out, &value, sizeof out);
    return out;
}

}  // namespace emulator

#define TEXT_(line) #line
#define TEXT(line) TEXT_(line)
#define HERE __FILE__ ":" TEXT(__LINE__)
#define __syncthreads() emulator::pause(emulator::AT_BLOCK, HERE)
#define __syncwarp() emulator::pause(emulator::AT_WARP, HERE)
#define __shfl_sync(mask, value, lane) emulator::shuffle(value, lane, HERE, mask)
#define __shfl_xor_sync(mask, value, offset) emulator::shuffle(value, threadIdx.x ^ (offset), HERE, mask)
#define __ballot_sync(mask, vote) emulator::ballot(vote, HERE, mask)
#define __reduce_max_sync(mask, value) emulator::reduce_max(value, HERE, mask)

inline void __nanosleep(unsigned)
{
    emulator::pause(emulator::RUNNING, "");
    std::this_thread::yield();
}
[[noreturn]] inline void __trap() { emulator::fail("trap", "", ""); }
template <class T> T __ldg(const T* p) { return *p; }
inline unsigned __float_as_uint(float value) { return emulator::bits<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return emulator::bits<float>(value); }
inline long long __double_as_longlong(double value) { return emulator::bits<long long>(value); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
// a fiber runs alone until it pauses, so these need no more; they are used within a block only
template <class T> T atomicAdd(T* p, T value) { return std::exchange(*p, T(*p + value)); }
template <class T> T atomicMax(T* p, T value) { return std::exchange(*p, std::max(*p, value)); }
template <class T> T atomicMin(T* p, T value) { return std::exchange(*p, std::min(*p, value)); }
using std::max;
using std::min;
