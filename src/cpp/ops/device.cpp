// The devices by their names.
#include "ops/device.h"

#include "base/check.h"

namespace soma {

#ifdef SOMA_STRICT_DEVICE
Device& strict_device();  // tests/cpp/strict_device.cpp
#endif

Device& find_device(std::string_view name) {
  check(name == cpu_device().name(), "device must be '", cpu_device().name(), "', got '", name, "'");
#ifdef SOMA_STRICT_DEVICE
  return strict_device();
#else
  return cpu_device();
#endif
}

}  // namespace soma
