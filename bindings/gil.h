// Calls into the core without the GIL. Python may end meanwhile: then a thread never takes the GIL back and stops
// for ever, as Python's own do since 3.14. Before, Python ends such a thread by unwinding it, which destructors turn
// into an abort of the program.
#pragma once

#include <pybind11/pybind11.h>

#include <type_traits>

#include "base/interrupt.h"
#include "base/parallel.h"

// Gives the GIL up for as long as it lives.
class GilRelease {
 public:
  GilRelease();
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

  void take_back();  // does not return where Python ends
  void give_up();

 private:
  const bool ends_python_;  // this thread does
  GilRelease* const outer_;
  PyThreadState* state_;
};

// Takes the GIL back for as long as it lives, on a thread inside a GilRelease; on others, which have it, does nothing.
// Where no lock is held: the thread may stop here.
class GilAgain {
 public:
  GilAgain();
  ~GilAgain();
  GilAgain(const GilAgain&) = delete;
  GilAgain& operator=(const GilAgain&) = delete;

 private:
  GilRelease* const release_;
};

// Logs that the system refused to start threads, where it just did.
void warn_of_refused_threads();

// Runs f without the GIL, as one call that shares the threads with the others under way. Where the poll stopped it,
// raises what the signal handler raised (KeyboardInterrupt, as a rule).
template <typename F>
auto without_gil(F&& f) {
  const auto run = [&f] {
    const GilRelease release;
    const soma::CallScope call;
    return f();
  };
  try {
    if constexpr (std::is_void_v<decltype(f())>) {
      run();
      warn_of_refused_threads();
    } else {
      auto result = run();
      warn_of_refused_threads();
      return result;
    }
  } catch (const soma::Interrupted&) {
    throw pybind11::error_already_set();
  }
}
