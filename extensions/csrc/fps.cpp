// Farthest point sampling: one pass over the points a step, which updates the distances to the chosen set and finds the
// farthest at once. Large clouds are cut into buckets, and a step passes over those only that the new choice can reach.
#include "fps.h"

namespace {

constexpr float FAR = 1e10f;          // distance to the empty set, as in pointnet2_ops
constexpr float BROKEN = 1e18f;       // where points that are not finite go: they move no minimum there
constexpr double NEAR_ORIGIN = 1e-3;  // squared norm of what pointnet2_ops takes for padding
constexpr int LEAF = 32, BLOCK = 4 * LANES;
constexpr int64_t BUCKETS_FROM_POINTS = 2048, BUCKETS_FROM_SAMPLES = 256;
constexpr int64_t PAIRS_TO_POINTS = 1024;  // two clouds and their distances stay in the first cache

// Move broken points among the first `count` away and set the first distances: FAR for candidates, -1 for what is never
// chosen.
void prepare(Planes& p, int64_t count, bool skip_near_origin, float* closest) {
  for (int64_t i = 0; i < count; i++) {
    const float norm = p.x[i] * p.x[i] + p.y[i] * p.y[i] + p.z[i] * p.z[i];
    const bool finite = norm <= std::numeric_limits<float>::max();
    closest[i] = finite && !(skip_near_origin && norm <= NEAR_ORIGIN) ? FAR : -1.f;
    if (!finite) p.x[i] = p.y[i] = p.z[i] = BROKEN;
  }
}

// One pass over all points a step.
class FlatSampler {
 public:
  explicit FlatSampler(int64_t n) : p_(n, BLOCK) {}

  FlatSampler& fill(const float* cloud, bool skip_near_origin) {
    p_.fill(cloud);
    prepare(p_, p_.padded, skip_near_origin, p_.kept);
    return *this;
  }
  Point at(int64_t i) const { return Point(p_.x[i], p_.y[i], p_.z[i]); }

  // The bits of floats that are not negative sort like the floats, a NaN behind all, and compare on more units than
  // floats; -1 comes before all. First the highest block of every lane, then the point in it: an index a block, not one
  // a vector.
  METHOD int32_t step(const Point center) {
    const float *x = p_.x, *y = p_.y, *z = p_.z;
    float* closest = p_.kept;
    const int64_t padded = p_.padded;
    Int most = all(std::numeric_limits<int32_t>::min()), block = all(NO_INDEX);
    for (int64_t i = 0; i < padded; i += BLOCK) {
      Int far[BLOCK / LANES];
#pragma GCC unroll 4
      for (int v = 0; v < BLOCK / LANES; v++) {
        const int64_t j = i + v * LANES;
        far[v] = smaller((Int)squared_distance(x + j, y + j, z + j, center), (Int)load(closest + j));
        store(closest + j, (Float)far[v]);
      }
      const Int farthest = larger(larger(far[0], far[1]), larger(far[2], far[3]));
      block = farthest > most ? all(int32_t(i)) : block;
      most = larger(farthest, most);
    }
    const Int value = all(largest_lane(most));
    const int32_t first = smallest_lane(most == value ? block : all(NO_INDEX));
    uint64_t which = 0;
    for (int v = BLOCK / LANES; v-- > 0;)
      which = which << LANES | bits((Int)load(closest + first + v * LANES) == value);
    return first + __builtin_ctzll(which);
  }

 private:
  Planes p_;
};

// The same steps with the points in buckets: `reach` is the largest distance in a bucket.
class BucketSampler {
 public:
  explicit BucketSampler(int64_t n) : buckets_(n), closest_(buckets_.points.padded), reach_(buckets_.padded) {}

  BucketSampler& fill(const float* cloud, bool skip_near_origin) {
    const int64_t n = buckets_.points.n;
    cloud_ = cloud;
    buckets_.arrange(cloud);
    prepare(buckets_.points, n, skip_near_origin, closest_);
    std::fill(closest_ + n, closest_ + buckets_.points.padded, -1.f);
    buckets_.bound();
    std::fill_n(+reach_, buckets_.padded, -1.f);
    for (int64_t b = 0; b < buckets_.leaves; b++) update(b, Point(INF, INF, INF));
    return *this;
  }
  Point at(int64_t i) const {
    return all_within(cloud_ + 3 * i, 3) ? Point(cloud_ + 3 * i) : Point(INF, INF, INF);  // near to no box
  }

