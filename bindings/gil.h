// Calls into the core without the GIL. Where Python ends meanwhile, the thread never takes the GIL back and stops for
// ever. Python 3.14 stops its own threads in the same way. Earlier versions unwind the thread, and destructors then
// abort the program.
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
  const bool ends_python_;  // whether this thread ends Python
  GilRelease* const outer_;
  PyThreadState* state_;
};

// On a thread inside a GilRelease, takes the GIL back for as long as it lives. Other threads have the GIL: no effect.
// Hold no lock here, because the thread may stop.
class GilAgain {
 public:
  GilAgain();
  ~GilAgain();
  GilAgain(const GilAgain&) = delete;
  GilAgain& operator=(const GilAgain&) = delete;

 private:
  GilRelease* const release_;
};

// Logs a warning where the system has just refused to start threads.
void warn_of_refused_threads();

// Runs f without the GIL. All calls under way share the threads. Where the poll stopped f, raises the exception of the
// signal handler, usually KeyboardInterrupt.
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
