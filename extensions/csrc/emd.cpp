// Earth mover's distances: the cost of approxmatch without its plan, and an auction for the assignment problem.
#include <vector>

#include "common.h"

namespace {

constexpr float TINY = 1e-9f, LOWEST = -87.f;  // exp(LOWEST) is about the smallest normal float

// exp(x) for x <= 0 to two units in the last place, 0 below LOWEST (Cephes' polynomial).
INLINE Float exponential(Float x) {
  const Float clamped = larger(x, all(LOWEST)), magic = all(12582912.f);  // adding 1.5 * 2^23 rounds to whole numbers
  const Float n = fused(clamped, all(1.442695041f), magic) - magic;
  const Float r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), clamped));
  Float p = fused(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
  p = fused(p, r, all(8.3334519073e-3f));
  p = fused(p, r, all(4.1665795894e-2f));
  p = fused(p, r, all(1.6666665459e-1f));
  p = fused(p, r, all(5.0000001201e-1f));
  p = fused(p, r * r, r + 1.f);
  const Int power = (__builtin_convertvector(n, Int) + 127) << 23;
  return x < all(LOWEST) ? Float{} : p * (Float)power;
}

// One pair of clouds. Vectors run over the points of y; a point of x has `left` to give, one of y has room for `right`.
class ApproxMatch {
 public:
  ApproxMatch(int64_t n, int64_t m)
      : n_(n), y_(m), left_(n), share_(n), right_(y_.padded), offered_(y_.padded), taken_(y_.padded), row_(y_.padded),
        grad_(3 * y_.padded) {}

  float run(const float* x, const float* y, bool squared, float* grad_x, float* grad_y) {
    const int64_t m = y_.n, padded = y_.padded;
    y_.fill(y);
    for (int64_t j = 0; j < padded; j++) {
      if (j >= m) y_.x[j] = y_.y[j] = y_.z[j] = 0;
      right_[j] = j < m ? float(std::max<int64_t>(1, n_ / m)) : 0;
    }
    std::fill_n(+left_, n_, float(std::max<int64_t>(1, m / n_)));
    std::fill_n(+grad_, 3 * padded, 0.f);
    std::fill_n(grad_x, 3 * n_, 0.f);
    double cost = 0;
    for (int power = 7; power >= -2; power--) {
      const float level = power == -2 ? 0.f : std::ldexp(1.f, 2 * power);
      offer(x, level);
      accept();
      for (int64_t i = 0; i < n_; i++)
        cost += squared ? flow<true>(x + 3 * i, i, level, grad_x) : flow<false>(x + 3 * i, i, level, grad_x);
    }
    for (int64_t j = 0; j < m; j++)
      for (int axis = 0; axis < 3; axis++) grad_y[3 * j + axis] = grad_[axis * padded + j];
    return float(cost);
  }

 private:
  // exp(-level * squared); `live` is false if that is 0 in every lane
  INLINE Float kernel(Float squared, float level, bool& live) {
    const Float exponent = squared * -level;
    live = level == 0 || bits(~(exponent < all(LOWEST)));
    return level == 0 ? all(1.f) : live ? exponential(exponent) : Float{};
  }
  INLINE Float squared_length(Float dx, Float dy, Float dz) { return fused(dz, dz, fused(dy, dy, dx * dx)); }

  // Every point of x splits what it has left over the points of y: by nearness and by their room.
  void offer(const float* x, float level) {
    const int64_t padded = y_.padded;
    const float *y = y_.x, *right = right_;
    float *row = row_, *offered = offered_;
    std::fill_n(offered, padded, 0.f);
    for (int64_t i = 0; i < n_; i++) {
      const Point from(x + 3 * i);
      Float total{};
      for (int64_t j = 0; j < padded; j += LANES) {
        const Float dx = from.x - load(y + j), dy = from.y - load(y + padded + j), dz = from.z - load(y + 2 * padded + j);
        bool live;
        const Float near = kernel(squared_length(dx, dy, dz), level, live);
        store(row + j, near);
        if (live) total = fused(near, load(right + j), total);
      }
      share_[i] = left_[i] / (sum(total) + TINY);
      const Float share = all(share_[i]);
      for (int64_t j = 0; j < padded; j += LANES) store(offered + j, fused(load(row + j), share, load(offered + j)));
    }
  }

