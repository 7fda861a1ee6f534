// A network in evaluation mode, run by one call; network.py compiles and calls it.
//
// A plan is a segment of the network for one batch and image size: oneDNN primitives and loops over
// arrays at fixed places of a workspace. Batches are divided evenly among the threads, so that they
// need not wait for each other. What is left of a batch is run by all threads together.

#include <omp.h>

#include <cstring>
#include <exception>
#include <list>
#include <mutex>
#include <tuple>

#include "loops.h"
#include "plan.h"
#include "primitives.h"
#include "program.h"
#include "schedule.h"
#include "winograd.h"

namespace resflax {
namespace {

// Sets the number of threads for which oneDNN makes and runs primitives on the calling thread.
class ThreadScope {
 public:
  explicit ThreadScope(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ThreadScope() { omp_set_num_threads(before_); }
  ThreadScope(const ThreadScope&) = delete;

 private:
  int before_;
};

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

class Network {
 public:
  Network(Program program, Dim channels, DType dtype)
      : program_(std::move(program)), channels_(channels), dtype_(dtype),
        threads_(omp_get_max_threads()) {}

  void Predict(const char* images, DType input, Dim n, Dim h, Dim w, float* output) {
    const Call call{images, reinterpret_cast<char*>(output), input, h, w,
                    h * w * channels_ * ItemSize(input),
                    MakeSchedule(program_, h, w, channels_, dtype_)};
    const Dim each = threads_ > 1 ? n / threads_ : 0;  // images per thread
    if (each) {
      Prepare(call, call.schedule.size() - 1, each, 1);
      std::exception_ptr error;
#pragma omp parallel num_threads(threads_)
      {
        omp_set_num_threads(1);
        const auto workspace = AcquireWorkspace();
        // The runtime may grant fewer threads.
        for (Dim t = omp_get_thread_num(); t < threads_; t += omp_get_num_threads()) try {
          Compute(call, t * each, each, 1, *workspace);
        } catch (...) {
#pragma omp critical
          error = std::current_exception();
        }
        ReleaseWorkspace(workspace);
      }
      if (error) std::rethrow_exception(error);
    }
    const Dim rest = n - each * threads_;
    if (!rest) return;
    ThreadScope scope(threads_);
    const auto workspace = AcquireWorkspace();
    Compute(call, each * threads_, rest, threads_, *workspace);
    ReleaseWorkspace(workspace);
  }

 private:
  struct Call {
    const char* images;
    char* output;
    DType input;
    Dim h, w;
    size_t image_bytes;
    std::vector<Segment> schedule;
  };

  void Compute(const Call& call, Dim first, Dim count, int threads, Workspace& workspace) {
    const size_t last = call.schedule.size() - 1;
    char* to = call.output + first * call.schedule[last].result_bytes;
    ComputeSegment(call, last, first, count, threads, to, workspace);
  }

  // Computes the segments up to `index` for `count` images.
  void ComputeSegment(const Call& call, size_t index, Dim first, Dim count, int threads, char* to,
                      Workspace& workspace) {
    const Segment& segment = call.schedule[index];
    for (Dim i = 0, part; i < count; i += part) {
      part = FloorPowerOfTwo(std::min(segment.images, count - i));
      const char* from = call.images + (first + i) * call.image_bytes;
      if (index) {
        char* buffer = workspace.Reserve(index, part * call.schedule[index - 1].result_bytes);
        ComputeSegment(call, index - 1, first + i, part, threads, buffer, workspace);
        from = buffer;
      }
      GetPlan(call, segment, part, threads)->Execute(from, to + i * segment.result_bytes,
                                                     workspace);
    }
  }

  // Makes the plans that `ComputeSegment` needs, with the weights laid out by all threads.
  void Prepare(const Call& call, size_t index, Dim count, int threads) {
    const Segment& segment = call.schedule[index];
    for (Dim i = 0, part; i < count; i += part) {
      part = FloorPowerOfTwo(std::min(segment.images, count - i));
      if (index) Prepare(call, index - 1, part, threads);
      GetPlan(call, segment, part, threads);
    }
  }

