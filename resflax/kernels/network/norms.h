// Normalization by statistics of each image, and means over pixels.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "loops.h"

namespace resflax {

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
void Mean(int threads, const T* x, float* y, Shape s) {
  ParallelFor(threads, s.n, [&](Dim n) {
    const auto sums = ChannelSums(x + n * s.pixels() * s.c, s.pixels(), s.c,
                                  [](float v, Dim) { return v; });
    for (Dim c = 0; c < s.c; ++c) y[n * s.c + c] = sums[c] / s.pixels();
  });
}

}  // namespace resflax
