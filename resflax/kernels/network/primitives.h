// Convolutions and dense layers by oneDNN.

#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>

#include "step.h"

namespace resflax {

using dnnl::memory;

inline memory::data_type OneDnnType(DType dtype) {
  return dtype == DType::kBFloat16 ? memory::data_type::bf16 : memory::data_type::f32;
}

// What a step needs besides its arguments at run time.
struct StepBuilder {
  DType dtype;   // of feature maps
  int threads;   // that one step uses
  int node_index;
  PackedWeights* packed;
  size_t* scratch_size;  // largest scratch memory of all steps so far, in bytes

  void NeedScratch(size_t size) const { *scratch_size = std::max(*scratch_size, size); }

  // Reorders `array` of layout `from` to `to`, unless another plan has done it.
  std::shared_ptr<Buffer> Pack(const Array& array, const memory::desc& from,
                               const memory::desc& to) const {
    return packed->Get(node_index, LayoutKey(to), to.get_size(), [&](char* data) {
      memory source(from, Engine(), const_cast<float*>(array.data)), target(to, Engine(), data);
      dnnl::stream stream(Engine());
      dnnl::reorder(source, target).execute(stream, source, target);
      stream.wait();
    });
  }

  static std::string LayoutKey(const memory::desc& desc) {
    std::string key = std::to_string(static_cast<int>(desc.get_data_type()));
    for (const auto& dims : {desc.get_padded_dims(), desc.get_strides(), desc.get_inner_blks(),
                             desc.get_inner_idxs()})
      for (const Dim d : dims) key += "," + std::to_string(d);
    return key;
  }
};

// oneDNN's relu returns 0 for NaN.
inline void AppendActivation(dnnl::post_ops& ops, Activation activation) {
  if (activation == Activation::kRelu)
    ops.append_eltwise(dnnl::algorithm::eltwise_relu, 0, 0);
  else if (activation == Activation::kSigmoid)
    ops.append_eltwise(dnnl::algorithm::eltwise_logistic, 0, 0);
}

// Copies an array to where an in-place sum expects it.
inline void Copy(int threads, const char* from, char* to, size_t size) {
  constexpr size_t kPart = 1 << 18;
  ParallelFor(threads, (size + kPart - 1) / kPart, [&](Dim i) {
    std::memcpy(to + i * kPart, from + i * kPart, std::min(kPart, size - i * kPart));
  });
}

// y = act(conv(x, kernel) + bias + residual). A residual that is not at `y` is copied there first.
inline Step ConvStep(const StepBuilder& builder, const Node& node, Shape in, Shape out, Location x,
                     Location y, const Location* residual) {
  const auto dtype = OneDnnType(builder.dtype);
  const Array &kernel = node.arrays[0], &bias = node.arrays[1];
  const Dim stride = node.Int(0), padding = node.Int(1), holes = node.Int(2) - 1;
  const Dim groups = node.Int(3), kh = kernel.dims[0], kw = kernel.dims[1];
  const auto nhwc = memory::format_tag::nhwc, any = memory::format_tag::any;
  const memory::desc x_desc({in.n, in.c, in.h, in.w}, dtype, nhwc);
  const memory::desc y_desc({out.n, out.c, out.h, out.w}, dtype, nhwc);
  memory::dims dims = {out.c, kernel.dims[2], kh, kw};
  if (groups > 1) dims = {groups, out.c / groups, kernel.dims[2], kh, kw};
  const auto hwio = groups > 1 ? memory::format_tag::hwigo : memory::format_tag::hwio;
  const memory::desc user(dims, memory::data_type::f32, hwio), w_desc(dims, dtype, any);
  memory::desc bias_desc;
  if (bias) bias_desc = {{out.c}, memory::data_type::f32, memory::format_tag::x};

  dnnl::post_ops post_ops;
  if (residual) post_ops.append_sum();
  AppendActivation(post_ops, node.activation());
  dnnl::primitive_attr attr;
  attr.set_post_ops(post_ops);
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::convolution_forward::primitive_desc desc(
      Engine(), dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, x_desc,
      w_desc, bias_desc, y_desc, {stride, stride}, {holes, holes}, {padding, padding},
      {padding, padding}, attr);
  const auto packed = builder.Pack(kernel, user, desc.weights_desc());
  builder.NeedScratch(desc.scratchpad_desc().get_size());

  const int threads = builder.threads;
  const Location from = residual ? *residual : y;
  const size_t size = out.size() * ItemSize(builder.dtype);
  return [=, primitive = dnnl::convolution_forward(desc), w = desc.weights_desc(),
          scratchpad = desc.scratchpad_desc(), bias = bias.data](const Run& run) {
    if (!(from == y)) Copy(threads, run.At(from), run.At(y), size);
    std::unordered_map<int, memory> arguments = {
        {DNNL_ARG_SRC, {x_desc, Engine(), run.At(x)}},
        {DNNL_ARG_WEIGHTS, {w, Engine(), packed->data()}},
        {DNNL_ARG_DST, {y_desc, Engine(), run.At(y)}},
        {DNNL_ARG_SCRATCHPAD, {scratchpad, Engine(), run.scratch}}};
    if (bias) arguments[DNNL_ARG_BIAS] = {bias_desc, Engine(), const_cast<float*>(bias)};
    primitive.execute(*run.stream, arguments);
  };
}

// y = act(x @ kernel + bias) on pooled features.
inline Step DenseStep(const StepBuilder& builder, const Node& node, Shape in, Shape out,
                      Location x, Location y) {
  const auto f32 = memory::data_type::f32;
  const auto ab = memory::format_tag::ab;
  const Array &kernel = node.arrays[0], &bias = node.arrays[1];
  if (in.c != kernel.dims[0]) throw std::invalid_argument("features do not match");
  const memory::desc x_desc({in.n, in.c}, f32, ab), y_desc({out.n, out.c}, f32, ab);
  const memory::desc user({in.c, out.c}, f32, ab), bias_desc({1, out.c}, f32, ab);
  dnnl::post_ops post_ops;
  AppendActivation(post_ops, node.activation());
  dnnl::primitive_attr attr;
  attr.set_post_ops(post_ops);
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const memory::desc any({in.c, out.c}, f32, memory::format_tag::any);
  const dnnl::matmul::primitive_desc desc(Engine(), x_desc, any, bias_desc, y_desc, attr);
  const auto packed = builder.Pack(kernel, user, desc.weights_desc());
  builder.NeedScratch(desc.scratchpad_desc().get_size());
  return [=, primitive = dnnl::matmul(desc), w = desc.weights_desc(),
          scratchpad = desc.scratchpad_desc(), bias = bias.data](const Run& run) {
    primitive.execute(*run.stream,
                      {{DNNL_ARG_SRC, {x_desc, Engine(), run.At(x)}},
                       {DNNL_ARG_WEIGHTS, {w, Engine(), packed->data()}},
                       {DNNL_ARG_BIAS, {bias_desc, Engine(), const_cast<float*>(bias)}},
                       {DNNL_ARG_DST, {y_desc, Engine(), run.At(y)}},
                       {DNNL_ARG_SCRATCHPAD, {scratchpad, Engine(), run.scratch}}});
  };
}

}  // namespace resflax
