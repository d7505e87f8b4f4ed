// The cost of approxmatch and its gradients, without the plan: memory is O(n + m).
//
// Both clouds are sorted along a curve, and pairs of leaves too far apart for a round are left out. Rounds need only sums
// over the rows and columns of their kernel; cost and gradients come at the end, from what all rounds moved together.
#include "buckets.h"

namespace {

constexpr int ROWS = 4;      // points of x that go through y together
constexpr int STEPS = 9;     // rounds with a kernel; in the one after them all pairs are equally near
constexpr int TOGETHER = 3;  // rounds whose kernels are powers of one: exp(-4 v) is the fourth power of exp(-v)
constexpr float TINY = 1e-9f;
constexpr float FAINT = -72;     // 2^FAINT is nothing beside TINY
constexpr float LEAST = 0x1p-20;  // so is the fourth power of this, and no denormal number comes of it
constexpr float NO_ROOM = 1e-30f;

// The kernel of a round, exp(-level v) of squared distances v, at least 2^FAINT; as good as exact within 2e-7.
struct Kernel {
  static constexpr float LOG2_E = 1.442695041f;
  float scale, limit;  // 2^(scale v); beyond the limit it is faint

  explicit Kernel(int step) : scale(std::ldexp(-LOG2_E, 2 * (7 - step))), limit(FAINT / scale) {}
  METHOD Float operator()(Float v) const {
    v = smaller(v, all(limit));
    const Float magic = all(12582912.f), shifted = fused(v, all(scale), magic);  // 1.5 * 2^23 rounds to whole numbers
    const Float f = fused(v, all(scale), magic - shifted);
    Float p = fused(f, all(1.32647272e-3f), all(9.67151264e-3f));
    p = fused(p, f, all(5.55073374e-2f));
    p = fused(p, f, all(2.40222421e-1f));
    p = fused(p, f, all(6.93146978e-1f));
    p = fused(p, f, all(1.f));
    return (Float)((Int)p + ((Int)shifted << 23));
  }
};

INLINE Float fourth_power(Float x) {
  x = larger(x, all(LEAST));
  x = x * x;
  return x * x;
}

// The points of x from i on.
struct Rows {
  Float x[ROWS], y[ROWS], z[ROWS];

  METHOD Rows(const Planes& p, int64_t i) {
    for (int r = 0; r < ROWS; r++) x[r] = all(p.x[i + r]), y[r] = all(p.y[i + r]), z[r] = all(p.z[i + r]);
  }
};

// LANES points of y.
struct Target {
  Float x, y, z;

  METHOD Target(const Planes& p, int64_t j) : x(load(p.x + j)), y(load(p.y + j)), z(load(p.z + j)) {}
  METHOD Float squared_distance(const Rows& from, int r) const {
    const Float dx = from.x[r] - x, dy = from.y[r] - y, dz = from.z[r] - z;
    return fused(dz, dz, fused(dy, dy, dx * dx));
  }
};

// One pair of clouds. Vectors run over the points of y; a point of x has something left to give, one of y has room.
class ApproxMatch {
  using Cloud = Buckets<LANES>;

 public:
  ApproxMatch(int64_t n, int64_t m)
      : n_(n), m_(m), x_(n), y_(m), rows_(x_.points.padded), columns_(y_.points.padded), share_((STEPS + 1) * rows_),
        taken_((STEPS + 1) * columns_), left_(rows_), room_(columns_), offered_(columns_), row_(ROWS * columns_),
        grad_(3 * columns_), near_(y_.padded) {}

  float run(const float* x, const float* y, bool squared, float* grad_x, float* grad_y) {
    fill(x_, x);
    fill(y_, y);
    for (int64_t i = 0; i < rows_; i++) left_[i] = i < n_ ? float(std::max<int64_t>(1, m_ / n_)) : 0;
    for (int64_t j = 0; j < columns_; j++) room_[j] = j < m_ ? float(std::max<int64_t>(1, n_ / m_)) : 0;
    for (int step = 0; step < STEPS; step++) {
      std::fill_n(+offered_, columns_, 0.f);
      visit(step, [&](int64_t i, int64_t count) {
        const int powers = TOGETHER - 1 - step % TOGETHER;
        powers == 2 ? offer<2>(step, i, count) : powers == 1 ? offer<1>(step, i, count) : offer<0>(step, i, count);
      });
      accept(step);
    }
    offer_the_rest();
    accept(STEPS);
    std::fill_n(+grad_, 3 * columns_, 0.f);
    const double cost = squared ? add_up<true>(grad_x) : add_up<false>(grad_x);
    for (int64_t j = 0; j < m_; j++)
      for (int axis = 0; axis < 3; axis++) grad_y[3 * y_.original[j] + axis] = grad_[axis * columns_ + j];
    return float(cost);
  }

