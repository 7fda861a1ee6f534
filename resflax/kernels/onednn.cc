// XLA custom call that computes convolutions by oneDNN; onednn.py compiles and calls it.
//
// There are three passes (conv_params.py): "fwd" takes (x, w) and returns y = conv(x, w); "dgrad"
// takes (g, w) and returns the gradient for x; "wgrad" takes (x, g) and returns the gradient for w.
// x, y and g, which has the shape of y, are NHWC or NDHWC; w is HWIO or DHWIO.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

// From libgomp, which oneDNN is linked with. omp.h may be that of another OpenMP library.
extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int);

namespace {
namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = memory::dims;
using Span = ffi::Span<const int64_t>;

enum class Pass { kForward, kDataGrad, kWeightGrad };

struct ConvParams {
  Pass pass;
  memory::data_type dtype;
  Dims x, w, y;  // NHWC, HWIO, NHWC; of volumes with the depth before H
  Dims strides, padding, dilation;
  int64_t groups;
  std::vector<int64_t> Key() const {
    std::vector<int64_t> key = {static_cast<int64_t>(pass), static_cast<int64_t>(dtype), groups};
    for (const Dims* d : {&x, &w, &y, &strides, &padding, &dilation})
      key.insert(key.end(), d->begin(), d->end());
    return key;
  }
};

const dnnl::engine& Engine() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// Sets the number of threads for which oneDNN makes and runs primitives on the calling thread.
class ThreadScope {
 public:
  explicit ThreadScope(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ThreadScope() { omp_set_num_threads(before_); }
  ThreadScope(const ThreadScope&) = delete;

 private:
  const int before_;
};

// A loop that several threads run together. Each takes the next index until none is left, so a
// thread that starts late or is interrupted does not delay the others.
class SharedLoop {
 public:
  SharedLoop(int64_t count, std::function<void(int64_t)> body)
      : count_(count), body_(std::move(body)) {}

  // Runs indices until none is left. Exceptions are kept for `Wait`.
  void Run() {
    for (int64_t i; (i = next_++) < count_;) {
      std::exception_ptr error;
      try {
        body_(i);
      } catch (...) {
        error = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(mutex_);
      if (error) error_ = error;
      if (++done_ == count_) all_done_.notify_all();
    }
  }

  // Returns when the body has returned for every index; throws one of its exceptions, if any.
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return done_ == count_; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const int64_t count_;
  const std::function<void(int64_t)> body_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;  // of the fields below
  std::condition_variable all_done_;
  int64_t done_ = 0;
  std::exception_ptr error_;
};

// Calls `body(i)` for i < count on the calling thread and others of XLA's threads. The calling thread waits only for indices that another one is running, so that calls from all of
// XLA's threads at the same time cannot block each other.
void ParallelFor(ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> body) {
  // Shared, because XLA may start a helper after the loop has ended.
  auto loop = std::make_shared<SharedLoop>(count, std::move(body));
  for (int64_t t = 1; t < std::min(pool.num_threads(), count); ++t)
    pool.Schedule([loop] { loop->Run(); });
  loop->Run();
  loop->Wait();
}

// A prepared oneDNN convolution. Threads may run it concurrently, each with its own workspace.
class Plan {
 public:
  explicit Plan(const ConvParams& p)
      : pass_(p.pass), x_(ActivationDesc(p.x, p.dtype)), y_(ActivationDesc(p.y, p.dtype)),
        w_(KernelDesc(p)) {
    const memory::desc any(w_.get_dims(), p.dtype, memory::format_tag::any);  // oneDNN chooses
    Dims low, high, holes;
    for (size_t i = 0; i < p.strides.size(); ++i) {
      low.push_back(p.padding[2 * i]);
      high.push_back(p.padding[2 * i + 1]);
      holes.push_back(p.dilation[i] - 1);  // oneDNN's dilation starts at 0
    }
    const auto direct = dnnl::algorithm::convolution_direct;
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);

