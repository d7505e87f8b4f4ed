// An auction for the assignment problem: earth mover's distance, nearly exactly.
#include <vector>

#include "common.h"

namespace {

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