  std::shared_ptr<const Plan> GetPlan(const Call& call, const Segment& segment, Dim n,
                                      int threads) {
    const PlanKey key{segment.first, segment.last, n, call.h, call.w, call.input, threads};
    std::lock_guard<std::mutex> lock(mutex_);
    const auto same = [&](const auto& entry) { return entry.first == key; };
    auto found = std::find_if(plans_.begin(), plans_.end(), same);
    if (found != plans_.end()) {
      plans_.splice(plans_.begin(), plans_, found);  // the most recently used is in front
      return plans_.front().second;
    }
    std::vector<Shape> shapes = {{n, call.h, call.w, channels_}};
    for (size_t i = 0; i < segment.first; ++i)
      shapes.push_back(ResultShape(program_.nodes[i], shapes.at(program_.nodes[i].inputs[0])));
    ThreadScope scope(threads);
    auto plan =
        std::make_shared<const Plan>(program_, packed_, dtype_, shapes.back(), key);
    plans_.emplace_front(key, std::move(plan));
    if (plans_.size() > kMaxPlans) plans_.pop_back();
    return plans_.front().second;
  }

  std::shared_ptr<Workspace> AcquireWorkspace() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (workspaces_.empty()) return std::make_shared<Workspace>();
    auto workspace = workspaces_.back();
    workspaces_.pop_back();
    return workspace;
  }

  void ReleaseWorkspace(std::shared_ptr<Workspace> workspace) {
    std::lock_guard<std::mutex> lock(mutex_);
    workspaces_.push_back(std::move(workspace));
  }

  static constexpr size_t kMaxPlans = 64;
  const Program program_;
  const Dim channels_;
  const DType dtype_;
  const int threads_;
  std::mutex mutex_;
  PackedWeights packed_;
  std::list<std::pair<PlanKey, std::shared_ptr<const Plan>>> plans_;
  std::vector<std::shared_ptr<Workspace>> workspaces_;
};

// Calls `f`; returns whether it did not throw, else writes a message to `error`.
template <typename F>
int Try(char* error, size_t error_size, const F& f) {
  try {
    f();
    return 1;
  } catch (const std::exception& e) {
    std::strncpy(error, e.what(), error_size - 1);
    error[error_size - 1] = 0;
    return 0;
  }
}

}  // namespace
}  // namespace resflax

extern "C" {

// `shapes` has the number of axes and the axes of each array. The arrays must outlive the network.
void* ResflaxNetworkCreate(const double* code, int64_t code_length, const float* const* arrays,
                           const int64_t* shapes, int64_t array_count, int64_t channels,
                           int bfloat16, char* error, int64_t error_size) {
  using namespace resflax;
  void* network = nullptr;
  Try(error, error_size, [&] {
    std::vector<Array> list;
    for (int64_t i = 0; i < array_count; ++i) {
      const int64_t rank = *shapes++;
      list.push_back({arrays[i], {shapes, shapes + rank}});
      shapes += rank;
    }
    network = new Network(Program(code, code_length, std::move(list)), channels,
                          bfloat16 ? DType::kBFloat16 : DType::kFloat32);
  });
  return network;
}

void ResflaxNetworkDestroy(void* network) { delete static_cast<resflax::Network*>(network); }

// Returns 1, or 0 and a message in `error`. May be called from several threads at the same time.
int ResflaxNetworkPredict(void* network, const char* images, int uint8, int64_t n, int64_t h,
                          int64_t w, float* output, char* error, int64_t error_size) {
  using namespace resflax;
  return Try(error, error_size, [&] {
    static_cast<Network*>(network)->Predict(images, uint8 ? DType::kUint8 : DType::kFloat32, n, h,
                                            w, output);
  });
}
}
