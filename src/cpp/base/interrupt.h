// Stopping a long computation: between ops it calls a poll, which the bindings install (for Python's signal handlers).
// The core knows nothing of Python.
#pragma once

namespace soma {

// Thrown out of a computation that was asked to stop. Parameters are untouched; gradients may be half accumulated.
struct Interrupted {};

// `poll` returns true when the computation should stop. Called at most every 50 ms, on the thread that called the core.
void set_interrupt_poll(bool (*poll)());

// Throws Interrupted when the poll returns true. Inside a part of a parallel job it does nothing. Cheap enough for one
// call per block.
void check_interrupt();

// While one lives, nobody asks on this thread: for updates that must be whole.
class Uninterrupted {
 public:
  Uninterrupted();
  ~Uninterrupted();
  Uninterrupted(const Uninterrupted&) = delete;
  Uninterrupted& operator=(const Uninterrupted&) = delete;
};

}  // namespace soma
