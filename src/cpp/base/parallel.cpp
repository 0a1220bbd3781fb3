// Thread count policy, and the threads of OpenMP or of workers.h behind parallel_for. The only file that says omp.
#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/fork.h"
#include "base/spare_threads.h"
#include "base/wait_until.h"
#include "base/workers.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif
// macOS has fork(), but there OpenMP's own pool survives it.
#if defined(__linux__) || (defined(__APPLE__) && !defined(_OPENMP))
#include <pthread.h>
#define SOMA_POOL_DIES_IN_CHILD 1
#endif

namespace soma {
namespace {

constexpr int kMaxThreads = 1024;
std::atomic<int> configured_threads{0};  // 0: not decided yet
std::atomic<int> calls{0};               // calls into the core that run now
std::atomic<int> widest{1};              // threads of the largest job since widest_job() was last called
std::atomic<int> pool_made{-1};          // forks() when a parallel region first ran; -1: none has
thread_local int own_calls = 0;          // calls of this thread

int affinity_threads() {
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// The CPU quota of one cgroup folder in whole CPUs, rounded up; 0 where there is none.
int quota_of(const std::string& folder) {
  std::ifstream v2(folder + "/cpu.max");
  std::string quota_text;
  double quota = 0, period = 0;
  if (v2 >> quota_text >> period) {
    quota = quota_text == "max" ? 0 : std::atof(quota_text.c_str());
  } else {
    std::ifstream v1_quota(folder + "/cpu.cfs_quota_us"), v1_period(folder + "/cpu.cfs_period_us");
    if (!(v1_quota >> quota && v1_period >> period)) return 0;
  }
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(quota / period + 0.999)) : 0;
}

// The smallest CPU quota between this process's cgroup and the root (v2, and the cpu controller of v1).
int cgroup_threads() {
  int least = kMaxThreads;
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v1_cpu = ("," + controllers + ",").find(",cpu,") != std::string::npos;
    if (!controllers.empty() && !v1_cpu) continue;
    const std::string base = v1_cpu ? "/sys/fs/cgroup/cpu" : "/sys/fs/cgroup";
    for (std::string path = line.substr(second + 1);;) {
      const int quota = quota_of(base + (path == "/" ? "" : path));
      if (quota > 0) least = std::min(least, quota);
      if (path.empty() || path == "/") break;
      const auto slash = path.rfind('/');
      path = slash == std::string::npos ? "" : path.substr(0, slash);
    }
  }
  return least;
}

int default_threads() {
  if (const char* text = std::getenv("SOMA_NUM_THREADS"); text != nullptr && *text != '\0') {
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    check(*end == '\0' && value >= 1 && value <= kMaxThreads, "SOMA_NUM_THREADS must be an integer from 1 to ",
          kMaxThreads, ", got '", text, "'");
    return static_cast<int>(value);
  }
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  return std::min({affinity_threads(), cgroup_threads(), cores, kMaxThreads});
}

// Whether this process was forked from one whose pool existed.
bool forked_from_pool() {
#ifdef SOMA_POOL_DIES_IN_CHILD
  const int made = pool_made.load(std::memory_order_relaxed);
  return made != -1 && made != forks();
#else
  return false;
#endif
}

#ifdef SOMA_POOL_DIES_IN_CHILD
// A child has none of the other threads, so their calls are over.
void after_fork_in_child() { calls.store(own_calls, std::memory_order_relaxed); }
[[maybe_unused]] const int installed = pthread_atfork(nullptr, nullptr, after_fork_in_child);
#endif

#ifdef _OPENMP
bool in_region() { return omp_in_parallel(); }

// Calls f(rank, size) on each of `threads` threads.
template <typename F>
void on_threads(int threads, F&& f) {
#pragma omp parallel num_threads(threads)
  f(omp_get_thread_num(), omp_get_num_threads());
}
constexpr bool kHelpersStay = false;  // OpenMP ends those that a smaller region does not need
#else
bool in_region() { return inside_workers(); }

template <typename F>
void on_threads(int threads, F&& f) {
  run_workers(threads, [](void* context, int rank, int size) { (*static_cast<F*>(context))(rank, size); }, &f);
}
constexpr bool kHelpersStay = true;
#endif

std::atomic<int> refused{0};  // threads that a region wanted and did not get; 0: none
thread_local int pooled = 1;  // threads that this thread's pool has now
thread_local int proven = 1;  // the most that were seen to start
thread_local std::chrono::steady_clock::time_point proven_at;

// The number of threads, at most `threads`, that this thread's pool can have. Where the system refuses some, the limit
// stays lower from now on.
int startable(int threads) {
  const auto now = threads > pooled ? std::chrono::steady_clock::now() : proven_at;
  // Regions of changing sizes grow the pool again and again. A number that once started is not tried again.
  if (threads > pooled && (threads > proven || now - proven_at > std::chrono::seconds(1))) {
    const int granted = pooled + spare_threads(threads - pooled);
    if (granted < threads) {
      refused.store(num_threads(), std::memory_order_relaxed);
      configured_threads.store(granted * std::max(1, calls.load(std::memory_order_relaxed)), std::memory_order_relaxed);
    }
    threads = proven = granted;
    proven_at = now;
  }
  pooled = kHelpersStay ? std::max(pooled, threads) : threads;
  return threads;
}

void note_pool() {
  if (pool_made.load(std::memory_order_relaxed) == -1) pool_made.store(forks(), std::memory_order_relaxed);
}

// Notes how many threads a region has; its first thread does.
void note_threads(int rank, int threads) {
  if (rank != 0) return;
  for (int most = widest.load(std::memory_order_relaxed); threads > most;) {
    if (widest.compare_exchange_weak(most, threads, std::memory_order_relaxed)) return;
  }
}
}  // namespace

