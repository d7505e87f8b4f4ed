// The cost of approxmatch and its gradients without the plan, in memory that grows with n + m.
//
// Both clouds are sorted along a curve, so that a round leaves out pairs of leaves too far apart for its kernel. Rounds
// need no more than sums over the rows and the columns of the kernel: one pass over the pairs each, in which the points
// of x also learn what the round before took. Cost and gradients come at the end, from what all rounds moved together.
#include "buckets.h"

namespace {

constexpr int ROWS = 4;   // points of x that go through y together
constexpr int STEPS = 9;  // rounds with a kernel, levels 4^7 to 4^-1; in the one after them all pairs are equally near
constexpr int FINE = 4;   // the first of them: their kernels are powers of that of the last, as those of the others are
constexpr float TINY = 1e-9f;
constexpr float FAINT = -72;       // 2^FAINT is nothing beside TINY
constexpr float LEAST = 0x1p-50f;  // so is the square of this
constexpr float NO_ROOM = 1e-30f;  // less is none: denormal numbers would be slow

// exp(-level v) of squared distances v, to 2e-7, and no less than 2^FAINT. Every step of the arithmetic loops over the
// rows: independent chains side by side, since one alone would fill the CPU's window of instructions.
struct Kernel {
  float scale, limit;  // it is 2^(scale v), and FAINT beyond the limit

  explicit Kernel(int step) : scale(std::ldexp(-1.442695041f, 2 * (7 - step))), limit(FAINT / scale) {}

  METHOD void operator()(const Float (&v)[ROWS], Float (&out)[ROWS]) const {
    const Float magic = all(12582912.f);  // adding 1.5 * 2^23 rounds to whole numbers
    Float near[ROWS], shifted[ROWS], f[ROWS], p[ROWS];
    for (int r = 0; r < ROWS; r++) near[r] = smaller(v[r], all(limit));
    for (int r = 0; r < ROWS; r++) shifted[r] = fused(near[r], all(scale), magic);
    for (int r = 0; r < ROWS; r++) f[r] = fused(near[r], all(scale), magic - shifted[r]);
    for (int r = 0; r < ROWS; r++) p[r] = fused(f[r], all(1.32647272e-3f), all(9.67151264e-3f));
    for (float c : {5.55073374e-2f, 2.40222421e-1f, 6.93146978e-1f, 1.f})
      for (int r = 0; r < ROWS; r++) p[r] = fused(p[r], f[r], all(c));
    for (int r = 0; r < ROWS; r++) out[r] = (Float)((Int)p[r] + ((Int)shifted[r] << 23));
  }
};

// The kernel of the step before. LEAST keeps it from becoming denormal.
INLINE void fourth_power(Float (&x)[ROWS]) {
  for (int r = 0; r < ROWS; r++) x[r] = fused(x[r], x[r], all(LEAST));
  for (int r = 0; r < ROWS; r++) x[r] = x[r] * x[r];
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
  METHOD void squared_distances(const Rows& from, Float (&out)[ROWS]) const {
    Float d[ROWS];
    for (int r = 0; r < ROWS; r++) d[r] = from.x[r] - x, out[r] = d[r] * d[r];
    for (int r = 0; r < ROWS; r++) d[r] = from.y[r] - y, out[r] = fused(d[r], d[r], out[r]);
    for (int r = 0; r < ROWS; r++) d[r] = from.z[r] - z, out[r] = fused(d[r], d[r], out[r]);
  }
};

// One pair of clouds. Vectors run over the points of y; a point of x has something left to give, one of y has room.
class ApproxMatch {
  using Cloud = Buckets<LANES>;

 public:
  ApproxMatch(int64_t n, int64_t m)
      : n_(n), m_(m), x_(n), y_(m), rows_(x_.points.padded), columns_(y_.points.padded), share_((STEPS + 1) * rows_),
        taken_((STEPS + 1) * columns_), left_(rows_), room_(columns_), offered_(columns_), values_(ROWS * columns_),
        grad_(3 * columns_), near_(y_.padded) {}

