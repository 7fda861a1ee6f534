// A plan: a segment of the network for one batch and image size, as oneDNN primitives and loops over
// arrays at fixed places of a workspace.

#pragma once

#include <stdexcept>
#include <tuple>
#include <vector>

#include "loops.h"
#include "norms.h"
#include "pooling.h"
#include "primitives.h"
#include "program.h"
#include "step.h"
#include "winograd.h"

namespace resflax {

template <typename... Arguments>
Step MakeConvStep(const StepBuilder& builder, const Node& node, Shape in, Shape out,
                  const Arguments&... locations) {
#ifdef __AVX512F__
  if (Winograd::Supports(builder, node, in, out))
    return Winograd::Make(builder, node, in, out, locations...);
#endif
  return ConvStep(builder, node, in, out, locations...);
}

// What a plan is made for: a segment, images in a call's dtype, and threads.
struct PlanKey {
  size_t first, last;
  Dim n, h, w;
  DType input;
  int threads;
  auto Tie() const { return std::tie(first, last, n, h, w, input, threads); }
  bool operator==(const PlanKey& other) const { return Tie() == other.Tie(); }
};

class Plan {
 public:
  // `input` is the shape of what the first node reads.
  Plan(const Program& program, PackedWeights& packed, DType dtype, Shape input, PlanKey key)
      : builder_{dtype, key.threads, 0, &packed, &scratch_size_}, first_(key.first) {
    std::vector<int> last_use(key.last + 1, -1);
    for (size_t i = key.first; i < key.last; ++i)
      for (const int value : program.nodes[i].inputs) last_use[value] = i;
    values_.push_back({input, key.first ? dtype : key.input, {Location::kImages}});
    if (!key.first) ConvertImages(program);
    for (size_t i = key.first; i < key.last; ++i) {
      builder_.node_index = i;
      const Node& node = program.nodes[i];
      const auto dies = [&](int value) { return last_use[value] == static_cast<int>(i); };
      AddNode(node, i + 1 == key.last, dies);
      for (const int value : node.inputs)
        if (dies(value)) Free(value);
    }
  }

  size_t WorkspaceSize() const { return allocator_.peak() + scratch_size_; }

  void Execute(const char* images, char* output, Workspace& workspace) const {
    char* memory = workspace.Reserve(0, WorkspaceSize());
    const Run run{images, output, memory, memory + allocator_.peak(), &workspace.stream};
    for (const Step& step : steps_) step(run);
    workspace.stream.wait();
  }

 private:
  struct Value {
    Shape shape;
    DType dtype;
    Location at;
    bool pooled = false;  // (n, channels), always float32
  };

  // The result of node `value - 1`.
  const Value& At(int value) const { return values_.at(value - first_); }

  // Without a node "normalize", bfloat16 images are rounded here.
  void ConvertImages(const Program& program) {
    const Value images = values_[0];
    const bool normalizes = program.nodes.at(0).op == Op::kNormalize;
    if (images.dtype == DType::kUint8 && !normalizes)
      throw std::invalid_argument("the network has no mean and std for uint8 images");
    if (images.dtype == builder_.dtype || images.dtype == DType::kUint8) return;
    const int threads = builder_.threads;
    const Location y = Allocate(images.shape, builder_.dtype);
    steps_.push_back([=](const Run& run) {
      const auto* x = reinterpret_cast<const float*>(run.images);
      Convert(threads, x, reinterpret_cast<BFloat16*>(run.At(y)), images.shape);
    });
    values_[0] = {images.shape, builder_.dtype, y};
  }

  Location Allocate(Shape shape, DType dtype) {
    return {Location::kWorkspace, allocator_.Allocate(shape.size() * ItemSize(dtype))};
  }

  void Free(int value) {
    const Location at = At(value).at;
    if (at.kind != Location::kWorkspace) return;
    // A result that took over its input's memory is still in use.
    if (!(values_.back().at == at)) allocator_.Free(at.offset);
  }

