// Conversion of numbers, and operations on single elements or rows, as loops over NHWC arrays.
//
// Feature maps are float32 or bfloat16 (T); sums are computed in float32 or better. Comparisons are
// written so that NaN stays NaN.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
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
  to->bits = value != value ? 0x7fc0 : static_cast<uint16_t>(bits >> 16);
}

inline float Sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

inline float Activate(float x, Activation activation) {
  if (activation == Activation::kRelu) return x < 0 ? 0 : x;
  return activation == Activation::kSigmoid ? Sigmoid(x) : x;
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
