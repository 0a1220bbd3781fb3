// Giving the GIL up and taking it back, in a process whose Python may have ended.
#include "gil.h"

#include <chrono>
#include <thread>
#include <utility>

namespace {

thread_local GilRelease* innermost = nullptr;  // null: this thread has the GIL, or Python does not know it

bool python_ends() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

[[noreturn]] void stop_for_ever() {
  while (true) std::this_thread::sleep_for(std::chrono::hours(24));
}

}  // namespace

GilRelease::GilRelease()
    : ends_python_(python_ends()), outer_(std::exchange(innermost, this)), state_(PyEval_SaveThread()) {}

GilRelease::~GilRelease() {
  take_back();
  innermost = outer_;
}

void GilRelease::take_back() {
  if (!ends_python_ && python_ends()) stop_for_ever();
  try {
    PyEval_RestoreThread(state_);
  } catch (...) {  // Python ended while this thread waited, and unwinds the thread: it must not leave this handler
    stop_for_ever();
  }
}

void GilRelease::give_up() { state_ = PyEval_SaveThread(); }

GilAgain::GilAgain() : release_(innermost) {
  if (release_ == nullptr) return;
  release_->take_back();
  innermost = nullptr;
}

GilAgain::~GilAgain() {
  if (release_ == nullptr) return;
  innermost = release_;
  release_->give_up();
}

void warn_of_refused_threads() {
  const auto [wanted, granted] = soma::take_refused_threads();
  if (wanted == 0 || python_ends()) return;
  try {
    pybind11::module_::import("logging")
        .attr("getLogger")("soma_native")
        .attr("warning")(
            "the system refused to start %d threads: computing with %d from now on. Raise the limit of processes "
            "(`ulimit -u`, or the container's), then call set_num_threads(%d)",
            wanted, granted, wanted);
  } catch (pybind11::error_already_set& error) {
    error.discard_as_unraisable("soma_native");
  }
}
