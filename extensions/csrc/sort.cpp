// The order of rows of numbers: a radix sort, stable, so equal numbers keep their order.
#include "common.h"

namespace {

constexpr int BITS = 11, BUCKETS = 1 << BITS, PASSES = 3;  // 33 bits hold the 32 of a float
constexpr int64_t FEW = 512;                               // below this clearing buckets costs more than comparing

// Bits that sort like the number: -0 like 0, NaN behind everything.
INLINE uint32_t sortable(float value) {
  value += 0.f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return value != value ? 0xffffffffu : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

struct Pair {
  uint32_t key, index;
};

struct Scratch {
  Array<Pair> first, second;
  Array<uint32_t> counts;
  explicit Scratch(int64_t n) : first(n), second(n), counts(PASSES * BUCKETS) {}
};

void sort_row(const float* keys, int64_t n, Scratch& scratch, int64_t* order) {
  Pair *from = scratch.first, *to = scratch.second;
  for (int64_t i = 0; i < n; i++) from[i] = {sortable(keys[i]), uint32_t(i)};
  if (n < FEW) {
    std::sort(from, from + n, [](Pair a, Pair b) { return a.key < b.key || (a.key == b.key && a.index < b.index); });
  } else {
    uint32_t* counts = scratch.counts;
    std::fill(counts, counts + PASSES * BUCKETS, 0);
    for (int64_t i = 0; i < n; i++)
      for (int pass = 0; pass < PASSES; pass++) counts[pass * BUCKETS + (from[i].key >> pass * BITS) % BUCKETS]++;
    for (int pass = 0; pass < PASSES; pass++) {
      uint32_t *count = counts + pass * BUCKETS, place = 0;
      if (count[(from[0].key >> pass * BITS) % BUCKETS] == n) continue;  // all alike in these bits
      for (int b = 0; b < BUCKETS; b++) place += count[b], count[b] = place - count[b];
      for (int64_t i = 0; i < n; i++) to[count[(from[i].key >> pass * BITS) % BUCKETS]++] = from[i];
      std::swap(from, to);
    }
  }
  for (int64_t i = 0; i < n; i++) order[i] = from[i].index;
}

}  // namespace

// keys (rows, n) -> order (rows, n); returns 1 if a row is too long to number.
extern "C" int64_t pointsmith_sort_order(const float* keys, int64_t rows, int64_t n, int64_t* order, int64_t threads) {
  if (n > std::numeric_limits<uint32_t>::max()) return 1;
  parallel(rows, threads, [&](int64_t begin, int64_t end) {
    Scratch scratch(n);
    for (int64_t row = begin; row < end; row++) sort_row(keys + row * n, n, scratch, order + row * n);
  });
  return 0;
}