int num_threads() {
  if (forked_from_pool()) return 1;
  int count = configured_threads.load(std::memory_order_relaxed);
  if (count == 0) {
    count = default_threads();
    configured_threads.store(count, std::memory_order_relaxed);
  }
  return count;
}

void set_num_threads(int count) {
  check(count >= 1 && count <= kMaxThreads, "number of threads must be from 1 to ", kMaxThreads, ", got ", count);
  if (count > 1 && forked_from_pool()) {
    throw std::runtime_error(
        "this process was forked from one that had already computed in parallel, so it has one thread; start it with "
        "multiprocessing's 'spawn' method to use more");
  }
  configured_threads.store(count);
}

CallScope::CallScope() {
  calls.fetch_add(1, std::memory_order_relaxed);
  ++own_calls;
}

CallScope::~CallScope() {
  calls.fetch_sub(1, std::memory_order_relaxed);
  --own_calls;
}

namespace {

// Threads that serve one caller. A job is a stage, cut into one group for each thread, and each group into pieces. A
// slot holds the job's number and the pieces left of a group. To take a piece is to count them down, so a late thread
// cannot take a piece of another job.
class ThreadPool {
 public:
  explicit ThreadPool(int64_t threads) : slots_(static_cast<size_t>(threads)) {}

  // Runs every index of the stage on the threads that are free. Returns when all are done.
  void run(const detail::Stage& stage) {
    if (stage.count == 0) return;
    const int64_t groups = std::min<int64_t>(stage.count, static_cast<int64_t>(slots_.size()));
    const uint64_t job = job_.load(std::memory_order_relaxed) + 1;
    stage_.store(&stage, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    int64_t pieces = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t of_group = std::min(kPieces, stage.count * (g + 1) / groups - stage.count * g / groups);
      slots_[static_cast<size_t>(g)].state.store(job * kJob + static_cast<uint64_t>(of_group),
                                                 std::memory_order_relaxed);
      pieces += of_group;
    }
    groups_.store(groups, std::memory_order_relaxed);
    job_.store(job, std::memory_order_release);
    take(job, 0);
    wait_until([&] { return done_.load(std::memory_order_acquire) == pieces; });
  }

  // The loop of the other threads until the caller is done.
  void serve(int64_t rank) {
    uint64_t last = 0;
    while (true) {
      wait_until(
          [&] { return closed_.load(std::memory_order_acquire) || job_.load(std::memory_order_acquire) != last; });
      if (closed_.load(std::memory_order_acquire)) return;
      last = job_.load(std::memory_order_acquire);
      take(last, rank);
    }
  }

  void close() { closed_.store(true, std::memory_order_release); }

 private:
  static constexpr int64_t kPieces = 8;  // of a group, at most
  static constexpr uint64_t kJob = 16;   // a slot's state: its job times this, plus the pieces left

  struct alignas(64) Slot {
    std::atomic<uint64_t> state{0};
  };

  // Takes pieces of a job. This thread's own group comes first, because it wrote that group's input in earlier jobs.
  void take(uint64_t job, int64_t rank) {
    const int64_t groups = groups_.load(std::memory_order_relaxed);
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t g = (rank + i) % groups;
      std::atomic<uint64_t>& state = slots_[static_cast<size_t>(g)].state;
      for (uint64_t left = state.load(std::memory_order_relaxed); left / kJob == job && left % kJob != 0;) {
        if (!state.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
        work(*stage_.load(std::memory_order_relaxed), g, groups, static_cast<int64_t>(left % kJob));
        left = left - 1;
      }
    }
  }

