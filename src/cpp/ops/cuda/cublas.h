// cuBLASLt, opened where it is installed, for products that are large enough. Its types and numbers are declared here,
// since its headers come with half a gigabyte. See https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "ops/ops.h"

namespace soma::cuda {

// The functions that are used, and their version, such as 130002.
struct CublasLibrary {
  using Handle = void*;
  struct Algorithm {
    uint64_t data[8];
  };
  struct Choice {
    Algorithm algorithm;
    std::size_t workspace;
    int status;
    float waves;
    int reserved[4];
  };
  std::size_t version = 0;
  std::size_t (*get_version)() = nullptr;
  const char* (*status_text)(int status) = nullptr;
  int (*create)(Handle* library) = nullptr;
  int (*create_product)(Handle* product, int compute, int scale) = nullptr;
  int (*set_product)(Handle product, int attribute, const void* value, std::size_t bytes) = nullptr;
  int (*destroy_product)(Handle product) = nullptr;
  int (*create_layout)(Handle* layout, int type, uint64_t rows, uint64_t cols, int64_t ld) = nullptr;
  int (*destroy_layout)(Handle layout) = nullptr;
  int (*create_preference)(Handle* preference) = nullptr;
  int (*destroy_preference)(Handle preference) = nullptr;
  int (*set_preference)(Handle preference, int attribute, const void* value, std::size_t bytes) = nullptr;
  int (*choose)(Handle library, Handle product, Handle a, Handle b, Handle c, Handle d, Handle preference, int asked,
                Choice* choices, int* found) = nullptr;
  int (*multiply)(Handle library, Handle product, const void* alpha, const void* a, Handle of_a, const void* b,
                  Handle of_b, const void* beta, const void* c, Handle of_c, void* d, Handle of_d,
                  const Algorithm* algorithm, void* workspace, std::size_t bytes, cudaStream_t stream) = nullptr;
};

// Opened once. Null: own kernels make all products; `why` says why. SOMA_CUBLAS names a library, or "none". Throws
// where the one that it names cannot be used.
const CublasLibrary* cublas_library(std::string* why = nullptr);

// The products of one GPU.
class Cublas {
 public:
  static constexpr int64_t kWorkspaceFloats = int64_t{8} << 20;  // 32 MiB, as Hopper is said to need
  static constexpr std::size_t kMostPlans = 512;

  // Products that wait for their epilogue have `staged_floats` at a time, but at least a tile of rows.
  explicit Cublas(const CublasLibrary& library, int64_t staged_floats = int64_t{1} << 24);

  // Whether a product of so many multiply-adds is large enough. SOMA_CUBLAS_LEAST sets the limit.
  bool wants(int64_t multiply_adds) const { return multiply_adds >= least_; }
  int64_t staged_floats() const { return staged_floats_; }
  // c = a b, or c += a b, in floats. Operands are floats, or both pairs. No sum is split, so the bits of a product
  // depend on shape, layout, alignment, GPU and version alone. Returns false where the library has no algorithm.
  bool multiply(const Matrix& c, const ConstMatrix& a, const ConstMatrix& b, bool accumulate, float* workspace,
                cudaStream_t stream);

 private:
  struct Plan {
    explicit Plan(const CublasLibrary& of) : library(of) {}
    ~Plan();
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    const CublasLibrary& library;
    CublasLibrary::Handle product = nullptr, a = nullptr, b = nullptr, c = nullptr;
    CublasLibrary::Choice choice{};
    bool found = false;
  };
  using Key = std::array<int64_t, 10>;

  std::unique_ptr<Plan> make(const Key& key) const;
  void expect(int status, const char* function) const;

  const CublasLibrary& library_;
  const int64_t least_, staged_floats_;
  CublasLibrary::Handle handle_ = nullptr;
  std::mutex lock_;
  std::map<Key, std::unique_ptr<Plan>> plans_;  // kept, since shapes come again; all go when there are kMostPlans
};

}  // namespace soma::cuda
