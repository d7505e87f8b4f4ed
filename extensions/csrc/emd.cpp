// An auction for the assignment problem: earth mover's distance, nearly exactly.
#include <vector>

#include "common.h"

namespace {

// An auction one bidder at a time (D. Bertsekas): a point of x without a partner bids for the point of y that is
// cheapest to it, distance and price together, by so much that it would then be as well off with its second choice, and
// epsilon more; the previous owner is turned out and bids next. Prices only rise, over all epsilons; so a bidder keeps
// the choices of its last look at all points, and what no other point was cheaper than then: as long as two choices are
// not dearer than that, it need not look again. Real is double where epsilon is too fine for float.
template <class Real>
class Auction {
  static constexpr double FIRST = 0.02, NEXT = 0.2;  // epsilons: of the largest cost, of the one before
  static constexpr int DEPTH = 2;                    // choices a lane
  static constexpr Real INFINITE = std::numeric_limits<Real>::infinity();
  typedef Real Values __attribute__((vector_size(4 * LANES)));
  using Index = decltype(Values{} < Values{});
  static constexpr int WIDTH = 4 * LANES / sizeof(Real);

  struct Choices {
    Values cost[DEPTH];  // without the price
    Index index[DEPTH];
    Real limit;
  };
  struct Offer {
    int64_t choice;
    Real least, next;  // cost and price of the choice and of the second one
  };

 public:
  explicit Auction(int64_t n)  // at least one place behind the last point, whose price is infinite
      : n_(n), padded_(round_up(n + 1, WIDTH)), x_(padded_), y_(padded_), z_(padded_), price_(padded_), owner_(n),
        choices_(n) {}

  void run(const float* x, const float* y, bool squared, Real largest, Real eps, int64_t* partner) {
    for (int64_t j = 0; j < padded_; j++) {
      x_[j] = j < n_ ? y[3 * j] : 0, y_[j] = j < n_ ? y[3 * j + 1] : 0, z_[j] = j < n_ ? y[3 * j + 2] : 0;
      price_[j] = j < n_ ? 0 : INFINITE;
    }
    std::fill(choices_.begin(), choices_.end(), Choices{{}, {}, -1});  // so that all look first
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
      const int64_t j = squared ? bid<true>(x + 3 * i, choices_[i], eps) : bid<false>(x + 3 * i, choices_[i], eps);
      if (owner_[j] >= 0) waiting_.push_back(owner_[j]);
      owner_[j] = i;
      partner[i] = j;
    }
  }

  template <bool SQUARED>
  int64_t bid(const float* from, Choices& choices, Real eps) {
    Offer offer = among(choices);
    if (!(offer.next <= choices.limit)) {
      look<SQUARED>(from, choices);
      offer = among(choices);
    }
    Real& price = price_[offer.choice];
    const Real raise = offer.next - offer.least + eps;
    price = std::max(price + raise, std::nextafter(price, INFINITE));  // it rises, or the auction would not end
    return offer.choice;
  }

  Offer among(const Choices& choices) {
    Values best = Values{} + INFINITE, second = best;
    Index index{};
    for (int d = 0; d < DEPTH; d++) {
      const Values value = choices.cost[d] + at(price_, choices.index[d]);
      second = smaller(larger(value, best), second);
      index = value < best ? choices.index[d] : index;
      best = smaller(value, best);
    }
    const Real least = least_lane(best);
    const int lane = first_at(best, least);
    best[lane] = second[lane];
    return {index[lane], least, least_lane(best)};
  }

  // Every lane's cheapest points at the prices of now, and the least of what the lanes' next ones cost.
  template <bool SQUARED>
  void look(const float* from, Choices& choices) {
    const Values x = Values{} + Real(from[0]), y = Values{} + Real(from[1]), z = Values{} + Real(from[2]);
    const auto cost = [&](Values px, Values py, Values pz) {
      const Values dx = px - x, dy = py - y, dz = pz - z, squared = dx * dx + dy * dy + dz * dz;
      return SQUARED ? squared : square_root(squared);
    };
    Values values[DEPTH + 1];
    Index indices[DEPTH], now;
    for (Values& value : values) value = Values{} + INFINITE;
    for (Index& index : indices) index = Index{} + decltype(index[0] + 0)(n_);
    for (int i = 0; i < WIDTH; i++) now[i] = i;
    for (int64_t j = 0; j < padded_; j += WIDTH, now += WIDTH) {
      Values value = cost(get(x_ + j), get(y_ + j), get(z_ + j)) + get(price_ + j);
      Index index = now;
      for (int d = 0; d < DEPTH; d++) {  // in order; the dearest one goes on to the next place
        const Values dearer = larger(value, values[d]);
        const Index cheaper = value < values[d], other = cheaper ? indices[d] : index;
        indices[d] = cheaper ? index : indices[d];
        values[d] = smaller(value, values[d]);
        value = dearer, index = other;
      }
      values[DEPTH] = smaller(value, values[DEPTH]);
    }
    for (int d = 0; d < DEPTH; d++) {
      const Index index = choices.index[d] = indices[d];
      choices.cost[d] = cost(at(x_, index), at(y_, index), at(z_, index));
    }
    choices.limit = least_lane(values[DEPTH]);
  }

  INLINE Values at(const Real* p, Index index) {
    if constexpr (sizeof(Real) == sizeof(float)) return (Values)gather(p, (Int)index);
    Values v;
    for (int i = 0; i < WIDTH; i++) v[i] = p[index[i]];
    return v;
  }

  INLINE Real least_lane(Values v) {
    if constexpr (sizeof(Real) == sizeof(float)) return smallest_lane((Float)v);
    Real least = v[0];
    for (int i = 1; i < WIDTH; i++) least = std::min<Real>(least, v[i]);
    return least;
  }

  INLINE int first_at(Values v, Real value) {
    if constexpr (sizeof(Real) == sizeof(float)) return __builtin_ctz(bits((Int)(v == value)));
    int lane = 0;
    while (v[lane] != value) lane++;
    return lane;
  }

  INLINE Values get(const Real* p) {
    Values v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }

  const int64_t n_, padded_;
  Array<Real> x_, y_, z_, price_;
  std::vector<int64_t> owner_, waiting_;
  std::vector<Choices> choices_;
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
