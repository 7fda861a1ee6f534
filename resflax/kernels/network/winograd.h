// 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), with AVX-512: 36 products instead of 144.
//
// Lavin and Gray 2016 (arXiv:1509.09308): y = A' [(G w G') * (B' x B)] A over tiles of 6x6 pixels
// that overlap by 2. The transforms interpolate at 0, +-5/8, +-3/2 and infinity: the usual points
// 0, +-1, +-2 give twice the rounding error. It is about five times that of a direct convolution.

#pragma once

#include <algorithm>
#include <array>

#include "primitives.h"
#include "step.h"

#ifdef __AVX512F__
#include <immintrin.h>

namespace resflax {

class Winograd {
 public:
  static constexpr Dim kLanes = 16, kOut = 4, kIn = 6, kPositions = kIn * kIn;

  static bool Supports(const StepBuilder& builder, const Node& node, Shape in, Shape out) {
    const auto& kernel = node.arrays[0].dims;
    const bool fits = builder.dtype == DType::kFloat32 && kernel[0] == 3 && kernel[1] == 3 &&
                      node.Int(0) == 1 && node.Int(2) == 1 && node.Int(3) == 1 &&
                      in.c % kLanes == 0 && out.c % kLanes == 0;
    if (!fits) return false;
    // Few tiles cannot hide the time to read the transformed kernel, four times the original one.
    const Dim tiles = TileCount(out);
    const double useful = static_cast<double>(out.size()) / (tiles * kOut * kOut * out.c);
    return tiles >= kMinTiles && useful > 0.5;
  }

  static Step Make(const StepBuilder& builder, const Node& node, Shape in, Shape out, Location x,
                   Location y, const Location* residual) {
    Winograd w;
    w.in_ = in, w.out_ = out, w.padding_ = node.Int(1), w.threads_ = builder.threads;
    w.rows_ = (out.h + kOut - 1) / kOut, w.columns_ = (out.w + kOut - 1) / kOut;
    w.bias_ = node.arrays[1].data;
    w.relu_ = node.activation() == Activation::kRelu;
    w.has_residual_ = residual != nullptr;
    w.ChooseBlocks();
    const Array& kernel = node.arrays[0];
    const size_t size = kPositions * in.c * out.c * sizeof(float);
    w.kernel_ = builder.packed->Get(builder.node_index, "winograd", size, [&](char* data) {
      TransformKernel(kernel, reinterpret_cast<float*>(data));
    });
    builder.NeedScratch(w.BlockScratch() * w.concurrent_blocks_ * sizeof(float));
    const Location from = residual ? *residual : y;
    return [=](const Run& run) {
      w.Execute(run, reinterpret_cast<const float*>(run.At(x)),
                reinterpret_cast<const float*>(run.At(from)), reinterpret_cast<float*>(run.At(y)));
    };
  }

 private:
  static constexpr Dim kMinTiles = 12, kMaxRows = 28, kMaxPairRows = 14;
  static constexpr float kA = 0.625, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;

  static Dim TileCount(Shape out) {
    return out.n * ((out.h + kOut - 1) / kOut) * ((out.w + kOut - 1) / kOut);
  }

  Dim tiles() const { return in_.n * rows_ * columns_; }

  // With enough tiles, threads work on blocks of their own; else they share one block.
  void ChooseBlocks() {
    const Dim wanted = std::max<Dim>(kMaxPairRows, in_.c * out_.c / (in_.c + out_.c) / 2);
    Dim blocks = (tiles() + wanted - 1) / wanted;
    blocks = blocks >= threads_ ? (blocks + threads_ - 1) / threads_ * threads_ : 1;
    block_tiles_ = (tiles() + blocks - 1) / blocks;
    concurrent_blocks_ = blocks > 1 ? threads_ : 1;
  }

  size_t BlockScratch() const { return kPositions * block_tiles_ * (in_.c + out_.c); }