  // Every point of y scales down what it is offered beyond its room.
  void accept() {
    for (int64_t j = 0; j < y_.padded; j++) {
      const float offered = offered_[j] * right_[j], accepted = std::min(right_[j] / (offered + TINY), 1.f);
      taken_[j] = right_[j] * accepted;
      // what is left of room that was fully taken decides the next round: a difference would round it away
      right_[j] = accepted < 1 ? right_[j] * TINY / (offered + TINY) : right_[j] - offered;
    }
  }

  // What flows from one point of x: its cost; gradients are added up, what is left is reduced.
  template <bool SQUARED>
  float flow(const float* point, int64_t i, float level, float* grad_x) {
    const Point from(point);
    const Float share = all(share_[i]);
    const int64_t padded = y_.padded;
    const float *y = y_.x, *taken = taken_;
    float* grad = grad_;
    Float total{}, cost{}, gx{}, gy{}, gz{};
    for (int64_t j = 0; j < padded; j += LANES) {
      const Float dx = from.x - load(y + j), dy = from.y - load(y + padded + j), dz = from.z - load(y + 2 * padded + j);
      const Float squared = squared_length(dx, dy, dz);
      bool live;
      const Float near = kernel(squared, level, live);
      if (!live) continue;
      const Float amount = near * share * load(taken + j);
      const Float distance = SQUARED ? squared : square_root(squared);
      const Float pull = SQUARED ? amount * 2.f : amount / larger(distance, all(1e-10f));
      total += amount;
      cost = fused(amount, distance, cost);
      gx = fused(pull, dx, gx), gy = fused(pull, dy, gy), gz = fused(pull, dz, gz);
      float* g = grad + j;
      store(g, fused(-pull, dx, load(g)));
      store(g + padded, fused(-pull, dy, load(g + padded)));
      store(g + 2 * padded, fused(-pull, dz, load(g + 2 * padded)));
    }
    left_[i] = std::max(left_[i] - sum(total), 0.f);
    grad_x[3 * i] += sum(gx), grad_x[3 * i + 1] += sum(gy), grad_x[3 * i + 2] += sum(gz);
    return sum(cost);
  }

  const int64_t n_;
  Planes y_;
  Array<float> left_, share_, right_, offered_, taken_, row_, grad_;
};

// An auction one bidder at a time (D. Bertsekas): a point of x without a partner bids for the point of y that is
// cheapest to it, distance and price together, by so much that it would then be as well off with its second choice, and
// epsilon more; the previous owner is turned out and bids next. Real is double where epsilon is too fine for float.
template <class Real>
class Auction {
  static constexpr double FIRST = 0.02, NEXT = 0.2;  // epsilons: of the largest cost, of the one before
  typedef Real Values __attribute__((vector_size(4 * LANES)));
  using Index = decltype(Values{} < Values{});
  static constexpr int WIDTH = 4 * LANES / sizeof(Real);

 public:
  explicit Auction(int64_t n)
      : n_(n), padded_(round_up(n, WIDTH)), x_(padded_), y_(padded_), z_(padded_), price_(padded_), owner_(n) {}

  void run(const float* x, const float* y, bool squared, Real largest, Real eps, int64_t* partner) {
    for (int64_t j = 0; j < padded_; j++) {
      x_[j] = j < n_ ? y[3 * j] : 0, y_[j] = j < n_ ? y[3 * j + 1] : 0, z_[j] = j < n_ ? y[3 * j + 2] : 0;
      price_[j] = j < n_ ? 0 : std::numeric_limits<Real>::infinity();
    }
    for (Real step = largest * Real(FIRST); step > eps; step *= Real(NEXT)) assign(x, squared, step, partner);
    assign(x, squared, eps, partner);
  }

