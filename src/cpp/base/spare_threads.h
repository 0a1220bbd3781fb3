// How many threads the system lets this process start. OpenMP ends the program where the system refuses one.
#pragma once

namespace soma {

// The number of threads, at most `wanted`, that can be started now. Starts them all at once and waits for their end.
int spare_threads(int wanted);

}  // namespace soma
