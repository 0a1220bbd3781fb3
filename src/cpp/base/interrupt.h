// A long computation asks here, between ops, whether it should stop. The bindings install what is asked (Python's
// signal handlers); the core knows nothing of Python.
#pragma once

namespace soma {

// Thrown out of a computation that was asked to stop. Parameters are untouched; gradients may be half accumulated.
struct Interrupted {};

// `poll` returns true when the computation should stop. Called at most every 50 ms, on the thread that called the core.
void set_interrupt_poll(bool (*poll)());

// Throws Interrupted when the poll says so; inside a part of a parallel job nobody is asked. Cheap: call it once per
// block.
void check_interrupt();

}  // namespace soma
