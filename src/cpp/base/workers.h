// Threads of the standard library, for builds without OpenMP.
#pragma once

namespace soma {

// Calls task(context, rank, size) on several threads at once, rank 0 on this one. Returns when all are done. size is
// `threads`, or less where the system refuses a thread. task must not throw. A thread keeps its helpers until it ends;
// then they end too, and nobody waits for that.
void run_workers(int threads, void (*task)(void* context, int rank, int size), void* context);

// Whether this thread runs a task of run_workers.
bool inside_workers();

}  // namespace soma