 private:
  // Padding repeats the last point, without anything to give or room.
  static void fill(Cloud& cloud, const float* points) {
    Planes planes(cloud.points.n);
    planes.fill(points);
    cloud.fill(planes);
    const Planes& p = cloud.points;
    for (int64_t i = p.n; i < p.padded; i++) p.x[i] = p.x[p.n - 1], p.y[i] = p.y[p.n - 1], p.z[i] = p.z[p.n - 1];
  }

  // Call use(i, count) for all points of x, ROWS at a time, with the leaves of y in near_ that the kernel reaches.
  template <class Use>
  void visit(int step, Use use) {
    for (int64_t leaf = 0; leaf < x_.leaves; leaf++) {
      const int64_t count = reach(leaf, Kernel(step).limit);
      for (int64_t i = leaf * LANES; i < std::min((leaf + 1) * LANES, n_); i += ROWS) use(i, count);
    }
  }

  // Write the leaves of y within a squared distance of a leaf of x.
  int64_t reach(int64_t leaf, float limit) {
    const float* box = x_.boxes + leaf;
    const int64_t plane = x_.padded;
    const Point low(box[0], box[plane], box[2 * plane]), high(box[3 * plane], box[4 * plane], box[5 * plane]);
    int64_t count = 0;
    for (int64_t b = 0; b < y_.padded; b += LANES) {
      const uint32_t within = not_above(y_.box_distance(b, low, high), all(limit));
      compact_lanes(near_ + count, int32_t(b), within);
      count += __builtin_popcount(within);
    }
    return count;
  }

  // Take from ROWS points of x what they gave in a step: their share of what was taken from it.
  void give(int step, int64_t i, const Float* taken) {
    const float* share = share_ + step * rows_ + i;
    for (int r = 0; r < ROWS; r++) left_[i + r] = std::max(left_[i + r] - share[r] * sum(taken[r]), 0.f);
  }

  // Points of x split what the step before left them over the points of y: by nearness and by their room. The step is
  // POWERS before the last of its kernel.
  template <int POWERS>
  void offer(int step, int64_t i, int64_t count) {
    const Rows from(x_.points, i);
    const Kernel kernel(step + POWERS), before(step - 1);
    const float* taken = taken_ + std::max(step - 1, 0) * columns_;
    Float total[ROWS] = {}, gone[ROWS] = {};
    for (int64_t k = 0; k < count; k++) {
      const int64_t j = near_[k] * LANES;
      const Target to(y_.points, j);
      for (int r = 0; r < ROWS; r++) {
        const Float squared = to.squared_distance(from, r);
        Float near = kernel(squared);
        for (int power = 0; power < POWERS; power++) near = fourth_power(near);
        store(row_ + (k * ROWS + r) * LANES, near);
        total[r] = fused(near, load(room_ + j), total[r]);
        gone[r] = fused(POWERS == TOGETHER - 1 ? before(squared) : fourth_power(near), load(taken + j), gone[r]);
      }
    }
    if (step > 0) give(step - 1, i, gone);
    Float share[ROWS];
    for (int r = 0; r < ROWS; r++) {
      share_[step * rows_ + i + r] = left_[i + r] / (sum(total[r]) + TINY);
      share[r] = all(share_[step * rows_ + i + r]);
    }
    for (int64_t k = 0; k < count; k++) {
      float* offered = offered_ + near_[k] * LANES;
      Float sum = load(offered);
      for (int r = 0; r < ROWS; r++) sum = fused(load(row_ + (k * ROWS + r) * LANES), share[r], sum);
      store(offered, sum);
    }
  }

  // The last round: everything that is left, in proportion to the room alone.
  void offer_the_rest() {
    visit(STEPS - 1, [&](int64_t i, int64_t count) {
      const Rows from(x_.points, i);
      const Kernel kernel(STEPS - 1);
      const float* taken = taken_ + (STEPS - 1) * columns_;
      Float gone[ROWS] = {};
      for (int64_t k = 0; k < count; k++) {
        const int64_t j = near_[k] * LANES;
        const Target to(y_.points, j);
        for (int r = 0; r < ROWS; r++) gone[r] = fused(kernel(to.squared_distance(from, r)), load(taken + j), gone[r]);
      }
      give(STEPS - 1, i, gone);
    });
    Float room{};
    for (int64_t j = 0; j < columns_; j += LANES) room += load(room_ + j);
    double offered = 0;
    for (int64_t i = 0; i < rows_; i++) {
      share_[STEPS * rows_ + i] = left_[i] / (sum(room) + TINY);
      offered += share_[STEPS * rows_ + i];
    }
    std::fill_n(+offered_, columns_, float(offered));
  }