  // The piece of group g that is next when `left` are left.
  void work(const detail::Stage& stage, int64_t g, int64_t groups, int64_t left) {
    const int64_t first = stage.count * g / groups, count = stage.count * (g + 1) / groups - first;
    const int64_t pieces = std::min(kPieces, count), piece = pieces - left;
    const int64_t end = first + count * (piece + 1) / pieces;
    for (int64_t index = first + count * piece / pieces; index < end; ++index) stage.task(stage.context, index);
    done_.fetch_add(1, std::memory_order_release);
  }

  std::vector<Slot> slots_;
  alignas(64) std::atomic<uint64_t> job_{0};
  std::atomic<bool> closed_{false};
  std::atomic<int64_t> groups_{0};
  std::atomic<const detail::Stage*> stage_{nullptr};
  alignas(64) std::atomic<int64_t> done_{0};
};

thread_local ThreadPool* own_pool = nullptr;  // of this thread's call; none while it runs a part of a job

// Threads of a new parallel region, at most `most`; 1 for no region.
int region_threads(int64_t most) {
  const int threads = static_cast<int>(std::min<int64_t>(call_threads(), most));
  const int granted = threads > 1 && !in_region() ? startable(threads) : 1;
  if (granted > 1) note_pool();
  return granted;
}

}  // namespace

bool inside_a_part() { return own_pool == nullptr && in_region(); }

int call_threads() {
  if (inside_a_part()) return 1;
  return std::max(1, num_threads() / std::max(1, calls.load(std::memory_order_relaxed)));
}

RefusedThreads take_refused_threads() {
  if (refused.load(std::memory_order_relaxed) != 0) {
    if (const int wanted = refused.exchange(0)) return {wanted, num_threads()};
  }
  return {};
}

int widest_job() { return widest.exchange(1, std::memory_order_relaxed); }

namespace detail {

void run_with_pool(void (*body)(void* context), void* context) {
  const int threads = region_threads(kMaxThreads);
  if (threads == 1) return body(context);
  ThreadPool pool(threads);
  std::exception_ptr error;
  on_threads(threads, [&](int rank, int size) {
    if (rank != 0) return pool.serve(rank);
    note_threads(rank, size);
    own_pool = &pool;
    try {
      body(context);
    } catch (...) {
      error = std::current_exception();
    }
    own_pool = nullptr;
    pool.close();
  });
  if (error) std::rethrow_exception(error);
}

// A barrier of rounds. The last thread to arrive resets the counter and opens the next round. The two fields are on
// cache lines of their own: waiting threads read `round` alone, which changes once.
struct Barrier {
  alignas(64) std::atomic<int64_t> arrived{0};
  alignas(64) std::atomic<uint32_t> round{0};
};

void wait_for_all(Barrier& barrier, int64_t size) {
  const uint32_t round = barrier.round.load(std::memory_order_relaxed);
  if (barrier.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    barrier.arrived.store(0, std::memory_order_relaxed);
    barrier.round.store(round + 1, std::memory_order_release);
    return;
  }
  wait_until([&] { return barrier.round.load(std::memory_order_acquire) != round; });
}

void run_parallel(const Stage& first, const Stage& second) {
  if (ThreadPool* const pool = std::exchange(own_pool, nullptr)) {
    pool->run(first);
    pool->run(second);
    own_pool = pool;
    return;
  }
  Barrier barrier;
  const auto share = [&](int64_t rank, int64_t size) {
    for (const Stage* stage : {&first, &second}) {
      if (stage == &second && second.count > 0 && size > 1) wait_for_all(barrier, size);
      const int64_t end = stage->count * (rank + 1) / size;
      for (int64_t i = stage->count * rank / size; i < end; ++i) stage->task(stage->context, i);
    }
  };
  const int threads = region_threads(std::max(first.count, second.count));
  if (threads == 1) return share(0, 1);
  on_threads(threads, [&](int rank, int size) {
    note_threads(rank, size);
    share(rank, size);
  });
}

void run_region(int64_t most, void (*task)(void* context, const ParallelRegion& region), void* context) {
  const int threads = region_threads(most);
  if (threads == 1) return task(context, {0, 1, nullptr});
  Barrier barrier;
  on_threads(threads, [&](int rank, int size) {
    note_threads(rank, size);
    task(context, {rank, size, &barrier});
  });
}

}  // namespace detail
}  // namespace soma