  float run(const float* x, const float* y, bool squared, float* grad_x, float* grad_y) {
    fill(x_, x);
    fill(y_, y);
    for (int64_t i = 0; i < rows_; i++) left_[i] = i < n_ ? float(std::max<int64_t>(1, m_ / n_)) : 0;
    for (int64_t j = 0; j < columns_; j++) room_[j] = j < m_ ? float(std::max<int64_t>(1, n_ / m_)) : 0;
    std::fill_n(+share_, rows_, 0.f);  // nothing went before the first step
    std::fill_n(+taken_, columns_, 0.f);
    for (int step = 0; step < STEPS; step++) {
      std::fill_n(+offered_, columns_, 0.f);
      offer(step);
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
    cloud.fill(points);
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

  // Write the leaves of y within a squared distance of a leaf of x to near_; returns how many.
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

  // What the points of x from i on offered in a step for a unit of nearness and of room.
  void shares(int step, int64_t i, Float (&out)[ROWS]) const {
    for (int r = 0; r < ROWS; r++) out[r] = all(share_[step * rows_ + i + r]);
  }

  // Every point of x splits what it has left over the points of y: by nearness and by their room.
  void offer(int step) {
    visit(step, [&](int64_t i, int64_t count) {
      switch ((step < FINE ? FINE : STEPS) - 1 - step) {
        case 0: return offer<0>(step, i, count);
        case 1: return offer<1>(step, i, count);
        case 2: return offer<2>(step, i, count);
        case 3: return offer<3>(step, i, count);
        default: return offer<4>(step, i, count);
      }
    });
  }

  // The same for ROWS points of x. This step is POWERS before that of its kernel. What the step before took is
  // multiplied in the order in which it was offered: nearly all may be gone, and the same rounding must cancel.
  template <int POWERS>
  void offer(int step, int64_t i, int64_t count) {
    const Rows from(x_.points, i);
    const Kernel kernel(step + POWERS), before(step - 1);
    const float* taken = taken_ + std::max(step - 1, 0) * columns_;
    Float share[ROWS], total[ROWS] = {}, gone[ROWS] = {};
    shares(std::max(step - 1, 0), i, share);
    for (int64_t k = 0; k < count; k++) {
      const int64_t j = near_[k] * LANES;
      const Target to(y_.points, j);
      Float squared[ROWS], near[ROWS];
      to.squared_distances(from, squared);
      kernel(squared, near);
      for (int power = 0; power < POWERS; power++) fourth_power(near);
      for (int r = 0; r < ROWS; r++) {
        store(values_ + (k * ROWS + r) * LANES, near[r]);
        total[r] = fused(near[r], load(room_ + j), total[r]);
      }
      if (POWERS == STEPS - FINE - 1)  // the step before is the last fine one
        before(squared, near);
      else
        fourth_power(near);
      for (int r = 0; r < ROWS; r++) gone[r] = fused(near[r] * share[r], load(taken + j), gone[r]);
    }
    for (int r = 0; r < ROWS; r++) {
      left_[i + r] = std::max(left_[i + r] - sum(gone[r]), 0.f);
      share_[step * rows_ + i + r] = left_[i + r] / (sum(total[r]) + TINY);
    }
    shares(step, i, share);
    for (int64_t k = 0; k < count; k++) {
      float* offered = offered_ + near_[k] * LANES;
      Float sum = load(offered);
      for (int r = 0; r < ROWS; r++) sum = fused(load(values_ + (k * ROWS + r) * LANES), share[r], sum);
      store(offered, sum);
    }
  }

  // The last round: everything that is left, in proportion to the room alone.
  void offer_the_rest() {
    visit(STEPS - 1, [&](int64_t i, int64_t count) {
      const Rows from(x_.points, i);
      const Kernel kernel(STEPS - 1);
      const float* taken = taken_ + (STEPS - 1) * columns_;
      Float share[ROWS], gone[ROWS] = {};
      shares(STEPS - 1, i, share);
      for (int64_t k = 0; k < count; k++) {
        const int64_t j = near_[k] * LANES;
        const Target to(y_.points, j);
        Float near[ROWS];
        to.squared_distances(from, near);
        kernel(near, near);
        for (int r = 0; r < ROWS; r++) gone[r] = fused(near[r] * share[r], load(taken + j), gone[r]);
      }
      for (int r = 0; r < ROWS; r++) left_[i + r] = std::max(left_[i + r] - sum(gone[r]), 0.f);
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
        plan<FINE>(FINE - 1, i, reach(leaf, Kernel(FINE - 1).limit));
        plan<STEPS - FINE>(STEPS - 1, i, reach(leaf, Kernel(STEPS - 1).limit));
        cost += move<SQUARED>(i, grad_x);
      }
    return cost;
  }

  // Write what the last round moves from ROWS points of x.
  void plan_the_rest(int64_t i) {
    const float *share = share_ + STEPS * rows_ + i, *taken = taken_ + STEPS * columns_;
    for (int64_t j = 0; j < columns_; j += LANES)
      for (int r = 0; r < ROWS; r++) store(values_ + j * ROWS + r * LANES, load(taken + j) * share[r]);
  }

  // Add what the TOGETHER steps up to `step` move, whose kernels are powers of that of the last.
  template <int TOGETHER>
  void plan(int step, int64_t i, int64_t count) {
    const Rows from(x_.points, i);
    const Kernel kernel(step);
    const float* taken = taken_ + step * columns_;
    Float share[TOGETHER][ROWS];
    for (int power = 0; power < TOGETHER; power++) shares(step - power, i, share[power]);
    for (int64_t k = 0; k < count; k++) {
      const int64_t j = near_[k] * LANES;
      const Target to(y_.points, j);
      float* planned = values_ + j * ROWS;
      Float near[ROWS], amount[ROWS];
      to.squared_distances(from, near);
      kernel(near, near);
      for (int r = 0; r < ROWS; r++) amount[r] = load(planned + r * LANES);
      for (int power = 0; power < TOGETHER; power++) {
        if (power) fourth_power(near);
        for (int r = 0; r < ROWS; r++)
          amount[r] = fused(near[r] * share[power][r], load(taken + j - power * columns_), amount[r]);
      }
      for (int r = 0; r < ROWS; r++) store(planned + r * LANES, amount[r]);
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
        const Float squared = fused(dz, dz, fused(dy, dy, dx * dx));
        const Float distance = SQUARED ? squared : square_root(squared);
        const Float amount = load(values_ + j * ROWS + r * LANES);
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
  Array<float> share_, taken_, left_, room_, offered_, values_, grad_;
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
