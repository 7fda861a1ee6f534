// Convolution through oneDNN, as a custom call of XLA (resflax/nn/onednn.py compiles and calls it).
//
// One form, T(x, w, g) = <conv(x, w), g>, and its three readings: "y" is conv(x, w), "x" and "w"
// are the gradients of T for x and for w. x and y (and g, of y's shape) are NHWC, w is HWIO.

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

struct Geometry {
  char reading;
  memory::data_type dtype;
  Dims x, w, y;  // as the arrays have them: NHWC, HWIO, NHWC
  Dims strides, padding, dilation;
  int64_t groups;
  std::vector<int64_t> Key() const {
    std::vector<int64_t> key = {reading, static_cast<int64_t>(dtype), groups};
    for (const Dims* d : {&x, &w, &y, &strides, &padding, &dilation})
      key.insert(key.end(), d->begin(), d->end());
    return key;
  }
};

const dnnl::engine& Engine() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// A convolution made ready. Many threads may run it at once, each with its own workspace.
class Plan {
 public:
  explicit Plan(const Geometry& g)
      : reading_(g.reading), x_(Activations(g.x, g.dtype)), y_(Activations(g.y, g.dtype)),
        w_(Kernel(g)) {
    const memory::desc any(w_.get_dims(), g.dtype, memory::format_tag::any);  // oneDNN chooses
    const Dims low = {g.padding[0], g.padding[2]}, high = {g.padding[1], g.padding[3]};
    const Dims holes = {g.dilation[0] - 1, g.dilation[1] - 1};  // oneDNN counts the holes
    const auto direct = dnnl::algorithm::convolution_direct;
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);

    dnnl::convolution_forward::primitive_desc forward(
        Engine(), dnnl::prop_kind::forward_training, direct, x_, any, y_, g.strides, holes, low,
        high, attr);
    if (reading_ == 'y') {
      Take<dnnl::convolution_forward>(forward, forward.weights_desc());
    } else if (reading_ == 'x') {
      dnnl::convolution_backward_data::primitive_desc backward(
          Engine(), direct, x_, any, y_, g.strides, holes, low, high, forward, attr);
      Take<dnnl::convolution_backward_data>(backward, backward.weights_desc());
    } else {
      dnnl::convolution_backward_weights::primitive_desc backward(
          Engine(), direct, x_, any, y_, g.strides, holes, low, high, forward, attr);
      Take<dnnl::convolution_backward_weights>(backward, backward.diff_weights_desc());
    }
  }

  // Bytes that Run needs beside its arrays.
  size_t WorkspaceSize() const { return PackedSize() + scratch_.get_size(); }

  void Run(dnnl::stream& stream, void* x, void* w, void* y, char* workspace) const {
    memory x_array(x_, Engine(), x), w_array(w_, Engine(), w), y_array(y_, Engine(), y);
    memory scratch(scratch_, Engine(), workspace + PackedSize());
    memory kernel = packs_ ? memory(packed_, Engine(), workspace) : w_array;
    if (packs_ && reading_ != 'w') reorder_.execute(stream, w_array, kernel);
    const bool to_x = reading_ == 'x', to_w = reading_ == 'w';
    convolution_.execute(stream, {{to_x ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, x_array},
                                  {to_w ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, kernel},
                                  {to_x || to_w ? DNNL_ARG_DIFF_DST : DNNL_ARG_DST, y_array},
                                  {DNNL_ARG_SCRATCHPAD, scratch}});
    if (packs_ && to_w) reorder_.execute(stream, kernel, w_array);
    stream.wait();
  }

 private:
  static memory::desc Activations(const Dims& nhwc, memory::data_type dtype) {
    return {{nhwc[0], nhwc[3], nhwc[1], nhwc[2]}, dtype, memory::format_tag::nhwc};
  }

  static memory::desc Kernel(const Geometry& g) {
    const int64_t h = g.w[0], w = g.w[1], in = g.w[2], out = g.w[3];
    if (g.groups == 1) return {{out, in, h, w}, g.dtype, memory::format_tag::hwio};
    // A remainder makes channels that do not fit, which oneDNN refuses.
    return {{g.groups, out / g.groups, in, h, w}, g.dtype, memory::format_tag::hwigo};
  }

  template <typename Primitive>
  void Take(const typename Primitive::primitive_desc& desc, const memory::desc& packed) {
    convolution_ = Primitive(desc);
    scratch_ = desc.scratchpad_desc();
    packed_ = packed;
    packs_ = packed_ != w_;
    if (!packs_) return;
    const bool out = reading_ == 'w';
    reorder_ = dnnl::reorder(dnnl::reorder::primitive_desc(
        Engine(), out ? packed_ : w_, Engine(), out ? w_ : packed_));
  }

  size_t PackedSize() const { return packs_ ? (packed_.get_size() + 4095) / 4096 * 4096 : 0; }

  char reading_;
  memory::desc x_, y_, w_, packed_, scratch_;  // packed: w in the layout that oneDNN chose
  bool packs_ = false;
  dnnl::primitive convolution_;
  dnnl::reorder reorder_;
};

