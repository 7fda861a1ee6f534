// XLA custom call that computes convolutions by oneDNN; onednn.py compiles and calls it.
//
// There are three passes (conv_params.py): "fwd" takes (x, w) and returns y = conv(x, w); "dgrad"
// takes (g, w) and returns the gradient for x; "wgrad" takes (x, g) and returns the gradient for w.
// x, y and g, which has the shape of y, are NHWC; w is HWIO.

#include <cstdint>
#include <cstdlib>
#include <cstring>
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

namespace {
namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = memory::dims;
using Span = ffi::Span<const int64_t>;

enum class Pass { kForward, kDataGrad, kWeightGrad };

struct ConvParams {
  Pass pass;
  memory::data_type dtype;
  Dims x, w, y;  // NHWC, HWIO, NHWC
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

// A prepared oneDNN convolution. Threads may run it concurrently, each with its own workspace.
class Plan {
 public:
  explicit Plan(const ConvParams& p)
      : pass_(p.pass), x_(ActivationDesc(p.x, p.dtype)), y_(ActivationDesc(p.y, p.dtype)),
        w_(KernelDesc(p)) {
    const memory::desc any(w_.get_dims(), p.dtype, memory::format_tag::any);  // oneDNN chooses
    const Dims low = {p.padding[0], p.padding[2]}, high = {p.padding[1], p.padding[3]};
    const Dims holes = {p.dilation[0] - 1, p.dilation[1] - 1};  // oneDNN's dilation starts at 0
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
    return {{nhwc[0], nhwc[3], nhwc[1], nhwc[2]}, dtype, memory::format_tag::nhwc};
  }

  static memory::desc KernelDesc(const ConvParams& p) {
    const int64_t h = p.w[0], w = p.w[1], in = p.w[2], out = p.w[3];
    if (p.groups == 1) return {{out, in, h, w}, p.dtype, memory::format_tag::hwio};
    // If groups do not divide out, the channels are inconsistent, which oneDNN rejects.
    return {{p.groups, out / p.groups, in, h, w}, p.dtype, memory::format_tag::hwigo};
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

  const Plan& GetOrCreate(const ConvParams& params) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& plan = plans_[params.Key()];
    if (!plan) plan = std::make_unique<Plan>(params);
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

Dims LastFour(const ffi::AnyBuffer& array) {
  const auto d = array.dimensions();
  return Dims(d.end() - 4, d.end());
}

// The product of the axes before the last four: the number of convolutions in one call.
int64_t MappedCount(const ffi::AnyBuffer& array) {
  int64_t count = 1;
  for (size_t i = 0; i + 4 < array.dimensions().size(); ++i) count *= array.dimensions()[i];
  return count;
}

// Returns an error message for arguments that oneDNN would not reject, or null.
const char* FindInvalidArgument(const ffi::AnyBuffer& lhs, const ffi::AnyBuffer& rhs,
                                const ffi::AnyBuffer& out, int64_t groups) {
  const auto dtype = out.element_type(), f32 = ffi::DataType::F32, bf16 = ffi::DataType::BF16;
  for (const ffi::AnyBuffer* array : {&lhs, &rhs, &out}) {
    if (array->dimensions().size() < 4) return "arrays must have four axes or more";
    if (MappedCount(*array) != MappedCount(out)) return "arrays differ in their mapped axes";
    if (array->element_type() != dtype || (dtype != f32 && dtype != bf16))
      return "arrays must be all float32 or all bfloat16";
  }
  return groups < 1 ? "groups must be positive" : nullptr;
}

ffi::Error Convolve(ffi::AnyBuffer lhs, ffi::AnyBuffer rhs, ffi::Result<ffi::AnyBuffer> out,
                    std::string_view conv_pass, Span strides, Span padding, Span dilation,
                    int64_t groups) try {
  const char* invalid = FindInvalidArgument(lhs, rhs, *out, groups);
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
                             LastFour(x), LastFour(w), LastFour(y),
                             copy(strides), copy(padding), copy(dilation), groups};
  const int64_t count = MappedCount(*out);
  auto& cache = PlanCache::Global();
  const Plan& plan = cache.GetOrCreate(params);
  auto context = cache.AcquireContext();  // freed instead of released if the call throws
  char* workspace = context->Workspace(plan.WorkspaceSize());
  const auto element = [count](const ffi::AnyBuffer& array, int64_t i) {
    return static_cast<char*>(array.untyped_data()) + i * (array.size_bytes() / count);
  };
  for (int64_t i = 0; i < count; ++i)
    plan.Run(context->stream, element(x, i), element(w, i), element(y, i), workspace);
  cache.ReleaseContext(std::move(context));
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ResflaxConvolve, Convolve,
    ffi::Ffi::Bind()
        .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()
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
