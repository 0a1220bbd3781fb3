// Checks base/parallel.h without Python, for builds with OpenMP and without: each index once, barriers, nesting, pools,
// exceptions, interrupts, several callers, threads that end, a forked child. Prints what failed.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/interrupt.h"
#include "base/parallel.h"

namespace {

std::atomic<int> failures{0};

void expect(bool condition, const char* what, int threads) {
  if (condition) return;
  ++failures;
  std::printf("FAIL with %d threads: %s\n", threads, what);
}

// Two stages; the second reads what all of the first wrote.
bool each_once(int64_t count) {
  std::vector<int> first(static_cast<size_t>(count)), second(static_cast<size_t>(count));
  soma::parallel_for_then(
      count, [&](int64_t i) { first[static_cast<size_t>(i)] += 1; }, count,
      [&](int64_t i) { second[static_cast<size_t>(i)] += first[static_cast<size_t>(count - 1 - i)]; });
  for (int64_t i = 0; i < count; ++i) {
    if (first[static_cast<size_t>(i)] != 1 || second[static_cast<size_t>(i)] != 1) return false;
  }
  return true;
}

bool nested_runs_serially() {
  std::atomic<int> right{0};
  soma::parallel_for(8, [&](int64_t) {
    const std::thread::id self = std::this_thread::get_id();
    bool same = soma::num_threads() == 1 || (soma::inside_a_part() && soma::call_threads() == 1);
    soma::parallel_for(8, [&](int64_t) { same = same && std::this_thread::get_id() == self; });
    if (same) ++right;
  });
  return right == 8 && !soma::inside_a_part();
}

// Every thread writes a number in each of many rounds, waits, and reads those of all.
bool region_meets() {
  std::atomic<bool> right{true};
  std::vector<int64_t> written(64);
  soma::parallel_region(64, [&](const soma::ParallelRegion& region) {
    for (int64_t round = 1; round <= 50; ++round) {
      written[static_cast<size_t>(region.rank)] = round;
      region.wait();
      for (int64_t r = 0; r < region.size; ++r) {
        if (written[static_cast<size_t>(r)] != round) right = false;
      }
      region.wait();
    }
  });
  return right;
}

bool pool_runs_jobs() {
  return soma::with_thread_pool([] {
    bool right = !soma::inside_a_part();
    for (int64_t count = 0; count < 40; ++count) right = right && each_once(count);
    return right && nested_runs_serially();
  });
}

bool pool_throws() {
  try {
    soma::with_thread_pool([] { throw std::runtime_error("from the body"); });
  } catch (const std::runtime_error&) {
    return !soma::inside_a_part() && each_once(9);
  }
  return false;
}

// Ctrl-C is asked for by the caller between jobs, and by no part of a job.
bool interrupt_leaves_a_pool() {
  std::atomic<bool> asked_in_a_part{false};
  bool left = false;
  soma::set_interrupt_poll([] { return true; });
  try {
    soma::with_thread_pool([&] {
      while (true) {
        soma::parallel_for(9, [&](int64_t) {
          if (!soma::inside_a_part()) return;  // one thread
          try {
            soma::check_interrupt();
          } catch (const soma::Interrupted&) {
            asked_in_a_part = true;
          }
        });
        soma::check_interrupt();
      }
    });
  } catch (const soma::Interrupted&) {
    left = true;
  }
  soma::set_interrupt_poll(nullptr);
  return left && !asked_in_a_part && !soma::inside_a_part() && each_once(9);
}

// A part must not throw. Where one does, on the caller's thread (0) or another (63), the program ends.
bool exception_of_a_part_ends_the_program(int64_t index) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    close(STDERR_FILENO);
    soma::set_num_threads(3);
    try {
      soma::parallel_for(64, [&](int64_t i) {
        if (i == index) throw std::runtime_error("from a part");
      });
    } catch (const std::runtime_error&) {
    }
    _exit(1);
  }
  int status = -1;
  return waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

// Threads of the process, where the system tells.
std::ptrdiff_t tasks() {
#ifdef __linux__
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"), {});
#else
  return 0;
#endif
}

// What a thread had for its jobs ends with it, and the thread waits for nothing.
void end_with_their_caller() {
  const std::ptrdiff_t before = tasks();
  std::thread([] { each_once(20); }).join();
  while (tasks() > before) std::this_thread::yield();
}

bool callers_share() {
  std::vector<std::thread> callers;
  std::atomic<int> right{0};
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      const soma::CallScope call;
      bool all = true;
      for (int64_t i = 1; i < 30; ++i)
        all = all && each_once(i) && soma::with_thread_pool([&] { return each_once(i); });
      if (all) ++right;
    });
  }
  for (std::thread& caller : callers) caller.join();
  return right == 4;
}

// A child has one thread, says so, computes, and ends as a program does.
bool child_has_one_thread() {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    bool refused = false;
    try {
      soma::set_num_threads(2);
    } catch (const std::runtime_error&) {
      refused = true;
    }
    std::exit(refused && soma::num_threads() == 1 && each_once(20) && pool_runs_jobs() ? 0 : 1);
  }
  int status = -1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int main() {
  for (const int64_t index : {0, 63}) {
    expect(exception_of_a_part_ends_the_program(index), "an exception of a part ends the program", 3);
  }
  for (const int threads : {1, 2, 3, 5, 2, 7}) {
    soma::set_num_threads(threads);
    soma::widest_job();
    expect(each_once(1000), "each index runs once", threads);
    expect(soma::widest_job() == threads, "so many threads take part", threads);
    for (int64_t count = 0; count < 12; ++count) expect(each_once(count), "each of a few indices runs once", threads);
    expect(nested_runs_serially(), "a nested job runs serially", threads);
    expect(region_meets(), "threads of a region wait for each other", threads);
    expect(pool_runs_jobs(), "jobs run on a pool", threads);
    expect(pool_throws(), "an exception leaves a pool", threads);
    expect(interrupt_leaves_a_pool(), "an interrupt leaves a pool", threads);
    expect(callers_share(), "several callers compute at once", threads);
    end_with_their_caller();
  }
  expect(child_has_one_thread(), "a forked child has one thread", 7);
  expect(each_once(100), "the parent goes on", 7);
  std::printf(failures == 0 ? "threads checked\n" : "%d failed\n", failures.load());
  return failures == 0 ? 0 : 1;
}
