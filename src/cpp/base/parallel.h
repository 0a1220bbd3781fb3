// Threads: their number, and the ways to use them. Only parallel.cpp knows OpenMP.
#pragma once

#include <cstdint>
#include <type_traits>

namespace soma {

// Threads that parallel_for uses: the number given to set_num_threads, else SOMA_NUM_THREADS, else the least of CPU
// affinity, cgroup CPU quota and cores. Throws std::invalid_argument when SOMA_NUM_THREADS is no positive integer. One
// thread in a child of a process that computed in parallel before: its pool does not survive fork().
int num_threads();
void set_num_threads(int count);

// Whether this thread runs a part of a parallel job, or waits for parts. Jobs nested there run serially.
bool inside_a_part();

// Marks a call into the core while it exists. Calls from several threads of the program at one time share the threads
// between them.
class CallScope {
 public:
  CallScope();
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;
};

// Threads for one call: num_threads() divided by the calls under way, at least 1; 1 inside a part of a parallel_for.
int call_threads();

// Threads of the largest parallel job since the last call of this function; 1 where none was cut. For tests.
int widest_job();

// The threads that were wanted, and the threads that there are from now on, if the system refused to start some since
// the last call of this function. Else zeros.
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

// Runs the first stage, and then the second.
void run_parallel(const Stage& first, const Stage& second);

struct Barrier;  // where the threads of a region wait for each other
void wait_for_all(Barrier& barrier, int64_t size);
}  // namespace detail

// Several threads inside one function, for work whose steps are too short to wake threads for each. Every thread runs
// the same calls in the same order and does its share of each. It waits where it needs the results of others.
struct ParallelRegion {
  int64_t rank, size;
  detail::Barrier* barrier;

  // Returns when every thread of the region has come here. All then see what each wrote before.
  void wait() const {
    if (size > 1) detail::wait_for_all(*barrier, size);
  }
  // Calls f(begin, end) for this thread's part of [0, count), cut at multiples of `grain`, unless it is empty.
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

// Calls f(region) on each of at most `most` threads, and no more than call_threads(). f must not throw. Its results
// must not depend on the region's size.
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

// Runs f on this thread while the others watch for work, so that parallel_for and parallel_for_then need not wake them.
// The first free thread takes the next part. So no job waits for a thread that lost its core to another program before
// it began. f may throw.
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

// Calls f(i) for every i in [0, count), spread over call_threads(). f must not throw. Nested calls run serially. f(i)
// must not depend on the thread that runs it, so that results are the same for any number of threads.
template <typename F>
void parallel_for(int64_t count, F&& f) {
  if (count <= 0) return;
  if (count == 1) {
    f(static_cast<int64_t>(0));
    return;
  }
  detail::run_parallel(detail::make_stage(count, f), {0, nullptr, nullptr});
}

// parallel_for(first_count, f), then parallel_for(second_count, g). Wakes the threads once for both.
template <typename F, typename G>
void parallel_for_then(int64_t first_count, F&& f, int64_t second_count, G&& g) {
  detail::run_parallel(detail::make_stage(first_count, f), detail::make_stage(second_count, g));
}

}  // namespace soma
