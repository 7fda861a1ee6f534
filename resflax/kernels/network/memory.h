// Memory of plans: buffers, workspaces of threads, weights as primitives read them.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "parallel.h"
#include "program.h"

namespace resflax {

inline const dnnl::engine& Engine() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// Memory for an array. A large one is in huge pages if the kernel grants them, since convolutions read
// it with large strides; a small one takes no more than it needs.
class Buffer {
 public:
  explicit Buffer(size_t size) {
    const size_t alignment = size < kLarge ? kCacheLine : kHugePage;
    size_ = std::max((size + alignment - 1) / alignment * alignment, alignment);
    data_.reset(static_cast<char*>(std::aligned_alloc(alignment, size_)));
    if (!data_) throw std::bad_alloc();
    if (size >= kLarge) madvise(data_.get(), size_, MADV_HUGEPAGE);
  }
  char* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  static constexpr size_t kCacheLine = 64, kLarge = 1 << 20, kHugePage = 1 << 21;
  size_t size_;
  std::unique_ptr<char, decltype(&std::free)> data_{nullptr, &std::free};
};

// Memory of one thread that runs plans: buffer 0 for the arrays of a plan, others for the results
// of segments.
struct Workspace {
  char* Reserve(size_t index, size_t size) {
    if (buffers.size() <= index) buffers.resize(index + 1);
    auto& buffer = buffers[index];
    if (!buffer || buffer->size() < size) {
      buffer.reset();
      buffer = std::make_unique<Buffer>(size);
    }
    return buffer->data();
  }
  std::vector<std::unique_ptr<Buffer>> buffers;
  dnnl::stream stream{Engine()};
};

// Assigns offsets to arrays, lowest first, so that memory that is in the caches is used again.
class Allocator {
 public:
  size_t Allocate(size_t size) {
    size = std::max<size_t>((size + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
    size_t offset = 0;
    for (const auto& [begin, end] : used_) {
      if (begin >= offset + size) break;
      offset = std::max(offset, end);
    }
    used_[offset] = offset + size;
    peak_ = std::max(peak_, offset + size);
    return offset;
  }
  void Free(size_t offset) { used_.erase(offset); }
  size_t peak() const { return peak_; }

 private:
  static constexpr size_t kAlignment = 4096;
  std::map<size_t, size_t> used_;  // begin to end
  size_t peak_ = 0;
};

// Weights in the layouts that the primitives prefer, shared by all plans of a network. Plans for
// different image sizes mostly prefer the same layouts.
class PackedWeights {
 public:
  // `threads` lay out an array.
  explicit PackedWeights(int threads) : threads_(threads) {}

  // Returns the array `key` of a node; `make` fills a new buffer of `size` bytes.
  std::shared_ptr<Buffer> Get(int node, const std::string& key, size_t size,
                              const std::function<void(char*)>& make) {
    auto& entry = entries_[{node, key}];
    auto buffer = entry.lock();
    if (!buffer) {
      buffer = std::make_shared<Buffer>(size);
      ThreadScope scope(threads_);  // that of a plan may be one thread
      make(buffer->data());
      entry = buffer;
    }
    return buffer;
  }

 private:
  std::map<std::pair<int, std::string>, std::weak_ptr<Buffer>> entries_;
  int threads_;
};

}  // namespace resflax
