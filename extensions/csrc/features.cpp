// Passes over features (rows, channels) that a mini-PointNet makes: normalise and rectify in one, maximum over a patch.
//
// Every function takes float32 or bfloat16; arithmetic is float32, sums over rows are shifted and kept in double. Rows
// are cut into parts of a fixed size and the parts' sums added in order: results do not depend on the threads.
#include <vector>

#include "common.h"

namespace {

constexpr int64_t PART = 512;  // rows of a part
constexpr int64_t RUN = 32;    // rows that are added up in float32

typedef uint16_t Half __attribute__((vector_size(2 * LANES)));
typedef uint32_t Word __attribute__((vector_size(4 * LANES)));
struct BFloat16 {
  uint16_t bits;
};

// Up to LANES channels, the first `count` of them real.
INLINE Float get(const float* p, int64_t count) {
  if (count >= LANES) return load(p);
  Float v{};
  std::memcpy(&v, p, count * sizeof(float));
  return v;
}
INLINE Float get(const BFloat16* p, int64_t count) {
  Half half{};
  if (count >= LANES)
    std::memcpy(&half, p, sizeof half);
  else
    std::memcpy(&half, p, count * sizeof(uint16_t));
  return (Float)(__builtin_convertvector(half, Word) << 16);
}
INLINE void put(float* p, Float v, int64_t count) {
  if (count >= LANES)
    store(p, v);
  else
    std::memcpy(p, &v, count * sizeof(float));
}
INLINE void put(BFloat16* p, Float v, int64_t count) {
  const Word word = (Word)v, rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Word safe = v == v ? rounded : (word >> 16) | 0x40;                          // a NaN stays one
  const Half half = __builtin_convertvector(safe, Half);
  std::memcpy(p, &half, std::min<int64_t>(count, LANES) * sizeof(uint16_t));
}

// Sums of a run of rows in float32, then of runs in double: (kinds, channels).
class Sums {
 public:
  Sums(int64_t kinds, int64_t channels, double* total)
      : kinds_(kinds), channels_(channels), padded_(round_up(channels, LANES)), run_(kinds * padded_), total_(total) {
    std::fill_n(+run_, kinds * padded_, 0.f);
  }
  METHOD float* of(int64_t kind) { return run_ + kind * padded_; }
  void close_run() {
    for (int64_t kind = 0; kind < kinds_; kind++)
      for (int64_t c = 0; c < channels_; c++) {
        total_[kind * channels_ + c] += of(kind)[c];
        of(kind)[c] = 0;
      }
  }

 private:
  const int64_t kinds_, channels_, padded_;
  Array<float> run_;
  double* total_;
};

// work(first row, last row, sums of the part) for all parts; the sums of all parts, `width` of them, added up.
template <class Work>
std::vector<double> summed(int64_t rows, int64_t part, int64_t width, int64_t threads, Work work) {
  const int64_t parts = (rows + part - 1) / part;
  std::vector<double> sums(parts * width, 0), total(width, 0);
  parallel(parts, threads, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) work(p * part, std::min(rows, (p + 1) * part), &sums[p * width]);
  });
  for (int64_t p = 0; p < parts; p++)
    for (int64_t i = 0; i < width; i++) total[i] += sums[p * width + i];
  return total;
}

// x of (rows, channels), with the row of `shared` (rows / size, channels) that belongs to its patch, if there is one;
// without, runs of `size` rows are taken together.
template <class T>
struct Input {
  const T *x, *shared;
  int64_t rows, size, channels;

  int64_t part() const { return round_up(PART, size); }  // whole patches
  METHOD Float at(int64_t row, int64_t c) const { return get(x + row * channels + c, channels - c); }
  METHOD Float of_patch(int64_t row, int64_t c) const {
    return shared ? get(shared + row / size * channels + c, channels - c) : Float{};
  }
};

// A vector of float32 a channel, as long as whole vectors.
struct PerChannel : Array<float> {
  explicit PerChannel(int64_t channels) : Array<float>(round_up(channels, LANES)) {
    std::fill_n(static_cast<float*>(*this), round_up(channels, LANES), 0.f);
  }
};

// y = relu(x * scale + shift), the form that forward and backward share: both see the same signs.
struct Affine {
  PerChannel scale, shift;
  Affine(const float* weight, const float* bias, const float* mean, const float* inverse, int64_t channels)
      : scale(channels), shift(channels) {
    for (int64_t c = 0; c < channels; c++) {
      scale[c] = weight[c] * inverse[c];
      shift[c] = bias[c] - mean[c] * scale[c];
    }
  }
};