  // U[position][output block][input channel][16 outputs] = G w G'.
  static void TransformKernel(const Array& kernel, float* u) {
    constexpr double a = kA, b = kB, a2 = a * a, b2 = b * b;
    const double n0 = a2 * b2, na = 2 * a2 * (a2 - b2), nb = 2 * b2 * (b2 - a2);
    const double g[kIn][3] = {{1 / n0, 0, 0},          {1 / na, a / na, a2 / na},
                              {1 / na, -a / na, a2 / na}, {1 / nb, b / nb, b2 / nb},
                              {1 / nb, -b / nb, b2 / nb}, {0, 0, 1}};
    const Dim c_in = kernel.dims[2], c_out = kernel.dims[3];
    ParallelFor(omp_get_max_threads(), c_in, [&](Dim c) {
      for (Dim k = 0; k < c_out; ++k) {
        double half[kIn][3] = {};
        for (int p = 0; p < kIn; ++p)
          for (int j = 0; j < 3; ++j)
            for (int i = 0; i < 3; ++i)
              half[p][j] += g[p][i] * kernel.data[((i * 3 + j) * c_in + c) * c_out + k];
        for (int p = 0; p < kIn; ++p)
          for (int q = 0; q < kIn; ++q) {
            double value = 0;
            for (int j = 0; j < 3; ++j) value += half[p][j] * g[q][j];
            const Dim block = (p * kIn + q) * (c_out / kLanes) + k / kLanes;
            u[(block * c_in + c) * kLanes + k % kLanes] = value;
          }
      }
    });
  }

  void Execute(const Run& run, const float* x, const float* residual, float* y) const {
    auto* scratch = reinterpret_cast<float*>(run.scratch);
    const Dim blocks = (tiles() + block_tiles_ - 1) / block_tiles_;
    if (concurrent_blocks_ == 1) {
      for (Dim i = 0; i < blocks; ++i) ExecuteBlock(i, threads_, scratch, x, residual, y);
      return;
    }
    ParallelRegion(threads_, [&](Dim thread, Dim granted) {
      for (Dim i = thread; i < blocks; i += granted)
        ExecuteBlock(i, 1, scratch + thread * BlockScratch(), x, residual, y);
    });
  }

  void ExecuteBlock(Dim block, int threads, float* scratch, const float* x, const float* residual,
                    float* y) const {
    const Dim first = block * block_tiles_, count = std::min(block_tiles_, tiles() - first);
    if (count <= 0) return;
    const Dim in_blocks = in_.c / kLanes, out_blocks = out_.c / kLanes;
    float *v = scratch, *m = scratch + kPositions * count * in_.c;
    ParallelFor(threads, count, [&](Dim t) { TransformImage(x, first + t, t, count, v); });
    const bool pairs = out_blocks % 2 == 0 && UsesPairs(count);
    const Dim step = pairs ? 2 : 1, columns = out_blocks / step;
    ParallelFor(threads, kPositions * columns, [&](Dim i) {
      const Dim position = i / columns, k = i % columns * step;
      const float* u = reinterpret_cast<const float*>(kernel_->data()) + (position * out_blocks + k) * in_.c * kLanes;
      const float* a = v + position * count * in_.c;
      float* out = m + (position * count * out_blocks + k * count) * kLanes;
      if (pairs)
        Multiply<2>(a, u, out, count, in_blocks);
      else
        Multiply<1>(a, u, out, count, in_blocks);
    });
    ParallelFor(threads, count, [&](Dim t) {
      TransformOutput(m, first + t, t, count, residual, y);
    });
  }

  // With 14 rows or fewer per call in either case, two output blocks share the reads of V.
  static bool UsesPairs(Dim count) {
    const Dim parts = (count + kMaxRows - 1) / kMaxRows;
    return (count + parts - 1) / parts <= kMaxPairRows;
  }

  // out[tile][16 outputs] = sum over c of a[c / 16][tile][c % 16] * u[c][16 outputs].
  template <int kBlocks>
  static void Multiply(const float* a, const float* u, float* out, Dim count, Dim in_blocks) {
    constexpr Dim kMost = kBlocks == 2 ? kMaxPairRows : kMaxRows;
    const Dim parts = (count + kMost - 1) / kMost;
    for (Dim part = 0; part < parts; ++part) {
      const Dim begin = count * part / parts, end = count * (part + 1) / parts;
      Kernels<kBlocks>()[end - begin](a + begin * kLanes, u, out + begin * kLanes, count,
                                      in_blocks);
    }
  }

