// A network in evaluation mode, run by one call; network.py compiles and calls it.
//
// A plan is the network for one batch and image size: oneDNN primitives and loops over arrays at
// fixed places of a workspace. Large batches are divided among the threads, each of which runs
// plans for a few images, so that activations stay in its caches and threads need not wait for each
// other. What is left of a batch is run by all threads together.

#include <omp.h>

#include <cstring>
#include <exception>
#include <list>
#include <mutex>

#include "loops.h"
#include "plan.h"
#include "primitives.h"
#include "program.h"

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

struct PlanKey {
  Dim n, h, w;
  DType input;
  int threads;
  bool operator==(const PlanKey& k) const {
    return n == k.n && h == k.h && w == k.w && input == k.input && threads == k.threads;
  }
};

class Plan {
 public:
  Plan(const Program& program, PackedWeights& packed, DType dtype, Dim channels, PlanKey key)
      : builder_{dtype, key.threads, 0, &packed, &scratch_size_} {
    const size_t count = program.nodes.size();
    std::vector<int> last_use(count + 1, -1);
    for (size_t i = 0; i < count; ++i)
      for (const int input : program.nodes[i].inputs) last_use[input] = i;

    values_.push_back({{key.n, key.h, key.w, channels}, key.input, {Location::kImages}});
    // Without a node "normalize", bfloat16 images are rounded here.
    ConvertImages(program);
    for (size_t i = 0; i < count; ++i) {
      builder_.node_index = i;
      const Node& node = program.nodes[i];
      const auto dies = [&](int value) { return last_use[value] == static_cast<int>(i); };
      AddNode(node, i + 1 == count, dies);
      for (const int input : node.inputs)
        if (dies(input)) Free(input);
    }
    output_ = values_.back().shape;
  }

  size_t WorkspaceSize() const { return allocator_.peak() + scratch_size_; }
  Shape output() const { return output_; }

  void Execute(const char* images, char* output, Workspace& workspace) const {
    char* memory = workspace.Reserve(WorkspaceSize());
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
    const Location at = values_[value].at;
    if (at.kind != Location::kWorkspace) return;
    // A result that took over its input's memory is still in use.
    if (!(values_.back().at == at)) allocator_.Free(at.offset);
  }

  template <typename Dies>
  void AddNode(const Node& node, bool is_last, const Dies& dies) {
    const Value x = values_.at(node.inputs.at(0));
    if (node.op == Op::kNormalize && x.dtype != DType::kUint8) {
      values_.push_back(x);  // floating-point images are normalized already
      return;
    }
    const bool pooled = x.pooled || node.op == Op::kMean;
    Value y{ResultShape(node, x.shape), pooled ? DType::kFloat32 : builder_.dtype, {}, pooled};
    // A sum is computed in place if nothing else reads its second summand afterwards.
    const int residual = node.op == Op::kConv && node.inputs.size() > 1 ? node.inputs[1] : -1;
    if (is_last) {
      if (!pooled) throw std::invalid_argument("the network's result is not (n, features)");
      y.at = {Location::kOutput};
    } else if (residual > 0 && dies(residual) &&
               values_[residual].at.kind == Location::kWorkspace && residual != node.inputs[0]) {
      y.at = values_[residual].at;
    } else {
      y.at = Allocate(y.shape, y.dtype);
    }
    const Location from = residual < 0 ? y.at : values_[residual].at;
    if (node.op == Op::kConv) {
      steps_.push_back(ConvStep(builder_, node, x.shape, y.shape, x.at, y.at,
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
    const Location second = has_second ? values_.at(node.inputs[1]).at : Location{};
    const Location third = has_third ? values_.at(node.inputs[2]).at : Location{};
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
  Shape output_{};
};

class Network {
 public:
  Network(Program program, Dim channels, DType dtype, Dim images_per_plan)
      : program_(std::move(program)), channels_(channels), dtype_(dtype),
        images_per_plan_(images_per_plan), threads_(omp_get_max_threads()) {}

  void Predict(const char* images, DType input, Dim n, Dim h, Dim w, float* output) {
    const size_t image_size = h * w * channels_ * ItemSize(input);
    const auto execute = [&](const Plan& plan, Dim first, Workspace& workspace) {
      char* to = reinterpret_cast<char*>(output + first * plan.output().c);
      plan.Execute(images + first * image_size, to, workspace);
    };
    const Dim each = threads_ > 1 ? n / threads_ : 0;  // images per thread
    if (each) {
      const Dim part = std::min(each, images_per_plan_);
      const auto whole = GetPlan({part, h, w, input, 1});
      const auto rest = each % part ? GetPlan({each % part, h, w, input, 1}) : nullptr;
      std::exception_ptr error;
#pragma omp parallel num_threads(threads_)
      {
        omp_set_num_threads(1);
        const auto workspace = AcquireWorkspace();
        // The runtime may grant fewer threads.
        for (Dim t = omp_get_thread_num(); t < threads_; t += omp_get_num_threads()) try {
          Dim i = t * each;
          for (; i + part <= (t + 1) * each; i += part) execute(*whole, i, *workspace);
          if (rest) execute(*rest, i, *workspace);
        } catch (...) {
#pragma omp critical
          error = std::current_exception();
        }
        ReleaseWorkspace(workspace);
      }
      if (error) std::rethrow_exception(error);
    }
    for (Dim i = each * threads_; i < n;) {
      const Dim part = std::min(n - i, images_per_plan_);
      const auto plan = GetPlan({part, h, w, input, threads_});
      ThreadScope scope(threads_);
      const auto workspace = AcquireWorkspace();
      execute(*plan, i, *workspace);
      ReleaseWorkspace(workspace);
      i += part;
    }
  }

 private:
  std::shared_ptr<const Plan> GetPlan(const PlanKey& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto same = [&](const auto& entry) { return entry.first == key; };
    auto found = std::find_if(plans_.begin(), plans_.end(), same);
    if (found != plans_.end()) {
      plans_.splice(plans_.begin(), plans_, found);  // the most recently used is in front
    } else {
      ThreadScope scope(key.threads);
      plans_.emplace_front(
          key, std::make_shared<const Plan>(program_, packed_, dtype_, channels_, key));
      if (plans_.size() > kMaxPlans) plans_.pop_back();
    }
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

  static constexpr size_t kMaxPlans = 16;
  const Program program_;
  const Dim channels_;
  const DType dtype_;
  const Dim images_per_plan_;
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
                           int bfloat16, int64_t images_per_plan, char* error,
                           int64_t error_size) {
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
                          bfloat16 ? DType::kBFloat16 : DType::kFloat32, images_per_plan);
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
