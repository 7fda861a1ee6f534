// The operations of a network as onednn_executor.py encodes them, and the shapes of their results.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace resflax {

using Dim = int64_t;

// In the order of `NETWORK_OPS` in onednn_executor.py.
enum class Op {
  kNormalize, kConv, kAffine, kGroupNorm, kEvoNormS0, kFilterResponseNorm, kMaxPool, kAvgPool,
  kBlur, kZeroPad, kAdd, kGate, kMean, kDense, kChannelConv, kSoftmax, kCount,
};
enum class Activation { kNone, kRelu, kSigmoid };
enum class DType { kFloat32, kBFloat16, kUint8 };

inline size_t ItemSize(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kBFloat16 ? 2 : 1;
}

// A float32 array of a node. Its memory belongs to the caller and outlives the network.
struct Array {
  const float* data = nullptr;
  std::vector<Dim> dims;
  explicit operator bool() const { return data != nullptr; }
};

// A value is the network's input (0) or the result of node `value - 1`.
struct Node {
  Op op;
  std::vector<int> inputs;
  std::vector<double> attributes;
  std::vector<Array> arrays;

  Dim Int(size_t i) const { return static_cast<Dim>(attributes.at(i)); }
  // The activation is the last attribute of every operation that has one.
  Activation activation() const { return static_cast<Activation>(Int(attributes.size() - 1)); }
};

// NHWC. Pooled features (n, c) have height and width 1.
struct Shape {
  Dim n, h, w, c;
  Dim size() const { return n * h * w * c; }
  Dim pixels() const { return h * w; }
};

class Program {
 public:
  // For each node: op, inputs, attributes, arrays, each list preceded by its length. An array is an
  // index into `arrays`, or -1 if the node lacks it.
  Program(const double* code, size_t length, std::vector<Array> arrays) {
    size_t at = 0;
    const auto next = [&] {
      if (at >= length) throw std::invalid_argument("the program ends within a node");
      return code[at++];
    };
    while (at < length) {
      Node node{static_cast<Op>(next())};
      for (int count = next(); count > 0; --count) node.inputs.push_back(next());
      for (int count = next(); count > 0; --count) node.attributes.push_back(next());
      for (int count = next(); count > 0; --count) {
        const int index = next();
        node.arrays.push_back(index < 0 ? Array{} : arrays.at(index));
      }
      nodes.push_back(std::move(node));
    }
  }

  std::vector<Node> nodes;
};

// Returns the shape of a node's result, given that of its first input.
inline Shape ResultShape(const Node& node, Shape x) {
  const auto window = [](Dim size, Dim extent, Dim stride, Dim padding) {
    const Dim steps = size + 2 * padding - extent;
    if (steps < 0) throw std::invalid_argument("the image is too small for the network");
    return steps / stride + 1;
  };
  switch (node.op) {
    case Op::kConv: {
      const auto& kernel = node.arrays[0].dims;
      const Dim stride = node.Int(0), padding = node.Int(1), dilation = node.Int(2);
      const Dim height = (kernel[0] - 1) * dilation + 1, width = (kernel[1] - 1) * dilation + 1;
      if (x.c != kernel[2] * node.Int(3)) throw std::invalid_argument("channels do not match");
      return {x.n, window(x.h, height, stride, padding), window(x.w, width, stride, padding),
              kernel[3]};
    }
    case Op::kMaxPool:
      return {x.n, window(x.h, node.Int(0), node.Int(1), node.Int(2)),
              window(x.w, node.Int(0), node.Int(1), node.Int(2)), x.c};
    case Op::kAvgPool:
    case Op::kZeroPad:
    case Op::kBlur: {
      const Dim stride = node.Int(0);
      const Dim extra = node.op == Op::kZeroPad ? node.Int(1) + node.Int(2) : 0;
      return {x.n, (x.h + stride - 1) / stride, (x.w + stride - 1) / stride, x.c + extra};
    }
    case Op::kMean: return {x.n, 1, 1, x.c};
    case Op::kDense: return {x.n, 1, 1, node.arrays[0].dims[1]};
    default: return x;
  }
}

}  // namespace resflax