  using Kernel = void (*)(const float*, const float*, float*, Dim, Dim);

  template <int kBlocks>
  static const Kernel* Kernels() {
    static const auto table = [] {
      std::array<Kernel, kMaxRows + 1> kernels{};
      FillKernels<kBlocks, kBlocks == 2 ? kMaxPairRows : kMaxRows>(kernels);
      return kernels;
    }();
    return table.data();
  }

  template <int kBlocks, int kRows>
  static void FillKernels(std::array<Kernel, kMaxRows + 1>& kernels) {
    if constexpr (kRows > 0) {
      kernels[kRows] = &MultiplyRows<kBlocks, kRows>;
      FillKernels<kBlocks, kRows - 1>(kernels);
    }
  }

  template <int kBlocks, int kRows>
  static void MultiplyRows(const float* a, const float* u, float* out, Dim count, Dim in_blocks) {
    __m512 sum[kBlocks][kRows];
    for (int b = 0; b < kBlocks; ++b)
      for (int r = 0; r < kRows; ++r) sum[b][r] = _mm512_setzero_ps();
    const Dim u_stride = in_blocks * kLanes * kLanes;
    for (Dim block = 0; block < in_blocks; ++block, a += count * kLanes)
      for (Dim c = 0; c < kLanes; ++c, u += kLanes) {
        _mm_prefetch(reinterpret_cast<const char*>(u + 16 * kLanes), _MM_HINT_T0);
        if (kBlocks == 2)
          _mm_prefetch(reinterpret_cast<const char*>(u + u_stride + 16 * kLanes), _MM_HINT_T0);
        __m512 w[kBlocks];
        for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_load_ps(u + b * u_stride);
#pragma GCC unroll 28
        for (int r = 0; r < kRows; ++r) {
          const __m512 value = _mm512_set1_ps(a[r * kLanes + c]);
          for (int b = 0; b < kBlocks; ++b) sum[b][r] = _mm512_fmadd_ps(value, w[b], sum[b][r]);
        }
      }
    for (int b = 0; b < kBlocks; ++b)
      for (int r = 0; r < kRows; ++r)
        _mm512_store_ps(out + (b * count + r) * kLanes, sum[b][r]);
  }

  // Applies B' to six values.
  static void TransformInputs(__m512 d[kIn]) {
    const __m512 a = _mm512_set1_ps(kA), b = _mm512_set1_ps(kB);
    const __m512 a2 = _mm512_set1_ps(kA2), b2 = _mm512_set1_ps(kB2);
    const __m512 sum = _mm512_set1_ps(kA2 + kB2), product = _mm512_set1_ps(kA2 * kB2);
    const __m512 even_a = _mm512_fnmadd_ps(b2, d[2], d[4]);
    const __m512 odd_a = _mm512_mul_ps(a, _mm512_fnmadd_ps(b2, d[1], d[3]));
    const __m512 even_b = _mm512_fnmadd_ps(a2, d[2], d[4]);
    const __m512 odd_b = _mm512_mul_ps(b, _mm512_fnmadd_ps(a2, d[1], d[3]));
    d[0] = _mm512_fmadd_ps(product, d[0], _mm512_fnmadd_ps(sum, d[2], d[4]));
    d[5] = _mm512_fmadd_ps(product, d[1], _mm512_fnmadd_ps(sum, d[3], d[5]));
    d[1] = _mm512_add_ps(even_a, odd_a);
    d[2] = _mm512_sub_ps(even_a, odd_a);
    d[3] = _mm512_add_ps(even_b, odd_b);
    d[4] = _mm512_sub_ps(even_b, odd_b);
  }

  // Applies A' to six values; the result is in the first four.
  static void TransformProducts(__m512 m[kIn]) {
    const __m512 a = _mm512_set1_ps(kA), b = _mm512_set1_ps(kB);
    const __m512 a2 = _mm512_set1_ps(kA2), b2 = _mm512_set1_ps(kB2);
    const __m512 a3 = _mm512_set1_ps(kA2 * kA), b3 = _mm512_set1_ps(kB2 * kB);
    const __m512 even_a = _mm512_add_ps(m[1], m[2]), odd_a = _mm512_sub_ps(m[1], m[2]);
    const __m512 even_b = _mm512_add_ps(m[3], m[4]), odd_b = _mm512_sub_ps(m[3], m[4]);
    m[0] = _mm512_add_ps(m[0], _mm512_add_ps(even_a, even_b));
    m[1] = _mm512_fmadd_ps(a, odd_a, _mm512_mul_ps(b, odd_b));
    m[2] = _mm512_fmadd_ps(a2, even_a, _mm512_mul_ps(b2, even_b));
    m[3] = _mm512_add_ps(m[5], _mm512_fmadd_ps(a3, odd_a, _mm512_mul_ps(b3, odd_b)));
  }