    dnnl::convolution_forward::primitive_desc forward(
        Engine(), dnnl::prop_kind::forward_training, direct, x_, any, y_, p.strides, holes, low,
        high, attr);
    if (pass_ == Pass::kForward) {
      SetPrimitive<dnnl::convolution_forward>(forward, forward.weights_desc());
    } else if (pass_ == Pass::kDataGrad) {
      dnnl::convolution_backward_data::primitive_desc backward(
          Engine(), direct, x_, any, y_, p.strides, holes, low, high, forward, attr);
      SetPrimitive<dnnl::convolution_backward_data>(backward, backward.weights_desc());
    } else {
      dnnl::convolution_backward_weights::primitive_desc backward(
          Engine(), direct, x_, any, y_, p.strides, holes, low, high, forward, attr);
      SetPrimitive<dnnl::convolution_backward_weights>(backward, backward.diff_weights_desc());
    }
  }

  // Bytes of the workspace that Run needs.
  size_t WorkspaceSize() const { return PackedSize() + scratch_.get_size(); }

  void Run(dnnl::stream& stream, void* x, void* w, void* y, char* workspace) const {
    memory x_array(x_, Engine(), x), w_array(w_, Engine(), w), y_array(y_, Engine(), y);
    memory scratch(scratch_, Engine(), workspace + PackedSize());
    memory kernel = packs_ ? memory(packed_, Engine(), workspace) : w_array;
    const bool dgrad = pass_ == Pass::kDataGrad, wgrad = pass_ == Pass::kWeightGrad;
    if (packs_ && !wgrad) reorder_.execute(stream, w_array, kernel);
    convolution_.execute(stream, {{dgrad ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, x_array},
                                  {wgrad ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, kernel},
                                  {dgrad || wgrad ? DNNL_ARG_DIFF_DST : DNNL_ARG_DST, y_array},
                                  {DNNL_ARG_SCRATCHPAD, scratch}});
    if (packs_ && wgrad) reorder_.execute(stream, kernel, w_array);
    stream.wait();
  }

 private:
  static memory::desc ActivationDesc(const Dims& nhwc, memory::data_type dtype) {
    Dims dims = {nhwc.front(), nhwc.back()};
    dims.insert(dims.end(), nhwc.begin() + 1, nhwc.end() - 1);
    using Tag = memory::format_tag;
    return {dims, dtype, dims.size() == 4 ? Tag::nhwc : Tag::ndhwc};
  }

  static memory::desc KernelDesc(const ConvParams& p) {
    const int64_t in = p.w[p.w.size() - 2], out = p.w.back();
    const bool planar = p.w.size() == 4;
    using Tag = memory::format_tag;
    // If groups do not divide out, the channels are inconsistent, which oneDNN rejects.
    Dims dims = p.groups == 1 ? Dims{out, in} : Dims{p.groups, out / p.groups, in};
    dims.insert(dims.end(), p.w.begin(), p.w.end() - 2);
    if (p.groups == 1) return {dims, p.dtype, planar ? Tag::hwio : Tag::dhwio};
    return {dims, p.dtype, planar ? Tag::hwigo : Tag::dhwigo};
  }

  template <typename Primitive>
  void SetPrimitive(const typename Primitive::primitive_desc& desc, const memory::desc& packed) {
    convolution_ = Primitive(desc);
    scratch_ = desc.scratchpad_desc();
    packed_ = packed;
    packs_ = packed_ != w_;
    if (!packs_) return;
    const bool unpack = pass_ == Pass::kWeightGrad;
    reorder_ = dnnl::reorder(dnnl::reorder::primitive_desc(
        Engine(), unpack ? packed_ : w_, Engine(), unpack ? w_ : packed_));
  }

  size_t PackedSize() const { return packs_ ? (packed_.get_size() + 4095) / 4096 * 4096 : 0; }