  int32_t step(const Point center) {
    Int most = all(std::numeric_limits<int32_t>::min());
    for (int64_t b = 0; b < buckets_.padded; b += LANES) {
      for (uint32_t hit = below(buckets_.box_distance(b, center, center), load(reach_ + b)); hit; hit &= hit - 1)
        update(b + __builtin_ctz(hit), center);
      most = larger((Int)load(reach_ + b), most);
    }
    return lowest_at(all(largest_lane(most)));
  }

 private:
  void update(int64_t b, const Point center) {
    const Planes& p = buckets_.points;
    Int most = all(std::numeric_limits<int32_t>::min());
    for (int64_t i = b * LEAF; i < (b + 1) * LEAF; i += LANES) {
      const Float d = squared_distance(p.x + i, p.y + i, p.z + i, center);
      const Int nearer = smaller((Int)d, (Int)load(closest_ + i));
      store(closest_ + i, (Float)nearer);
      most = larger(nearer, most);
    }
    const int32_t reach = largest_lane(most);
    std::memcpy(reach_ + b, &reach, sizeof reach);
  }
  // The lowest index in the cloud among the points at that distance.
  int32_t lowest_at(Int distance) const {
    Int lowest = all(NO_INDEX);
    for (int64_t b = 0; b < buckets_.padded; b += LANES)
      for (uint32_t hit = bits((Int)load(reach_ + b) == distance); hit; hit &= hit - 1) {
        const int64_t first = (b + __builtin_ctz(hit)) * LEAF;
        if (first >= buckets_.points.padded) break;  // where no point can be chosen, boxes of padding are as far
        for (int64_t i = first; i < first + LEAF; i += LANES) {
          const Int index = load(buckets_.original + i);
          lowest = smaller((Int)load(closest_ + i) == distance ? index : all(NO_INDEX), lowest);
        }
      }
    return smallest_lane(lowest);
  }

  const float* cloud_ = nullptr;
  Buckets<LEAF> buckets_;
  Array<float> closest_, reach_;
};

struct Task {
  int64_t count, start;
  const float* means;  // (B, 3) or null
  int64_t* chosen;     // (B, count)

  template <class Sampler>
  int64_t first(int64_t b, Sampler& sampler) const {
    if (!means) return start;
    const float* mean = means + 3 * b;
    return sampler.step(all_within(mean, 3) ? Point(mean) : Point(INF, INF, INF));
  }
};

// Clouds from number b on, one for each sampler. Their steps take turns, so that the search for the farthest point of
// one waits while the distances of another are computed.
template <class... Sampler>
void run(const Task& task, int64_t b, Sampler&... samplers) {
  constexpr int WIDTH = sizeof...(samplers);
  int64_t last[WIDTH], w = 0;
  ((last[w] = task.first(b + w, samplers), w++), ...);
  for (int64_t s = 0; s < task.count; s++) {
    for (w = 0; w < WIDTH; w++) task.chosen[(b + w) * task.count + s] = last[w];
    if (s + 1 == task.count) break;
    w = 0;
    ((last[w] = samplers.step(samplers.at(last[w])), w++), ...);
  }
}

}  // namespace

void sample(const float* clouds, int64_t batch, int64_t n, int64_t count, int64_t start, const float* means,
            bool skip_near_origin, int64_t* chosen) {
  const Task task{count, start, means, chosen};
  const auto cloud = [&](int64_t b) { return clouds + b * n * 3; };
  int64_t b = 0;
  if (n >= BUCKETS_FROM_POINTS && count >= BUCKETS_FROM_SAMPLES) {
    BucketSampler sampler(n);
    for (; b < batch; b++) run(task, b, sampler.fill(cloud(b), skip_near_origin));
    return;
  }
  FlatSampler one(n), two(n);
  for (; b + 2 <= batch && n <= PAIRS_TO_POINTS; b += 2)
    run(task, b, one.fill(cloud(b), skip_near_origin), two.fill(cloud(b + 1), skip_near_origin));
  for (; b < batch; b++) run(task, b, one.fill(cloud(b), skip_near_origin));
}

// points (B, n, 3), means (B, 3) or null -> chosen (B, count)
extern "C" int64_t pointsmith_farthest_point_sample(const float* points, const float* means, int64_t batch, int64_t n,
                                                 int64_t count, int64_t start, int64_t skip_near_origin,
                                                 int64_t* chosen, int64_t threads) {
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    sample(points + begin * n * 3, end - begin, n, count, start, means ? means + begin * 3 : nullptr, skip_near_origin,
           chosen + begin * count);
  });
  return 0;
}