  // Every point of y scales down what it is offered beyond its room.
  void accept(int step) {
    float* taken = taken_ + step * columns_;
    for (int64_t j = 0; j < columns_; j++) {
      const float room = room_[j], offered = offered_[j] * room, accepted = std::min(room / (offered + TINY), 1.f);
      taken[j] = room * accepted;
      // what is left of room that was fully taken decides the next round: a difference would round it away
      const float rest = accepted < 1 ? room * TINY / (offered + TINY) : room - offered;
      room_[j] = rest < NO_ROOM ? 0 : rest;
    }
  }

  // The cost of all that was moved, and its gradients.
  template <bool SQUARED>
  double add_up(float* grad_x) {
    double cost = 0;
    for (int64_t leaf = 0; leaf < x_.leaves; leaf++)
      for (int64_t i = leaf * LANES; i < std::min((leaf + 1) * LANES, n_); i += ROWS) {
        plan_the_rest(i);
        for (int step = TOGETHER - 1; step < STEPS; step += TOGETHER)
          plan(step, i, reach(leaf, Kernel(step).limit));
        cost += move<SQUARED>(i, grad_x);
      }
    return cost;
  }

  // What the last round moves from ROWS points of x.
  void plan_the_rest(int64_t i) {
    const float *share = share_ + STEPS * rows_ + i, *taken = taken_ + STEPS * columns_;
    for (int64_t j = 0; j < columns_; j += LANES)
      for (int r = 0; r < ROWS; r++) store(row_ + j * ROWS + r * LANES, load(taken + j) * share[r]);
  }

  // Add what a step and the two before it move.
  void plan(int step, int64_t i, int64_t count) {
    const Rows from(x_.points, i);
    const Kernel kernel(step);
    const float *share = share_ + step * rows_ + i, *taken = taken_ + step * columns_;
    Float shares[TOGETHER][ROWS];
    for (int power = 0; power < TOGETHER; power++)
      for (int r = 0; r < ROWS; r++) shares[power][r] = all(share[r - power * rows_]);
    for (int64_t k = 0; k < count; k++) {
      const int64_t j = near_[k] * LANES;
      const Target to(y_.points, j);
      for (int r = 0; r < ROWS; r++) {
        float* planned = row_ + j * ROWS + r * LANES;
        Float near = kernel(to.squared_distance(from, r)), amount = load(planned);
        for (int power = 0; power < TOGETHER; power++) {
          if (power) near = fourth_power(near);
          amount = fused(near * shares[power][r], load(taken + j - power * columns_), amount);
        }
        store(planned, amount);
      }
    }
  }

  // The cost of the plan for ROWS points of x; adds to the gradients.
  template <bool SQUARED>
  float move(int64_t i, float* grad_x) {
    const Rows from(x_.points, i);
    Float cost{}, gx[ROWS] = {}, gy[ROWS] = {}, gz[ROWS] = {};
    for (int64_t j = 0; j < columns_; j += LANES) {
      const Target to(y_.points, j);
      float *hx = grad_ + j, *hy = hx + columns_, *hz = hy + columns_;
      Float x = load(hx), y = load(hy), z = load(hz);
      for (int r = 0; r < ROWS; r++) {
        const Float dx = from.x[r] - to.x, dy = from.y[r] - to.y, dz = from.z[r] - to.z;
        const Float squared = to.squared_distance(from, r), distance = SQUARED ? squared : square_root(squared);
        const Float amount = load(row_ + j * ROWS + r * LANES);
        const Float pull = SQUARED ? amount * 2.f : amount / larger(distance, all(1e-10f));
        cost = fused(amount, distance, cost);
        gx[r] = fused(pull, dx, gx[r]), gy[r] = fused(pull, dy, gy[r]), gz[r] = fused(pull, dz, gz[r]);
        x = fused(-pull, dx, x), y = fused(-pull, dy, y), z = fused(-pull, dz, z);
      }
      store(hx, x), store(hy, y), store(hz, z);
    }
    for (int64_t r = 0; r < std::min<int64_t>(ROWS, n_ - i); r++) {
      float* g = grad_x + 3 * x_.original[i + r];
      g[0] = sum(gx[r]), g[1] = sum(gy[r]), g[2] = sum(gz[r]);
    }
    return sum(cost);
  }

  const int64_t n_, m_;
  Cloud x_, y_;
  const int64_t rows_, columns_;
  Array<float> share_, taken_, left_, room_, offered_, row_, grad_;
  Array<int32_t> near_;
};

}  // namespace

// x (B, n, 3), y (B, m, 3) -> cost (B,) and its gradients with the plan held constant
extern "C" int64_t pointsmith_approx_match_cost(const float* x, const float* y, int64_t batch, int64_t n, int64_t m,
                                                int64_t squared, float* cost, float* grad_x, float* grad_y,
                                                int64_t threads) {
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    ApproxMatch match(n, m);
    for (int64_t b = begin; b < end; b++)
      cost[b] = match.run(x + b * n * 3, y + b * m * 3, squared, grad_x + b * n * 3, grad_y + b * m * 3);
  });
  return 0;
}