  Pass pass_;
  memory::desc x_, y_, w_, packed_, scratch_;  // packed_: w in oneDNN's layout
  bool packs_ = false;
  dnnl::primitive convolution_;
  dnnl::reorder reorder_;
};

// The stream and the workspace of one call. Workspaces are reused, because touching newly allocated
// memory costs page faults.
struct CallContext {
  char* Workspace(size_t needed) {
    if (needed > size) {
      size = (needed + 4095) / 4096 * 4096;
      memory.reset(static_cast<char*>(std::aligned_alloc(4096, size)));
      if (!memory) throw std::bad_alloc();
    }
    return memory.get();
  }

  dnnl::stream stream{Engine()};
  std::unique_ptr<char, decltype(&std::free)> memory{nullptr, &std::free};
  size_t size = 0;
};

// A cache of plans and a pool of call contexts. XLA calls from several threads, and holding one lock
// for the whole call would make pmap slower.
class PlanCache {
 public:
  static PlanCache& Global() {
    static auto* cache = new PlanCache;  // never destroyed: XLA's threads may outlive main
    return *cache;
  }

  // Returns a plan for a number of threads.
  const Plan& GetOrCreate(const ConvParams& params, int threads) {
    auto key = params.Key();
    key.push_back(threads);
    std::lock_guard<std::mutex> lock(mutex_);
    auto& plan = plans_[key];
    if (!plan) {
      const ThreadScope scope(threads);
      plan = std::make_unique<Plan>(params);
    }
    return *plan;
  }

  std::unique_ptr<CallContext> AcquireContext() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (contexts_.empty()) return std::make_unique<CallContext>();
    auto context = std::move(contexts_.back());
    contexts_.pop_back();
    return context;
  }

  void ReleaseContext(std::unique_ptr<CallContext> context) {
    std::lock_guard<std::mutex> lock(mutex_);
    contexts_.push_back(std::move(context));
  }