template <class T>
void statistics(const Input<T>& in, float* mean, float* variance, int64_t threads) {
  const int64_t channels = in.channels;
  PerChannel pivot(channels);
  for (int64_t c = 0; c < channels; c += LANES) store(pivot + c, in.at(0, c) + in.of_patch(0, c));
  const auto sums = summed(in.rows, in.part(), 2 * channels, threads, [&](int64_t begin, int64_t end, double* out) {
    Sums part(2, channels, out);
    PerChannel offset(channels);
    float *first = part.of(0), *second = part.of(1);
    for (int64_t run = begin; run < end; run += in.size, part.close_run()) {
      for (int64_t c = 0; c < channels; c += LANES) store(offset + c, in.of_patch(run, c) - load(pivot + c));
      for (int64_t row = run; row < std::min(end, run + in.size); row++)
        for (int64_t c = 0; c < channels; c += LANES) {
          const Float v = in.at(row, c) + load(offset + c);
          store(first + c, load(first + c) + v);
          store(second + c, fused(v, v, load(second + c)));
        }
    }
  });
  for (int64_t c = 0; c < channels; c++) {
    const double first = sums[c] / in.rows, spread = sums[channels + c] / in.rows - first * first;
    mean[c] = float(first + pivot[c]);
    variance[c] = spread < 0 ? 0 : float(spread);
  }
}

template <class T>
void apply(const Input<T>& in, const Affine& a, T* y, int64_t threads) {
  const int64_t channels = in.channels, part = in.part();
  parallel((in.rows + part - 1) / part, threads, [&](int64_t first, int64_t last) {
    PerChannel shift(channels);
    for (int64_t run = first * part; run < std::min(in.rows, last * part); run += in.size) {
      for (int64_t c = 0; c < channels; c += LANES)
        store(shift + c, fused(in.of_patch(run, c), load(a.scale + c), load(a.shift + c)));
      for (int64_t row = run; row < std::min(in.rows, run + in.size); row++)
        for (int64_t c = 0; c < channels; c += LANES) {
          const Float v = fused(in.at(row, c), load(a.scale + c), load(shift + c));
          put(y + row * channels + c, larger(Float{}, v), channels - c);
        }
    }
  });
}

template <class T>
void gradient(const Input<T>& in, const Affine& a, const T* grad, const float* mean, const float* inverse, T* grad_x,
              T* grad_shared, float* grad_weight, float* grad_bias, int64_t threads) {
  const int64_t channels = in.channels, part = in.part();
  // for a run of rows: the shift of the rectifier's input, and what takes a row to its distance from the mean
  const auto prepare = [&](int64_t run, float* shift, float* offset) {
    for (int64_t c = 0; c < channels; c += LANES) {
      const Float shared = in.of_patch(run, c);
      store(shift + c, fused(shared, load(a.scale + c), load(a.shift + c)));
      store(offset + c, shared - get(mean + c, channels - c));
    }
  };
  const auto passed = [&](Float x, int64_t row, int64_t c, const float* shift) {
    const Float g = get(grad + row * channels + c, channels - c);
    return fused(x, load(a.scale + c), load(shift + c)) > Float{} ? g : Float{};
  };
  const auto sums = summed(in.rows, part, 2 * channels, threads, [&](int64_t begin, int64_t end, double* out) {
    Sums total(2, channels, out);
    PerChannel shift(channels), offset(channels);
    float *first = total.of(0), *second = total.of(1);
    for (int64_t run = begin; run < end; run += in.size, total.close_run()) {
      prepare(run, shift, offset);
      for (int64_t row = run; row < std::min(end, run + in.size); row++)
        for (int64_t c = 0; c < channels; c += LANES) {
          const Float x = in.at(row, c), g = passed(x, row, c, shift);
          store(first + c, load(first + c) + g);
          store(second + c, fused(g, x + load(offset + c), load(second + c)));
        }
    }
  });
  PerChannel level(channels), slope(channels);
  for (int64_t c = 0; c < channels; c++) {
    grad_bias[c] = float(sums[c]);
    grad_weight[c] = float(sums[channels + c] * inverse[c]);
    level[c] = float(sums[c] / in.rows);
    slope[c] = float(sums[channels + c] * inverse[c] * inverse[c] / in.rows);
  }
  parallel((in.rows + part - 1) / part, threads, [&](int64_t first, int64_t last) {
    PerChannel shift(channels), offset(channels), total(channels);
    for (int64_t run = first * part; run < std::min(in.rows, last * part); run += in.size) {
      prepare(run, shift, offset);
      for (int64_t row = run; row < std::min(in.rows, run + in.size); row++)
        for (int64_t c = 0; c < channels; c += LANES) {
          const Float x = in.at(row, c), g = passed(x, row, c, shift) - load(level + c);
          const Float out = load(a.scale + c) * fused(-load(slope + c), x + load(offset + c), g);
          put(grad_x + row * channels + c, out, channels - c);
          if (grad_shared) store(total + c, load(total + c) + out);
        }
      if (!grad_shared) continue;
      for (int64_t c = 0; c < channels; c += LANES) {
        put(grad_shared + run / in.size * channels + c, load(total + c), channels - c);
        store(total + c, Float{});
      }
    }
  });
}

