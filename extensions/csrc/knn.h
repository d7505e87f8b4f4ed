// The k nearest points of queries in one cloud.
#pragma once
#include <memory>

#include "buckets.h"

class Neighbours {
 public:
  static constexpr int LEAF = 32;
  // Of a cloud (n, 3); `planes` is scratch memory in blocks of 8 * LANES. `expected` queries decide whether sorting the
  // cloud into buckets pays.
  Neighbours(const float* cloud, Planes& planes, int64_t k, int64_t expected);
  // The scratch memory of one thread.
  struct Scratch {
    explicit Scratch(const Neighbours& of);
    Array<float> gap;     // squared distances to the boxes of the buckets
    Array<int32_t> leaf;  // those whose points were looked at
    Array<float> distance, found;
    Array<int32_t> index;
  };
  // Write the k nearest of one query, ascending; `distances` may be null.
  void search(const float* query, Scratch& scratch, float* distances, int64_t* indices) const;

 private:
  int64_t scan(Point query, Scratch& s) const;
  int64_t scan_buckets(Point query, Scratch& s) const;
  void sort_all(const float* query, float* distances, int64_t* indices) const;

  const float* cloud_;
  Planes& planes_;
  const int64_t k_;
  std::unique_ptr<Buckets<LEAF>> buckets_;
};