 private:
  std::mutex mutex_;
  std::map<std::vector<int64_t>, std::unique_ptr<Plan>> plans_;
  std::vector<std::unique_ptr<CallContext>> contexts_;
};

Dims LastAxes(const ffi::AnyBuffer& array, size_t rank) {
  const auto d = array.dimensions();
  return Dims(d.end() - rank, d.end());
}

// The product of the axes before the last ones: the number of convolutions in one call.
int64_t MappedCount(const ffi::AnyBuffer& array, size_t rank) {
  int64_t count = 1;
  for (size_t i = 0; i + rank < array.dimensions().size(); ++i) count *= array.dimensions()[i];
  return count;
}

// Returns an error message for arguments that oneDNN would not reject, or null.
const char* FindInvalidArgument(const ffi::AnyBuffer& lhs, const ffi::AnyBuffer& rhs,
                                const ffi::AnyBuffer& out, size_t rank, int64_t groups) {
  const auto dtype = out.element_type(), f32 = ffi::DataType::F32, bf16 = ffi::DataType::BF16;
  for (const ffi::AnyBuffer* array : {&lhs, &rhs, &out}) {
    if (array->dimensions().size() < rank) return "arrays must have an axis per stride, and two";
    if (MappedCount(*array, rank) != MappedCount(out, rank)) return "arrays differ in their mapped axes";
    if (array->element_type() != dtype || (dtype != f32 && dtype != bf16))
      return "arrays must be all float32 or all bfloat16";
  }
  return groups < 1 ? "groups must be positive" : nullptr;
}

// Floating-point operations of one convolution.
double Operations(const ConvParams& p) {
  double operations = 2;
  for (int64_t n : p.y) operations *= n;
  for (size_t i = 0; i + 1 < p.w.size(); ++i) operations *= p.w[i];
  return operations;
}

// Below this, starting and joining OpenMP's threads, for the convolution and for the reordering of
// its kernel, takes longer than the threads save.
constexpr double kMinSharedOperations = 3e7;

// Returns how many of `count` convolutions run at the same time, each on one thread. The others run
// one after another, each on all threads.
int64_t NumConcurrent(const ConvParams& params, int64_t count, int64_t threads) {
  if (count < 2 || threads < 2) return 0;
  if (Operations(params) < kMinSharedOperations) return count;
  return count - count % threads;
}

ffi::Error Convolve(ffi::AnyBuffer lhs, ffi::AnyBuffer rhs, ffi::Result<ffi::AnyBuffer> out,
                    ffi::ThreadPool pool, std::string_view conv_pass, Span strides, Span padding,
                    Span dilation, int64_t groups) try {
  const size_t rank = strides.size() + 2;
  const char* invalid = FindInvalidArgument(lhs, rhs, *out, rank, groups);
  if (invalid) return ffi::Error::InvalidArgument(invalid);
  if (!lhs.element_count() || !rhs.element_count() || !out->element_count()) {  // empty sums
    std::memset(out->untyped_data(), 0, out->size_bytes());
    return ffi::Error::Success();
  }
  const bool dgrad = conv_pass == "dgrad", wgrad = conv_pass == "wgrad";
  const ffi::AnyBuffer& x = dgrad ? *out : lhs;
  const ffi::AnyBuffer& w = wgrad ? *out : rhs;
  const ffi::AnyBuffer& y = dgrad ? lhs : wgrad ? rhs : *out;
  const Pass pass = dgrad ? Pass::kDataGrad : wgrad ? Pass::kWeightGrad : Pass::kForward;
  const auto copy = [](Span span) { return Dims(span.begin(), span.end()); };
  const bool is_f32 = out->element_type() == ffi::DataType::F32;
  const ConvParams params = {pass, is_f32 ? memory::data_type::f32 : memory::data_type::bf16,
                             LastAxes(x, rank), LastAxes(w, rank), LastAxes(y, rank),
                             copy(strides), copy(padding), copy(dilation), groups};
  const int64_t count = MappedCount(*out, rank);
  const auto element = [count](const ffi::AnyBuffer& array, int64_t i) {
    return static_cast<char*>(array.untyped_data()) + i * (array.size_bytes() / count);
  };
  const auto run = [&](const Plan& plan, int64_t i) {
    auto context = PlanCache::Global().AcquireContext();  // freed, not released, if this throws
    char* workspace = context->Workspace(plan.WorkspaceSize());
    plan.Run(context->stream, element(x, i), element(w, i), element(y, i), workspace);
    PlanCache::Global().ReleaseContext(std::move(context));
  };
  const int64_t concurrent = NumConcurrent(params, count, pool.num_threads());
  if (concurrent > 0) {
    const Plan& plan = PlanCache::Global().GetOrCreate(params, 1);
    ParallelFor(pool, concurrent, [&](int64_t i) {
      const ThreadScope scope(1);
      run(plan, i);
    });
  }
  if (concurrent == count) return ffi::Error::Success();
  const Plan& plan = PlanCache::Global().GetOrCreate(params, omp_get_max_threads());
  for (int64_t i = concurrent; i < count; ++i) run(plan, i);
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ResflaxConvolve, Convolve,
    ffi::Ffi::Bind()
        .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Ctx<ffi::ThreadPool>()
        .Attr<std::string_view>("conv_pass").Attr<Span>("strides").Attr<Span>("padding")
        .Attr<Span>("dilation").Attr<int64_t>("groups"));

// Returns 1 if this CPU supports all three passes in bfloat16, else 0.
extern "C" int ResflaxBfloat16() try {
  for (Pass pass : {Pass::kForward, Pass::kDataGrad, Pass::kWeightGrad})
    Plan({pass, memory::data_type::bf16, {1, 8, 8, 16}, {3, 3, 16, 16}, {1, 8, 8, 16},
          {1, 1}, {1, 1, 1, 1}, {1, 1}, 1});
  return 1;
} catch (const std::exception&) {
  return 0;
}