template <class T>
void maximum(const T* x, int64_t patches, int64_t size, int64_t channels, T* y, int32_t* index, int64_t threads) {
  parallel(patches, threads, [&](int64_t begin, int64_t end) {
    PerChannel best(channels);
    Array<int32_t> where(round_up(channels, LANES));
    for (int64_t p = begin; p < end; p++) {
      for (int64_t k = 0; k < size; k++)
        for (int64_t c = 0; c < channels; c += LANES) {
          const Float v = get(x + (p * size + k) * channels + c, channels - c), b = load(best + c);
          const Int taken = k == 0 ? ~Int{} : ~(v <= b) & (b == b);  // the first NaN wins
          store(where + c, taken ? all(int32_t(k)) : load(where + c));
          store(best + c, taken ? v : b);
        }
      for (int64_t c = 0; c < channels; c += LANES) put(y + p * channels + c, load(best + c), channels - c);
      std::copy_n(+where, channels, index + p * channels);
    }
  });
}

template <class T>
void maximum_gradient(const T* grad, const int32_t* index, int64_t patches, int64_t size, int64_t channels, T* grad_x,
                      int64_t threads) {
  parallel(patches, threads, [&](int64_t begin, int64_t end) {
    Array<int32_t> where(round_up(channels, LANES));
    std::fill_n(+where, round_up(channels, LANES), -1);
    for (int64_t p = begin; p < end; p++) {
      std::copy_n(index + p * channels, channels, +where);
      for (int64_t k = 0; k < size; k++)
        for (int64_t c = 0; c < channels; c += LANES) {
          const Float g = get(grad + p * channels + c, channels - c);
          const Float out = load(where + c) == all(int32_t(k)) ? g : Float{};
          put(grad_x + (p * size + k) * channels + c, out, channels - c);
        }
    }
  });
}

// A layer from 3 coordinates, its norm and its rectifier: relu(p . weight + shift).
struct Lift {
  PerChannel x, y, z, shift;
  Lift(const float* weight, const float* scale, const float* offset, int64_t channels)
      : x(channels), y(channels), z(channels), shift(channels) {
    for (int64_t c = 0; c < channels; c++) {
      x[c] = weight[3 * c] * scale[c], y[c] = weight[3 * c + 1] * scale[c], z[c] = weight[3 * c + 2] * scale[c];
      shift[c] = offset[c];
    }
  }
  INLINE Float value(const float* p, Float wx, Float wy, Float wz, Float b) {
    return fused(all(p[0]), wx, fused(all(p[1]), wy, fused(all(p[2]), wz, b)));
  }
};

template <class T>
void lift(const float* points, int64_t rows, int64_t channels, const Lift& l, T* out, int64_t threads) {
  parallel((rows + RUN - 1) / RUN, threads, [&](int64_t first, int64_t last) {
    for (int64_t row = first * RUN; row < std::min(rows, last * RUN); row++)
      for (int64_t c = 0; c < channels; c += LANES) {
        const Float v = Lift::value(points + 3 * row, load(l.x + c), load(l.y + c), load(l.z + c), load(l.shift + c));
        put(out + row * channels + c, larger(Float{}, v), channels - c);
      }
  });
}