// A place to run a plan at. Its memory is kept from call to call: fresh memory is page faults.
struct Bench {
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

// Every plan, made at its first use, and as many benches as were ever in use at once: XLA calls
// from several threads, and one lock around the whole call would make pmap slower.
struct Shop {
  static Shop& Only() {
    static auto* shop = new Shop;  // never destroyed: XLA's threads may outlive main
    return *shop;
  }

  const Plan& Find(const Geometry& geometry) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& plan = plans_[geometry.Key()];
    if (!plan) plan = std::make_unique<Plan>(geometry);
    return *plan;
  }

  std::unique_ptr<Bench> Borrow() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (benches_.empty()) return std::make_unique<Bench>();
    auto bench = std::move(benches_.back());
    benches_.pop_back();
    return bench;
  }

  void Return(std::unique_ptr<Bench> bench) {
    std::lock_guard<std::mutex> lock(mutex_);
    benches_.push_back(std::move(bench));
  }

 private:
  std::mutex mutex_;
  std::map<std::vector<int64_t>, std::unique_ptr<Plan>> plans_;
  std::vector<std::unique_ptr<Bench>> benches_;
};

Dims LastFour(const ffi::AnyBuffer& array) {
  const auto d = array.dimensions();
  return Dims(d.end() - 4, d.end());
}

int64_t Members(const ffi::AnyBuffer& array) {
  int64_t members = 1;
  for (size_t i = 0; i + 4 < array.dimensions().size(); ++i) members *= array.dimensions()[i];
  return members;
}

// What oneDNN would not notice by itself.
const char* Misfit(const ffi::AnyBuffer& lhs, const ffi::AnyBuffer& rhs, const ffi::AnyBuffer& out,
                   int64_t groups) {
  const auto dtype = out.element_type(), f32 = ffi::DataType::F32, bf16 = ffi::DataType::BF16;
  for (const ffi::AnyBuffer* array : {&lhs, &rhs, &out}) {
    if (array->dimensions().size() < 4) return "arrays must have four axes or more";
    if (Members(*array) != Members(out)) return "arrays differ in their number of members";
    if (array->element_type() != dtype || (dtype != f32 && dtype != bf16))
      return "arrays must be all float32 or all bfloat16";
  }
  return groups < 1 ? "groups must be positive" : nullptr;
}

ffi::Error Convolve(ffi::AnyBuffer lhs, ffi::AnyBuffer rhs, ffi::Result<ffi::AnyBuffer> out,
                    std::string_view reading, Span strides, Span padding, Span dilation,
                    int64_t groups) try {
  const char* misfit = Misfit(lhs, rhs, *out, groups);
  if (misfit) return ffi::Error::InvalidArgument(misfit);
  if (!lhs.element_count() || !rhs.element_count() || !out->element_count()) {  // sums of nothing
    std::memset(out->untyped_data(), 0, out->size_bytes());
    return ffi::Error::Success();
  }
  const char r = reading[0];
  const ffi::AnyBuffer& x = r == 'x' ? *out : lhs;
  const ffi::AnyBuffer& w = r == 'w' ? *out : rhs;
  const ffi::AnyBuffer& y = r == 'y' ? *out : r == 'x' ? lhs : rhs;
  const auto copy = [](Span span) { return Dims(span.begin(), span.end()); };
  const bool wide = out->element_type() == ffi::DataType::F32;
  const Geometry geometry = {r, wide ? memory::data_type::f32 : memory::data_type::bf16,
                             LastFour(x), LastFour(w), LastFour(y),
                             copy(strides), copy(padding), copy(dilation), groups};
  const int64_t members = Members(*out);
  auto& shop = Shop::Only();
  const Plan& plan = shop.Find(geometry);
  auto bench = shop.Borrow();  // an exception drops it, which does no harm
  char* workspace = bench->Workspace(plan.WorkspaceSize());
  const auto member = [members](const ffi::AnyBuffer& array, int64_t i) {
    return static_cast<char*>(array.untyped_data()) + i * (array.size_bytes() / members);
  };
  for (int64_t i = 0; i < members; ++i)
    plan.Run(bench->stream, member(x, i), member(w, i), member(y, i), workspace);
  shop.Return(std::move(bench));
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ResflaxConvolve, Convolve,
    ffi::Ffi::Bind()
        .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()
        .Attr<std::string_view>("reading").Attr<Span>("strides").Attr<Span>("padding")
        .Attr<Span>("dilation").Attr<int64_t>("groups"));

// Whether all three readings exist in bfloat16 on this CPU.
extern "C" int ResflaxBfloat16() try {
  for (char reading : {'y', 'x', 'w'})
    Plan({reading, memory::data_type::bf16, {1, 8, 8, 16}, {3, 3, 16, 16}, {1, 8, 8, 16},
          {1, 1}, {1, 1, 1, 1}, {1, 1}, 1});
  return 1;
} catch (const std::exception&) {
  return 0;
}