  struct Tile {
    Dim n, row, column;
  };
  Tile TileAt(Dim index) const {
    return {index / (rows_ * columns_), index / columns_ % rows_ * kOut, index % columns_ * kOut};
  }

  // V[position][input block][tile][16 channels] = B' x B for tile `index`, the block's `t`-th.
  void TransformImage(const float* x, Dim index, Dim t, Dim count, float* v) const {
    const Tile tile = TileAt(index);
    const Dim top = tile.row - padding_, left = tile.column - padding_;
    const Dim position_stride = count * in_.c;
    for (Dim block = 0; block < in_.c / kLanes; ++block) {
      __m512 d[kIn][kIn];
      for (Dim j = 0; j < kIn; ++j) {
        __m512 column[kIn];
        for (Dim i = 0; i < kIn; ++i) {
          const Dim r = top + i, c = left + j;
          const bool inside = r >= 0 && r < in_.h && c >= 0 && c < in_.w;
          column[i] = inside ? _mm512_loadu_ps(x + ((tile.n * in_.h + r) * in_.w + c) * in_.c +
                                              block * kLanes)
                             : _mm512_setzero_ps();
        }
        TransformInputs(column);
        for (Dim i = 0; i < kIn; ++i) d[i][j] = column[i];
      }
      float* to = v + (block * count + t) * kLanes;
      for (Dim i = 0; i < kIn; ++i) {
        TransformInputs(d[i]);
        for (Dim j = 0; j < kIn; ++j)
          _mm512_store_ps(to + (i * kIn + j) * position_stride, d[i][j]);
      }
    }
  }

  // y = act(A' m A + bias + residual) for tile `index`.
  void TransformOutput(const float* m, Dim index, Dim t, Dim count, const float* residual,
                       float* y) const {
    const Tile tile = TileAt(index);
    const Dim height = std::min(kOut, out_.h - tile.row);
    const Dim width = std::min(kOut, out_.w - tile.column), position_stride = count * out_.c;
    const Dim origin = ((tile.n * out_.h + tile.row) * out_.w + tile.column) * out_.c;
    for (Dim block = 0; block < out_.c / kLanes; ++block) {
      const float* from = m + (block * count + t) * kLanes;
      __m512 d[kOut][kIn];
      for (Dim j = 0; j < kIn; ++j) {
        __m512 column[kIn];
        for (Dim i = 0; i < kIn; ++i)
          column[i] = _mm512_load_ps(from + (i * kIn + j) * position_stride);
        TransformProducts(column);
        for (Dim i = 0; i < kOut; ++i) d[i][j] = column[i];
      }
      const __m512 bias = bias_ ? _mm512_loadu_ps(bias_ + block * kLanes) : _mm512_setzero_ps();
      for (Dim i = 0; i < height; ++i) {
        TransformProducts(d[i]);
        for (Dim j = 0; j < width; ++j) {
          const Dim at = origin + (i * out_.w + j) * out_.c + block * kLanes;
          __m512 value = _mm512_add_ps(d[i][j], bias);
          if (has_residual_) value = _mm512_add_ps(value, _mm512_load_ps(residual + at));
          // The second operand is returned if either is NaN.
          if (relu_) value = _mm512_max_ps(_mm512_setzero_ps(), value);
          _mm512_store_ps(y + at, value);
        }
      }
    }
  }

  Shape in_, out_;
  Dim padding_, rows_, columns_, block_tiles_, concurrent_blocks_;
  int threads_;
  bool relu_, has_residual_;
  const float* bias_;
  std::shared_ptr<Buffer> kernel_;
};

}  // namespace resflax
#endif
