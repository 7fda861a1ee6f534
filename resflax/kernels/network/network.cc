// A network in evaluation mode, run by one call; binding.py compiles and calls it.
//
// A plan is a segment of the network for one batch and image size: oneDNN primitives and loops over
// arrays at fixed places of a workspace. Batches are divided evenly among the threads, so that they
// need not wait for each other. What is left of a batch is run by all threads together.

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parallel.h"
#include "plan.h"
#include "program.h"
#include "schedule.h"

namespace resflax {
namespace {

class Network {
 public:
  Network(Program program, Dim channels, DType dtype)
      : program_(std::move(program)), channels_(channels), dtype_(dtype),
        threads_(omp_get_max_threads()), packed_(threads_) {}

  void Predict(const char* images, DType input, Dim n, Dim h, Dim w, float* output) {
    const Call call{images, reinterpret_cast<char*>(output), input, h, w,
                    h * w * channels_ * ItemSize(input),
                    MakeSchedule(program_, h, w, channels_, dtype_)};
    const Dim each = threads_ > 1 ? n / threads_ : 0;  // images per thread
    if (each) {
      Prepare(call, call.schedule.size() - 1, each, 1);
      ParallelRegion(threads_, [&](Dim thread, Dim granted) {
        ThreadScope scope(1);
        WorkspaceLease workspace(*this);
        for (Dim t = thread; t < threads_; t += granted)
          Compute(call, t * each, each, 1, *workspace);
      });
    }
    const Dim rest = n - each * threads_;
    if (rest) {
      ThreadScope scope(threads_);
      WorkspaceLease workspace(*this);
      Compute(call, each * threads_, rest, threads_, *workspace);
    }
    if (input == DType::kFloat32) PropagateNaN(images, n, h * w * channels_, call, output);
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

  // A workspace that one thread borrows.
  class WorkspaceLease {
   public:
    explicit WorkspaceLease(Network& network) : network_(network) {
      std::lock_guard<std::mutex> lock(network_.mutex_);
      generation_ = network_.workspace_generation_;
      auto& idle = network_.idle_workspaces_;
      if (idle.empty()) {
        workspace_ = std::make_unique<Workspace>();
      } else {
        workspace_ = std::move(idle.back());
        idle.pop_back();
      }
    }
    ~WorkspaceLease() {
      std::lock_guard<std::mutex> lock(network_.mutex_);
      if (generation_ != network_.workspace_generation_) return;
      try {
        network_.idle_workspaces_.push_back(std::move(workspace_));
      } catch (const std::bad_alloc&) {  // it is freed instead
      }
    }
    WorkspaceLease(const WorkspaceLease&) = delete;
    Workspace& operator*() const { return *workspace_; }

   private:
    Network& network_;
    std::unique_ptr<Workspace> workspace_;
    int64_t generation_;
  };

  // Makes the outputs NaN for every image with a NaN: oneDNN's relu returns 0 for it, so that the
  // outputs could look valid.
  void PropagateNaN(const char* images, Dim n, Dim image_size, const Call& call, float* output) {
    const auto* x = reinterpret_cast<const float*>(images);
    const size_t features = call.schedule.back().result_bytes / sizeof(float);
    ParallelFor(threads_, n, [&](Dim i) {
      int is_nan = 0;
      for (Dim k = i * image_size; k < (i + 1) * image_size; ++k) is_nan |= x[k] != x[k];
      const float nan = std::numeric_limits<float>::quiet_NaN();
      if (is_nan) std::fill_n(output + i * features, features, nan);
    });
  }

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

  // Makes the plans that `ComputeSegment` needs, before its threads would wait for each other.
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
    auto plan = std::make_shared<const Plan>(program_, packed_, dtype_, shapes.back(), key);
    plans_.emplace_front(key, std::move(plan));
    if (plans_.size() > kMaxPlans) EvictPlan();
    return plans_.front().second;
  }

  // Removes the plan that was used least recently, and the workspaces if no other is as large.
  void EvictPlan() {
    const size_t size = plans_.back().second->WorkspaceSize();
    plans_.pop_back();
    const auto needs_it = [&](const auto& entry) { return entry.second->WorkspaceSize() >= size; };
    if (std::any_of(plans_.begin(), plans_.end(), needs_it)) return;
    idle_workspaces_.clear();
    ++workspace_generation_;  // those in use are freed afterwards
  }

  static constexpr size_t kMaxPlans = 64;
  const Program program_;
  const Dim channels_;
  const DType dtype_;
  const int threads_;
  std::mutex mutex_;
  PackedWeights packed_;
  std::list<std::pair<PlanKey, std::shared_ptr<const Plan>>> plans_;
  std::vector<std::unique_ptr<Workspace>> idle_workspaces_;
  int64_t workspace_generation_ = 0;
};

// Calls `f`; returns whether it did not throw, else writes a message to `error`.
template <typename F>
int Try(char* error, size_t error_size, const F& f) {
  const auto fail = [&](const char* message) {
    std::strncpy(error, message, error_size - 1);
    error[error_size - 1] = 0;
    return 0;
  };
  try {
    f();
    return 1;
  } catch (const std::exception& e) {
    return fail(e.what());
  } catch (...) {
    return fail("unknown error");
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
