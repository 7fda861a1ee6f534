// Operations other than convolutions and dense layers, as loops over NHWC arrays.
//
// Feature maps are float32 or bfloat16 (T); sums are computed in float32 or better.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "program.h"

namespace resflax {

struct BFloat16 {
  uint16_t bits;
};

inline float Load(float x) { return x; }
inline float Load(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void Store(float* to, float value) { *to = value; }
inline void Store(BFloat16* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits += 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
  to->bits = static_cast<uint16_t>(bits >> 16);
}

inline float Sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

inline float Activate(float x, Activation activation) {
  if (activation == Activation::kRelu) return x > 0 ? x : 0;
  return activation == Activation::kSigmoid ? Sigmoid(x) : x;
}

// Calls `f(i)` for i < count on `threads` threads.
template <typename F>
void ParallelFor(int threads, Dim count, const F& f) {
  if (threads == 1 || count == 1) {
    for (Dim i = 0; i < count; ++i) f(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Dim i = 0; i < count; ++i) f(i);
}

template <typename T>
void Normalize(int threads, const uint8_t* x, T* y, Shape s, const float* mean, const float* std) {
  std::vector<float> scale(s.c), shift(s.c);
  for (Dim c = 0; c < s.c; ++c) {
    scale[c] = 1 / (255 * std[c]);
    shift[c] = -mean[c] / std[c];
  }
  ParallelFor(threads, s.n * s.h, [&](Dim row) {
    for (Dim p = row * s.w; p < (row + 1) * s.w; ++p)
      for (Dim c = 0; c < s.c; ++c) Store(&y[p * s.c + c], x[p * s.c + c] * scale[c] + shift[c]);
  });
}

template <typename T>
void Convert(int threads, const float* x, T* y, Shape s) {
  const Dim row_size = s.w * s.c;
  ParallelFor(threads, s.n * s.h, [&](Dim row) {
    for (Dim i = row * row_size; i < (row + 1) * row_size; ++i) Store(&y[i], x[i]);
  });
}

// y = act(x * scale + bias). `scale` and `bias` have a stride per image: 0 if they are shared.
template <typename T>
void Affine(int threads, const T* x, T* y, Shape s, const float* scale, const float* bias,
            Dim image_stride, Activation activation) {
  const float low = activation == Activation::kRelu ? 0 : -std::numeric_limits<float>::infinity();
  ParallelFor(threads, s.n * s.h, [&](Dim row) {
    const float* a = scale + row / s.h * image_stride;
    const float* b = bias + row / s.h * image_stride;
    for (Dim p = row * s.w; p < (row + 1) * s.w; ++p)
      for (Dim c = 0; c < s.c; ++c) {
        const float value = Load(x[p * s.c + c]) * a[c] + b[c];
        Store(&y[p * s.c + c], value < low ? low : value);
      }
  });
}

// Returns, for each channel of one image, the sum over the pixels of `f(x, channel)`.
template <typename T, typename F>
std::vector<double> ChannelSums(const T* x, Dim pixels, Dim channels, const F& f) {
  constexpr Dim kBlock = 64;  // float32 sums of few terms lose little
  std::vector<double> sums(channels);
  std::vector<float> part(channels);
  for (Dim begin = 0; begin < pixels; begin += kBlock) {
    std::fill(part.begin(), part.end(), 0.0f);
    for (Dim p = begin; p < std::min(begin + kBlock, pixels); ++p)
      for (Dim c = 0; c < channels; ++c) part[c] += f(Load(x[p * channels + c]), c);
    for (Dim c = 0; c < channels; ++c) sums[c] += part[c];
  }
  return sums;
}

// Replaces each channel's sum by the mean over its group of channels.
inline void GroupMeans(std::vector<double>& sums, Dim groups, Dim pixels) {
  const Dim width = sums.size() / groups;
  for (Dim g = 0; g < groups; ++g) {
    double total = 0;
    for (Dim c = g * width; c < (g + 1) * width; ++c) total += sums[c];
    for (Dim c = g * width; c < (g + 1) * width; ++c) sums[c] = total / (width * pixels);
  }
}

struct Moments {
  std::vector<double> mean, var;
};

// Mean and variance of one image's groups of channels, repeated for each channel.
template <typename T>
Moments GroupMoments(const T* x, Shape s, Dim groups) {
  Moments m;
  m.mean = ChannelSums(x, s.pixels(), s.c, [](float v, Dim) { return v; });
  GroupMeans(m.mean, groups, s.pixels());
  const std::vector<float> mean(m.mean.begin(), m.mean.end());
  m.var = ChannelSums(x, s.pixels(), s.c,
                      [&](float v, Dim c) { return (v - mean[c]) * (v - mean[c]); });
  GroupMeans(m.var, groups, s.pixels());
  return m;
}

template <typename T>
void GroupNorm(int threads, const T* x, T* y, Shape s, const Node& node) {
  const float *scale = node.arrays[0].data, *bias = node.arrays[1].data;
  ParallelFor(threads, s.n, [&](Dim n) {
    const Dim offset = n * s.pixels() * s.c;
    const Moments m = GroupMoments(x + offset, s, node.Int(0));
    std::vector<float> a(s.c), b(s.c);
    for (Dim c = 0; c < s.c; ++c) {
      a[c] = scale[c] / std::sqrt(m.var[c] + node.attributes[1]);
      b[c] = bias[c] - m.mean[c] * a[c];
    }
    Affine(1, x + offset, y + offset, {1, s.h, s.w, s.c}, a.data(), b.data(), 0,
           node.activation());
  });
}

template <typename T>
void EvoNormS0(int threads, const T* x, T* y, Shape s, const Node& node) {
  const float *scale = node.arrays[0].data, *bias = node.arrays[1].data, *v = node.arrays[2].data;
  ParallelFor(threads, s.n, [&](Dim n) {
    const Dim offset = n * s.pixels() * s.c;
    const Moments m = GroupMoments(x + offset, s, node.Int(0));
    std::vector<float> a(s.c);
    for (Dim c = 0; c < s.c; ++c) a[c] = scale[c] / std::sqrt(m.var[c] + node.attributes[1]);
    for (Dim p = 0; p < s.pixels(); ++p)
      for (Dim c = 0; c < s.c; ++c) {
        const float value = Load(x[offset + p * s.c + c]);
        Store(&y[offset + p * s.c + c],
              Activate(value * Sigmoid(v[c] * value) * a[c] + bias[c], node.activation()));
      }
  });
}

template <typename T>
void FilterResponseNorm(int threads, const T* x, T* y, Shape s, const Node& node) {
  const float *scale = node.arrays[0].data, *bias = node.arrays[1].data, *tau = node.arrays[2].data;
  ParallelFor(threads, s.n, [&](Dim n) {
    const Dim offset = n * s.pixels() * s.c;
    const auto squares =
        ChannelSums(x + offset, s.pixels(), s.c, [](float v, Dim) { return v * v; });
    std::vector<float> a(s.c), low(s.c, -std::numeric_limits<float>::infinity());
    for (Dim c = 0; c < s.c; ++c)
      a[c] = scale[c] / std::sqrt(squares[c] / s.pixels() + node.attributes[0]);
    if (tau) low.assign(tau, tau + s.c);
    for (Dim p = 0; p < s.pixels(); ++p)
      for (Dim c = 0; c < s.c; ++c) {
        const float value = Load(x[offset + p * s.c + c]) * a[c] + bias[c];
        Store(&y[offset + p * s.c + c],
              Activate(value < low[c] ? low[c] : value, node.activation()));
      }
  });
}

template <typename T>
void MaxPool(int threads, const T* x, T* y, Shape s, Shape out, const Node& node) {
  const Dim window = node.Int(0), stride = node.Int(1), padding = node.Int(2);
  const bool zero_padding = node.Int(3);
  ParallelFor(threads, out.n * out.h, [&](Dim row) {
    const Dim n = row / out.h, top = row % out.h * stride - padding;
    const Dim y_begin = std::max<Dim>(top, 0), y_end = std::min(top + window, s.h);
    std::vector<float> best(s.c);
    for (Dim column = 0; column < out.w; ++column) {
      const Dim left = column * stride - padding;
      const Dim x_begin = std::max<Dim>(left, 0), x_end = std::min(left + window, s.w);
      const bool crosses = (y_end - y_begin) * (x_end - x_begin) < window * window;
      std::fill(best.begin(), best.end(),
                zero_padding && crosses ? 0 : -std::numeric_limits<float>::infinity());
      for (Dim i = y_begin; i < y_end; ++i)
        for (Dim j = x_begin; j < x_end; ++j) {
          const T* pixel = x + ((n * s.h + i) * s.w + j) * s.c;
          for (Dim c = 0; c < s.c; ++c) best[c] = std::max(best[c], Load(pixel[c]));
        }
      T* to = y + (row * out.w + column) * s.c;
      for (Dim c = 0; c < s.c; ++c) Store(&to[c], best[c]);
    }
  });
}

template <typename T>
void AvgPool(int threads, const T* x, T* y, Shape s, Shape out, const Node& node) {
  const Dim stride = node.Int(0);
  const bool same = node.Int(1);
  ParallelFor(threads, out.n * out.h, [&](Dim row) {
    const Dim n = row / out.h, top = row % out.h * stride, bottom = std::min(top + 2, s.h);
    std::vector<float> sum(s.c);
    for (Dim column = 0; column < out.w; ++column) {
      const Dim left = column * stride, right = std::min(left + 2, s.w);
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (Dim i = top; i < bottom; ++i)
        for (Dim j = left; j < right; ++j) {
          const T* pixel = x + ((n * s.h + i) * s.w + j) * s.c;
          for (Dim c = 0; c < s.c; ++c) sum[c] += Load(pixel[c]);
        }
      const float weight = 1.0f / (same ? 4 : (bottom - top) * (right - left));
      T* to = y + (row * out.w + column) * s.c;
      for (Dim c = 0; c < s.c; ++c) Store(&to[c], sum[c] * weight);
    }
  });
}

template <typename T>
void Blur(int threads, const T* x, T* y, Shape s, Shape out, const Node& node) {
  const Dim stride = node.Int(0);
  const auto reflect = [](Dim i, Dim size) {
    if (size == 1) return Dim{0};
    return i < 0 ? -i : i >= size ? 2 * size - 2 - i : i;
  };
  constexpr float kTaps[] = {0.25, 0.5, 0.25};
  ParallelFor(threads, out.n * out.h, [&](Dim row) {
    const Dim n = row / out.h, top = row % out.h * stride - 1;
    std::vector<float> sum(s.c);
    for (Dim column = 0; column < out.w; ++column) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (Dim i = 0; i < 3; ++i)
        for (Dim j = 0; j < 3; ++j) {
          const Dim from_row = reflect(top + i, s.h);
          const Dim from_column = reflect(column * stride - 1 + j, s.w);
          const T* pixel = x + ((n * s.h + from_row) * s.w + from_column) * s.c;
          const float weight = kTaps[i] * kTaps[j];
          for (Dim c = 0; c < s.c; ++c) sum[c] += weight * Load(pixel[c]);
        }
      T* to = y + (row * out.w + column) * s.c;
      for (Dim c = 0; c < s.c; ++c) Store(&to[c], sum[c]);
    }
  });
}

template <typename T>
void ZeroPad(int threads, const T* x, T* y, Shape s, Shape out, const Node& node) {
  const Dim stride = node.Int(0), before = node.Int(1);
  ParallelFor(threads, out.n * out.h, [&](Dim row) {
    const Dim n = row / out.h, from_row = row % out.h * stride;
    for (Dim column = 0; column < out.w; ++column) {
      T* to = y + (row * out.w + column) * out.c;
      std::memset(to, 0, out.c * sizeof(T));
      std::memcpy(to + before, x + ((n * s.h + from_row) * s.w + column * stride) * s.c,
                  s.c * sizeof(T));
    }
  });
}

template <typename T>
void Add(int threads, const T* a, const T* b, T* y, Shape s, Activation activation) {
  const float low = activation == Activation::kRelu ? 0 : -std::numeric_limits<float>::infinity();
  const Dim row_size = s.w * s.c;
  ParallelFor(threads, s.n * s.h, [&](Dim row) {
    for (Dim i = row * row_size; i < (row + 1) * row_size; ++i) {
      const float value = Load(a[i]) + Load(b[i]);
      Store(&y[i], value < low ? low : value);
    }
  });
}

// y = act(x * gate + residual), with one factor per image and channel. `residual` can be null.
template <typename T>
void Gate(int threads, const T* x, const float* gate, const T* residual, T* y, Shape s,
          Activation activation) {
  const float low = activation == Activation::kRelu ? 0 : -std::numeric_limits<float>::infinity();
  ParallelFor(threads, s.n * s.h, [&](Dim row) {
    const float* factor = gate + row / s.h * s.c;
    for (Dim p = row * s.w; p < (row + 1) * s.w; ++p)
      for (Dim c = 0; c < s.c; ++c) {
        const Dim i = p * s.c + c;
        const float value = Load(x[i]) * factor[c] + (residual ? Load(residual[i]) : 0);
        Store(&y[i], value < low ? low : value);
      }
  });
}

template <typename T>
void Mean(int threads, const T* x, float* y, Shape s) {
  ParallelFor(threads, s.n, [&](Dim n) {
    const auto sums = ChannelSums(x + n * s.pixels() * s.c, s.pixels(), s.c,
                                  [](float v, Dim) { return v; });
    for (Dim c = 0; c < s.c; ++c) y[n * s.c + c] = sums[c] / s.pixels();
  });
}

inline void ChannelConv(const float* x, float* y, Shape s, const Node& node) {
  const Array& kernel = node.arrays[0];
  const Dim taps = kernel.dims[0];
  for (Dim n = 0; n < s.n; ++n)
    for (Dim c = 0; c < s.c; ++c) {
      float sum = 0;
      for (Dim k = 0; k < taps; ++k) {
        const Dim from = c + k - taps / 2;
        if (from >= 0 && from < s.c) sum += kernel.data[k] * x[n * s.c + from];
      }
      y[n * s.c + c] = Activate(sum, node.activation());
    }
}

inline void Softmax(const float* x, float* y, Shape s) {
  for (Dim n = 0; n < s.n; ++n) {
    const float* row = x + n * s.c;
    const float top = *std::max_element(row, row + s.c);
    double total = 0;
    for (Dim c = 0; c < s.c; ++c) total += y[n * s.c + c] = std::exp(row[c] - top);
    for (Dim c = 0; c < s.c; ++c) y[n * s.c + c] /= total;
  }
}

}  // namespace resflax