  template <typename Dies>
  void AddNode(const Node& node, bool is_last, const Dies& dies) {
    const Value x = At(node.inputs.at(0));
    if (node.op == Op::kNormalize && x.dtype != DType::kUint8) {
      values_.push_back(x);  // floating-point images are normalized already
      return;
    }
    const bool pooled = x.pooled || node.op == Op::kMean;
    Value y{ResultShape(node, x.shape), pooled ? DType::kFloat32 : builder_.dtype, {}, pooled};
    // A sum is computed in place if nothing else reads its second summand afterwards.
    const int residual = node.op == Op::kConv && node.inputs.size() > 1 ? node.inputs[1] : -1;
    if (is_last) {
      y.at = {Location::kOutput};
    } else if (residual >= 0 && dies(residual) &&
               At(residual).at.kind == Location::kWorkspace && residual != node.inputs[0]) {
      y.at = At(residual).at;
    } else {
      y.at = Allocate(y.shape, y.dtype);
    }
    const Location from = residual < 0 ? y.at : At(residual).at;
    if (node.op == Op::kConv) {
      steps_.push_back(MakeConvStep(builder_, node, x.shape, y.shape, x.at, y.at,
                                    residual < 0 ? nullptr : &from));
    } else if (node.op == Op::kDense) {
      steps_.push_back(DenseStep(builder_, node, x.shape, y.shape, x.at, y.at));
    } else if (builder_.dtype == DType::kBFloat16) {
      steps_.push_back(LoopStep<BFloat16>(node, x, y));
    } else {
      steps_.push_back(LoopStep<float>(node, x, y));
    }
    values_.push_back(y);
  }

  template <typename T>
  Step LoopStep(const Node& node, const Value& x, const Value& y) const {
    const int threads = builder_.threads;
    const bool has_second = node.inputs.size() > 1, has_third = node.inputs.size() > 2;
    const Location second = has_second ? At(node.inputs[1]).at : Location{};
    const Location third = has_third ? At(node.inputs[2]).at : Location{};
    return [=](const Run& run) {
      const T* in = reinterpret_cast<const T*>(run.At(x.at));
      T* out = reinterpret_cast<T*>(run.At(y.at));
      const auto* features = reinterpret_cast<const float*>(run.At(x.at));
      auto* result = reinterpret_cast<float*>(run.At(y.at));
      const Shape s = x.shape;
      const auto array = [&](size_t i) { return node.arrays.at(i).data; };
      switch (node.op) {
        case Op::kNormalize:
          return Normalize(threads, reinterpret_cast<const uint8_t*>(in), out, s, array(0),
                           array(1));
        case Op::kAffine:
          return Affine(threads, in, out, s, array(0), array(1), 0, node.activation());
        case Op::kGroupNorm: return GroupNorm(threads, in, out, s, node);
        case Op::kEvoNormS0: return EvoNormS0(threads, in, out, s, node);
        case Op::kFilterResponseNorm: return FilterResponseNorm(threads, in, out, s, node);
        case Op::kMaxPool: return MaxPool(threads, in, out, s, y.shape, node);
        case Op::kAvgPool: return AvgPool(threads, in, out, s, y.shape, node);
        case Op::kBlur: return Blur(threads, in, out, s, y.shape, node);
        case Op::kZeroPad: return ZeroPad(threads, in, out, s, y.shape, node);
        case Op::kAdd:
          return Add(threads, in, reinterpret_cast<const T*>(run.At(second)), out, s,
                     node.activation());
        case Op::kGate:
          return Gate(threads, in, reinterpret_cast<const float*>(run.At(second)),
                      has_third ? reinterpret_cast<const T*>(run.At(third)) : nullptr, out, s,
                      node.activation());
        case Op::kMean: return Mean(threads, in, result, s);
        case Op::kChannelConv: return ChannelConv(features, result, s, node);
        case Op::kSoftmax: return Softmax(features, result, s);
        default: throw std::invalid_argument("unknown operation");
      }
    };
  }

  std::vector<Value> values_;
  std::vector<Step> steps_;
  Allocator allocator_;
  size_t scratch_size_ = 0;
  StepBuilder builder_;
  size_t first_;
};

}  // namespace resflax
