// Opens the library of a backend.
#include "ops/backend.h"

#include <atomic>
#include <stdexcept>

#ifdef __unix__
#include <dlfcn.h>
#endif

namespace soma {
namespace {

std::atomic<Backend*> opened{nullptr};

}  // namespace

void open_backend(const std::string& path) {
  if (opened.load() != nullptr) return;
#ifdef __unix__
  // Its symbols stay its own, and it is never closed: a driver has threads of its own.
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  auto* const open = reinterpret_cast<OpenBackend*>(dlsym(library, "soma_open_backend"));
  if (open == nullptr) throw std::runtime_error(path + " is no library of soma_native");
  Backend* found = nullptr;
  if (const char* const reason = open(SOMA_INTERFACE, &found)) throw std::runtime_error(reason);
  opened.store(found);
#else
  throw std::runtime_error(path + ": there is no CUDA library for this system");
#endif
}

Backend* backend() { return opened.load(); }

}  // namespace soma
