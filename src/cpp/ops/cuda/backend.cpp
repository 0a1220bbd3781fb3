// The GPUs of this machine, for the core that opened this library.
#include "ops/backend.h"

#include <array>
#include <cstring>
#include <memory>
#include <mutex>

#include "ops/cuda/check.h"
#include "ops/cuda/device.h"

namespace soma::cuda {
namespace {

constexpr int64_t kOldest = 80;  // of compute capability: bfloat16 and copies to shared memory

std::string version_of(int64_t cuda) { return std::to_string(cuda / 1000) + "." + std::to_string(cuda % 1000 / 10); }

class CudaBackend final : public Backend {
 public:
  int64_t driver() override {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
  }

  std::string products() override {
    std::string why;
    const CublasLibrary* const library = cublas_library(&why);
    if (library == nullptr) return "own kernels alone: " + why;
    const std::size_t version = library->version;
    return "cuBLASLt " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
           std::to_string(version % 100);
  }

  std::vector<Gpu> gpus() override {
    expect_no_fork();
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    // What was only looked for, and is not there, was not used.
    if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) forget_use();
    if (error == cudaErrorInsufficientDriver) {
      int here = 0;
      check(cudaRuntimeGetVersion(&here));
      const std::string needed = "CUDA " + version_of(here / 1000 * 1000) + " (driver 580 or newer)";
      if (driver() == 0) throw std::runtime_error("no NVIDIA driver is installed: one for " + needed + " is needed");
      throw std::runtime_error("the NVIDIA driver is for CUDA " + version_of(driver()) + ": one for " + needed +
                               " is needed");
    }
    if (error == cudaErrorNoDevice) {
      count = 0;
    } else if (error != cudaSuccess) {  // of the machine: another start of the program does not help
      throw std::runtime_error(std::string("CUDA cannot be used here: ") + cudaGetErrorString(error));
    }
    if (count == 0) throw std::runtime_error("there is no GPU that CUDA may use (CUDA_VISIBLE_DEVICES can hide them)");
    std::vector<Gpu> found;
    for (int i = 0; i < count; ++i) {
      cudaDeviceProp properties{};
      check(cudaGetDeviceProperties(&properties, i));
      found.push_back(
          {properties.name, static_cast<int64_t>(properties.totalGlobalMem), 10 * properties.major + properties.minor});
    }
    return found;
  }

  Device& device(int64_t number) override {
    expect_no_fork();  // first: in a child, the lock may stay locked
    const std::lock_guard<std::mutex> guard(lock_);
    const auto at = static_cast<std::size_t>(number);
    if (at < devices_.size() && devices_[at] != nullptr) return *devices_[at];
    const std::vector<Gpu> all = gpus();
    const auto count = static_cast<int64_t>(all.size());
    if (number >= count) {
      throw std::runtime_error("there is no GPU number " + std::to_string(number) + ": " +
                               (count == 1 ? "the only one is 0" : "they go from 0 to " + std::to_string(count - 1)));
    }
    if (all[at].capability < kOldest) {
      throw std::runtime_error("GPU " + std::to_string(number) + " (" + all[at].name + ") has compute capability " +
                               std::to_string(all[at].capability / 10) + "." + std::to_string(all[at].capability % 10) +
                               ": at least 8.0 is needed");
    }
    devices_.resize(all.size());
    devices_[at] = std::make_unique<CudaDevice>(static_cast<int>(number));
    return *devices_[at];
  }

 private:
  std::mutex lock_;
  std::vector<std::unique_ptr<CudaDevice>> devices_;
};

}  // namespace
}  // namespace soma::cuda

extern "C" __attribute__((visibility("default"))) const char* soma_open_backend(const char* core,
                                                                                soma::Backend** backend) {
  static const std::string mine = SOMA_INTERFACE;
  static std::string reason;
  if (mine != core) {
    reason = "it is of soma_native " + mine + ", and this is soma_native " + core;
    return reason.c_str();
  }
  static auto* const one = new soma::cuda::CudaBackend;  // never destroyed: models may outlive static objects
  *backend = one;
  return nullptr;
}
