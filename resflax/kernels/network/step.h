// What a plan consists of: steps, functions of the arrays of one run.

#pragma once

#include <functional>

#include "memory.h"

namespace resflax {

// Where an array is while a plan runs.
struct Location {
  enum Kind { kImages, kWorkspace, kOutput } kind = kWorkspace;
  size_t offset = 0;
  bool operator==(const Location& other) const {
    return kind == other.kind && offset == other.offset;
  }
};

// The arguments of one run of a plan.
struct Run {
  const char* images;
  char* output;
  char* workspace;
  char* scratch;
  dnnl::stream* stream;

  char* At(const Location& location) const {
    if (location.kind == Location::kImages) return const_cast<char*>(images);
    return (location.kind == Location::kOutput ? output : workspace) + location.offset;
  }
};

using Step = std::function<void(const Run&)>;

}  // namespace resflax
