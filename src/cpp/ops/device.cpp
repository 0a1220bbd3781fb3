// The devices by their names.
#include "ops/device.h"

#include <charconv>

#include "base/check.h"
#include "ops/backend.h"

namespace soma {
namespace {

// The number of a GPU: N of "cuda:N", 0 of "cuda"; -1: `name` is another.
int64_t gpu_of(std::string_view name) {
  constexpr std::string_view kCuda = "cuda";
  if (name.substr(0, kCuda.size()) != kCuda) return -1;
  name.remove_prefix(kCuda.size());
  if (name.empty()) return 0;
  int64_t number = -1;
  const auto [end, error] = std::from_chars(name.data() + 1, name.data() + name.size(), number);
  return name[0] == ':' && error == std::errc() && end == name.data() + name.size() ? number : -1;
}

}  // namespace

#ifdef SOMA_STRICT_DEVICE
Device& strict_device();  // tests/cpp/strict_device.cpp
#endif

Device& find_device(std::string_view name) {
  if (const int64_t gpu = gpu_of(name); gpu >= 0) {
    check(backend() != nullptr, "device '", name, "' needs the CUDA library, which is not open");
    return backend()->device(gpu);
  }
  check(name == cpu_device().name(), "device must be 'cpu', 'cuda' or 'cuda:N', got '", name, "'");
#ifdef SOMA_STRICT_DEVICE
  return strict_device();
#else
  return cpu_device();
#endif
}

}  // namespace soma
