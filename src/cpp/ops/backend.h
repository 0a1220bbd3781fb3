// What a library of devices gives to the core, which opens it at run time. The core knows nothing of CUDA.
#pragma once

#include <string>
#include <vector>

#include "ops/device.h"

namespace soma {

// A GPU, as its driver describes it.
struct Gpu {
  std::string name;
  int64_t bytes;       // of memory
  int64_t capability;  // 10 major + minor, such as 90
};

class Backend {
 public:
  virtual ~Backend() = default;

  // The newest CUDA that the driver knows, such as 13000; 0 without a driver.
  virtual int64_t driver() = 0;
  // What makes large products: a library that is installed, or why there is none.
  virtual std::string products() = 0;
  // In the order of their numbers. Throws why there is none.
  virtual std::vector<Gpu> gpus() = 0;
  // Lives as long as the process. Throws why GPU `number` cannot be used.
  virtual Device& device(int64_t number) = 0;
};

// The only function that a library exports, soma_open_backend. `core` names the version and the sources of the core.
// Returns why the library cannot serve this core, or null.
using OpenBackend = const char*(const char* core, Backend** backend);

// Opens a library for good. A second call has no effect. Throws why it cannot be used.
void open_backend(const std::string& path);
// Null: no library was opened.
Backend* backend();

}  // namespace soma