 private:
  void assign(const float* x, bool squared, Real eps, int64_t* partner) {
    std::fill(owner_.begin(), owner_.end(), -1);
    waiting_.clear();
    for (int64_t i = n_; i-- > 0;) waiting_.push_back(i);
    while (!waiting_.empty()) {
      const int64_t i = waiting_.back();
      waiting_.pop_back();
      const int64_t j = squared ? bid<true>(x + 3 * i, eps) : bid<false>(x + 3 * i, eps);
      if (owner_[j] >= 0) waiting_.push_back(owner_[j]);
      owner_[j] = i;
      partner[i] = j;
    }
  }

  template <bool SQUARED>
  int64_t bid(const float* from, Real eps) {
    const Values x = Values{} + Real(from[0]), y = Values{} + Real(from[1]), z = Values{} + Real(from[2]);
    Values best = Values{} + std::numeric_limits<Real>::infinity(), second = best;
    Index choice{}, index;
    for (int i = 0; i < WIDTH; i++) index[i] = i;
    for (int64_t j = 0; j < padded_; j += WIDTH, index += WIDTH) {
      const Values dx = get(x_ + j) - x, dy = get(y_ + j) - y, dz = get(z_ + j) - z;
      Values value = dx * dx + dy * dy + dz * dz;
      if (!SQUARED) value = square_root(value);
      value += get(price_ + j);
      second = smaller(larger(value, best), second);
      choice = value < best ? index : choice;
      best = smaller(value, best);
    }
    int lane = 0;
    for (int i = 1; i < WIDTH; i++)
      if (best[i] < best[lane] || (best[i] == best[lane] && choice[i] < choice[lane])) lane = i;
    const Real least = best[lane];
    best[lane] = second[lane];
    Real next = best[0];
    for (int i = 1; i < WIDTH; i++) next = std::min<Real>(next, best[i]);
    const int64_t j = choice[lane];
    const Real raise = next - least + eps, higher = std::nextafter(price_[j], std::numeric_limits<Real>::infinity());
    price_[j] = std::max<Real>(price_[j] + raise, higher);  // a price always rises, or the auction would not end
    return j;
  }

  INLINE Values get(const Real* p) {
    Values v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }

  const int64_t n_, padded_;
  Array<Real> x_, y_, z_, price_;
  std::vector<int64_t> owner_, waiting_;
};

// Upper bound of the cost of any pair: the diagonal of the box around both clouds.
double largest_cost(const float* x, const float* y, int64_t n, bool squared) {
  double diagonal = 0;
  for (int axis = 0; axis < 3; axis++) {
    float low = INF, high = -INF;
    for (int64_t i = axis; i < 3 * n; i += 3) {
      low = std::min(low, std::min(x[i], y[i]));
      high = std::max(high, std::max(x[i], y[i]));
    }
    diagonal += (double(high) - low) * (double(high) - low);
  }
  return squared ? diagonal : std::sqrt(diagonal);
}

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

// x, y (B, n, 3) -> the partner in y of every point of x (B, n); returns 1 if coordinates are not finite or too large.
extern "C" int64_t pointsmith_auction(const float* x, const float* y, int64_t batch, int64_t n, int64_t squared,
                                      double eps, int64_t* partner, int64_t threads) {
  constexpr double FINEST = 1e-9, COARSE = 1e-5;  // of the largest cost: where double, where float is fine enough
  if (!all_within(x, batch * n * 3, 1e18f) || !all_within(y, batch * n * 3, 1e18f)) return 1;
  parallel(batch, threads, [&](int64_t begin, int64_t end) {
    Auction<float> quick(n);
    Auction<double> fine(n);
    for (int64_t b = begin; b < end; b++) {
      const float *from = x + b * n * 3, *to = y + b * n * 3;
      const double largest = largest_cost(from, to, n, squared);
      if (n == 1)
        partner[b] = 0;
      else if (eps >= COARSE * largest)
        quick.run(from, to, squared, float(largest), float(eps), partner + b * n);
      else
        fine.run(from, to, squared, largest, std::max(eps, FINEST * largest), partner + b * n);
    }
  });
  return 0;
}