// Sums over the rows of what passes the rectifier, alone and times each coordinate: (4, channels).
template <class T>
void lift_sums(const T* grad, const float* points, int64_t rows, int64_t channels, const Lift& l, double* sums,
               int64_t threads) {
  const auto total = summed(rows, PART, 4 * channels, threads, [&](int64_t begin, int64_t end, double* out) {
    Sums part(4, channels, out);
    for (int64_t run = begin; run < end; run += RUN, part.close_run())
      for (int64_t c = 0; c < channels; c += LANES) {
        const Float wx = load(l.x + c), wy = load(l.y + c), wz = load(l.z + c), b = load(l.shift + c);
        Float s{}, sx{}, sy{}, sz{};
        for (int64_t row = run; row < std::min(end, run + RUN); row++) {
          const float* p = points + 3 * row;
          const Float g = get(grad + row * channels + c, channels - c);
          const Float passed = Lift::value(p, wx, wy, wz, b) > Float{} ? g : Float{};
          s += passed;
          sx = fused(passed, all(p[0]), sx), sy = fused(passed, all(p[1]), sy), sz = fused(passed, all(p[2]), sz);
        }
        const Float values[4] = {s, sx, sy, sz};
        for (int i = 0; i < 4; i++) store(part.of(i) + c, values[i]);
      }
  });
  std::copy(total.begin(), total.end(), sums);
}

// f(float pointer) or f(bfloat16 pointer), as the flag says
template <class F>
void typed(int64_t half, F f) {
  if (half)
    f(static_cast<BFloat16*>(nullptr));
  else
    f(static_cast<float*>(nullptr));
}

}  // namespace

// mean and variance (biased) of x + shared over the rows, per channel
extern "C" int64_t pointsmith_norm_statistics(const void* x, const void* shared, int64_t rows, int64_t size,
                                              int64_t channels, int64_t half, float* mean, float* variance,
                                              int64_t threads) {
  typed(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Input<T> in{(const T*)x, (const T*)shared, rows, shared ? size : RUN, channels};
    statistics(in, mean, variance, threads);
  });
  return 0;
}

// y = relu(norm(x + shared))
extern "C" int64_t pointsmith_norm_relu(const void* x, const void* shared, int64_t rows, int64_t size, int64_t channels,
                                        int64_t half, const float* weight, const float* bias, const float* mean,
                                        const float* inverse, void* y, int64_t threads) {
  const Affine affine(weight, bias, mean, inverse, channels);
  typed(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    apply(Input<T>{(const T*)x, (const T*)shared, rows, shared ? size : RUN, channels}, affine, (T*)y, threads);
  });
  return 0;
}

// gradients of norm_relu where mean and variance are those of the rows; grad_x may be grad
extern "C" int64_t pointsmith_norm_relu_backward(const void* grad, const void* x, const void* shared, int64_t rows,
                                                 int64_t size, int64_t channels, int64_t half, const float* weight,
                                                 const float* bias, const float* mean, const float* inverse,
                                                 void* grad_x, void* grad_shared, float* grad_weight, float* grad_bias,
                                                 int64_t threads) {
  const Affine affine(weight, bias, mean, inverse, channels);
  typed(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    gradient(Input<T>{(const T*)x, (const T*)shared, rows, shared ? size : RUN, channels}, affine, (const T*)grad, mean,
             inverse, (T*)grad_x, (T*)grad_shared, grad_weight, grad_bias, threads);
  });
  return 0;
}

// x (patches, size, channels) -> maximum over `size` and its index
extern "C" int64_t pointsmith_group_max(const void* x, int64_t patches, int64_t size, int64_t channels, int64_t half,
                                        void* y, int32_t* index, int64_t threads) {
  typed(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    maximum((const T*)x, patches, size, channels, (T*)y, index, threads);
  });
  return 0;
}

extern "C" int64_t pointsmith_group_max_backward(const void* grad, const int32_t* index, int64_t patches, int64_t size,
                                                 int64_t channels, int64_t half, void* grad_x, int64_t threads) {
  typed(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    maximum_gradient((const T*)grad, index, patches, size, channels, (T*)grad_x, threads);
  });
  return 0;
}

// out = relu((points . weight) * scale + shift), weight (channels, 3)
extern "C" int64_t pointsmith_lift(const float* points, int64_t rows, int64_t channels, int64_t half,
                                   const float* weight, const float* scale, const float* shift, void* out,
                                   int64_t threads) {
  const Lift l(weight, scale, shift, channels);
  typed(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    lift(points, rows, channels, l, (T*)out, threads);
  });
  return 0;
}

// sums (4, channels): of the gradient behind the rectifier, and of it times each coordinate
extern "C" int64_t pointsmith_lift_sums(const void* grad, const float* points, int64_t rows, int64_t channels,
                                        int64_t half, const float* weight, const float* scale, const float* shift,
                                        double* sums, int64_t threads) {
  const Lift l(weight, scale, shift, channels);
  typed(half, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    lift_sums((const T*)grad, points, rows, channels, l, sums, threads);
  });
  return 0;
}
