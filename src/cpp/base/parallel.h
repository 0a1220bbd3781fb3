// Threads: how many there are, and the one way to use them. Only parallel.cpp knows what runs underneath (OpenMP).
#pragma once

#include <cstdint>
#include <type_traits>

namespace soma {

// Threads that parallel_for uses: what set_num_threads said, else SOMA_NUM_THREADS, else
// min(CPU affinity, cgroup CPU quota, cores). Throws std::invalid_argument when SOMA_NUM_THREADS is no positive
// integer. A process forked from one that already computed in parallel has one thread: the pool does not survive
// fork().
int num_threads();
void set_num_threads(int count);

// Whether this thread runs a part of a parallel job, or waits for parts: what is nested there runs serially.
bool inside_a_part();

// Marks a call into the core for as long as it lives. Calls that run at the same time, from several threads of the
// program, share the threads between them instead of fighting for the cores.
class CallScope {
 public:
  CallScope();
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;
};

// Threads for one call: num_threads() divided by the calls under way, at least 1; 1 inside a part of a parallel_for.
int call_threads();

// Threads of the largest parallel job since this was last asked, 1 where none was cut: tests see that theirs were.
int widest_job();

// Where the system refused to start threads since this was last asked: how many were wanted, and how many there are
// from now on. Else zeros.
struct RefusedThreads {
  int wanted = 0, granted = 0;
};
RefusedThreads take_refused_threads();

namespace detail {
// One stage of a parallel computation: task(context, i) for every i in [0, count).
struct Stage {
  int64_t count;
  void (*task)(void* context, int64_t index);
  void* context;
};

template <typename F>
Stage make_stage(int64_t count, F& f) {
  using Function = std::remove_reference_t<F>;
  return {count, [](void* context, int64_t index) { (*static_cast<Function*>(context))(index); },
          const_cast<void*>(static_cast<const void*>(&f))};
}

// Runs the first stage, then, when all of it is done, the second.
void run_parallel(const Stage& first, const Stage& second);

struct Barrier;  // where the threads of a region wait for each other
void wait_for_all(Barrier& barrier, int64_t size);
}  // namespace detail

// Several threads inside one function, for work whose steps are too short to wake threads for each: every thread runs
// the same calls in the same order, does its share of each, and waits where it needs what the others made.
struct ParallelRegion {
  int64_t rank, size;
  detail::Barrier* barrier;

  // Returns when every thread of the region has come here; what they wrote before is then seen by all.
  void wait() const {
    if (size > 1) detail::wait_for_all(*barrier, size);
  }
  // f(begin, end) for this thread's part of [0, count), cut at multiples of `grain`; not called where it has none.
  template <typename F>
  void share(int64_t count, int64_t grain, F&& f) const {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t begin = grains * rank / size * grain, end = grains * (rank + 1) / size * grain;
    if (begin < count && begin < end) f(begin, end < count ? end : count);
  }
};

namespace detail {
void run_region(int64_t most, void (*task)(void* context, const ParallelRegion& region), void* context);
}  // namespace detail

// Calls f(region) on each of at most `most` threads, and no more than call_threads(). f must not throw. Its results must
// not depend on the region's size.
template <typename F>
void parallel_region(int64_t most, F&& f) {
  using Function = std::remove_reference_t<F>;
  detail::run_region(
      most, [](void* context, const ParallelRegion& region) { (*static_cast<Function*>(context))(region); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

namespace detail {
void run_with_pool(void (*body)(void* context), void* context);
}  // namespace detail

// Runs f on this thread with others at hand: until it returns, parallel_for and parallel_for_then wake nobody. The
// others look out for work, and whoever comes first takes the next part. What a thread has not begun, because another
// program has its core, is done by those that run: nobody waits for it. f may throw.
template <typename F>
auto with_thread_pool(F&& f) -> decltype(f()) {
  using Result = decltype(f());
  if constexpr (std::is_void_v<Result>) {
    using Function = std::remove_reference_t<F>;
    detail::run_with_pool([](void* context) { (*static_cast<Function*>(context))(); },
                          const_cast<void*>(static_cast<const void*>(&f)));
  } else {
    Result result{};
    with_thread_pool([&] { result = f(); });
    return result;
  }
}

// Calls f(i) for every i in [0, count), spread over call_threads(). f must not throw. Nested calls run serially. What
// f(i) computes must not depend on which thread runs it: results are then the same for any number of threads.
template <typename F>
void parallel_for(int64_t count, F&& f) {
  if (count <= 0) return;
  if (count == 1) {
    f(static_cast<int64_t>(0));
    return;
  }
  detail::run_parallel(detail::make_stage(count, f), {0, nullptr, nullptr});
}

// parallel_for(first_count, f), then parallel_for(second_count, g), waking the threads once for both.
template <typename F, typename G>
void parallel_for_then(int64_t first_count, F&& f, int64_t second_count, G&& g) {
  detail::run_parallel(detail::make_stage(first_count, f), detail::make_stage(second_count, g));
}

}  // namespace soma
