// How many threads the system lets this process start: OpenMP ends the program where one is refused.
#pragma once

namespace soma {

// Of `wanted` more threads, how many can be started now. Starts them, all at once, and waits until they are gone.
int spare_threads(int wanted);

}  // namespace soma
