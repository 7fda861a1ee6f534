// Parallel loops whose exceptions reach the caller: one that leaves an OpenMP region ends the process.

#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>

namespace resflax {

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

// Calls `f(thread, count)` on each of up to `threads` threads: the runtime may grant fewer. Throws
// one of their exceptions, if any, when all threads are done.
template <typename F>
void ParallelRegion(int threads, const F& f) {
  std::exception_ptr error;
#pragma omp parallel num_threads(threads)
  {
    try {
      f(omp_get_thread_num(), omp_get_num_threads());
    } catch (...) {
#pragma omp critical(resflax_error)
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// Calls `f(i)` for i < count on `threads` threads.
template <typename F>
void ParallelFor(int threads, int64_t count, const F& f) {
  if (threads == 1 || count == 1) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
  ParallelRegion(threads, [&](int64_t t, int64_t granted) {
    const int64_t end = count * (t + 1) / granted;
    for (int64_t i = count * t / granted; i < end; ++i) f(i);
  });
}

}  // namespace resflax
