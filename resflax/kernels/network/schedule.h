// Division of a network into segments that run on different numbers of images at a time.
//
// Early feature maps are large, and those of one image fill the caches. Late ones are small, and
// their kernels are large: several images together read them once.

#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "program.h"

namespace resflax {

// Nodes `first` to `last - 1`, which read only their own results and that of node `first - 1`.
struct Segment {
  size_t first, last;
  Dim images;           // the most images at a time, a power of two
  size_t result_bytes;  // of one image
};

inline Dim FloorPowerOfTwo(Dim value) {
  Dim power = 1;
  while (power * 2 <= value) power *= 2;
  return power;
}

// Divides `program` for images of one size into segments with increasing numbers of images.
inline std::vector<Segment> MakeSchedule(const Program& program, Dim height, Dim width,
                                         Dim channels, DType dtype) {
  constexpr size_t kCacheBytes = 4 << 20;  // of the largest feature map of all images
  constexpr Dim kMaxImages = 64;
  const size_t count = program.nodes.size();
  std::vector<Shape> shapes = {{1, height, width, channels}};
  for (const Node& node : program.nodes)
    shapes.push_back(ResultShape(node, shapes.at(node.inputs.at(0))));
  std::vector<bool> pooled = {false};
  for (const Node& node : program.nodes)
    pooled.push_back(pooled.at(node.inputs.at(0)) || node.op == Op::kMean);
  // cuts[i]: whether nodes after i read no value older than node i's result, a feature map.
  std::vector<bool> cuts(count);
  int oldest = std::numeric_limits<int>::max();
  for (size_t i = count; i-- > 0;) {
    cuts[i] = i > 0 && !pooled[i + 1] && oldest >= static_cast<int>(i) + 1;
    for (const int input : program.nodes[i].inputs) oldest = std::min(oldest, input);
  }
  std::vector<Segment> segments;
  size_t first = 0, largest = 0;
  for (size_t i = 0; i < count; ++i) {
    for (const size_t value : {size_t(program.nodes[i].inputs[0]), i + 1})
      largest = std::max<size_t>(largest, shapes[value].size() * ItemSize(dtype));
    if (!cuts[i] && i + 1 < count) continue;
    const Dim images =
        std::min(kMaxImages, FloorPowerOfTwo(kCacheBytes / std::max<size_t>(largest, 1)));
    const size_t result_bytes =
        shapes[i + 1].size() * (i + 1 == count ? sizeof(float) : ItemSize(dtype));
    if (segments.empty() || images > segments.back().images)
      segments.push_back({first, i + 1, images, result_bytes});
    else
      segments.back().last = i + 1, segments.back().result_bytes = result_bytes;
    first = i + 1;
    largest = 0;
  }
  return segments;
}

}  // namespace resflax
