// Pooling, blur and zero padding of NHWC arrays.

#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "loops.h"

namespace resflax {

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
          for (Dim c = 0; c < s.c; ++c) {
            const float value = Load(pixel[c]);
            best[c] = value > best[c] || value != value ? value : best[c];
          }
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

}  // namespace resflax
