// cuBLASLt stores matrices by columns. Rows of C are columns of C^T = B^T A^T, so the operands change places.
#include "ops/cuda/cublas.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string_view>

#include "ops/cuda/check.h"
#include "ops/cuda/recording.h"

namespace soma::cuda {
namespace {

constexpr char kName[] = "libcublasLt.so.13";
constexpr std::size_t kMajor = 13;
// A guess until a GPU was measured: below, launching and rounding cost as much as the product.
constexpr int64_t kLeast = int64_t{1} << 28;

// Of cublasLt.h.
constexpr int kFloat32 = 0, kBfloat16 = 14;            // cudaDataType
constexpr int kSumsInFloat32 = 68, kWithoutTf32 = 69;  // cublasComputeType_t; 69: whatever the environment says
constexpr int kTransposeA = 3, kTransposeB = 4, kTranspose = 1;  // cublasLtMatmulDescAttributes_t, cublasOperation_t
constexpr int kMostWorkspace = 1, kReductions = 3, kAlignA = 5;  // cublasLtMatmulPreferenceAttributes_t; b, c, d follow
constexpr uint32_t kNoReduction = 0;                             // cublasLtReductionScheme_t
constexpr int kNoMemory = 3, kNotSupported = 15;                 // cublasStatus_t

template <typename F>
void find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  if (*function == nullptr) throw std::runtime_error(std::string("it lacks ") + name);
}

// Throws why it cannot be used.
CublasLibrary open(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  CublasLibrary f;
  find(library, "cublasLtGetVersion", &f.get_version);
  f.version = f.get_version();
  if (f.version / 10000 != kMajor) {
    throw std::runtime_error("it is of version " + std::to_string(f.version / 10000) + ": " + std::to_string(kMajor) +
                             " is needed");
  }
  find(library, "cublasLtGetStatusString", &f.status_text);
  find(library, "cublasLtCreate", &f.create);
  find(library, "cublasLtMatmulDescCreate", &f.create_product);
  find(library, "cublasLtMatmulDescSetAttribute", &f.set_product);
  find(library, "cublasLtMatmulDescDestroy", &f.destroy_product);
  find(library, "cublasLtMatrixLayoutCreate", &f.create_layout);
  find(library, "cublasLtMatrixLayoutDestroy", &f.destroy_layout);
  find(library, "cublasLtMatmulPreferenceCreate", &f.create_preference);
  find(library, "cublasLtMatmulPreferenceDestroy", &f.destroy_preference);
  find(library, "cublasLtMatmulPreferenceSetAttribute", &f.set_preference);
  find(library, "cublasLtMatmulAlgoGetHeuristic", &f.choose);
  find(library, "cublasLtMatmul", &f.multiply);
  return f;
}

struct Opened {
  CublasLibrary library;
  std::string why;     // there is none
  bool named = false;  // by SOMA_CUBLAS, and cannot be used

  Opened() {
    const char* const named_path = std::getenv("SOMA_CUBLAS");
    if (named_path != nullptr && std::string_view(named_path) == "none") {
      why = "SOMA_CUBLAS is none";
      return;
    }
    const char* const path = named_path != nullptr ? named_path : kName;
    try {
      library = open(path);
    } catch (const std::runtime_error& error) {
      named = named_path != nullptr;
      why = std::string(path) + " cannot be used: " + error.what();
    }
  }
};

int64_t least_of_environment() {
  const char* const text = std::getenv("SOMA_CUBLAS_LEAST");
  if (text == nullptr) return kLeast;
  char* end = nullptr;
  const int64_t least = std::strtoll(text, &end, 10);
  if (end == text || *end != '\0' || least < 0) {
    throw std::runtime_error("SOMA_CUBLAS_LEAST must be an integer of 0 or more, got '" + std::string(text) + "'");
  }
  return least;
}

// Bytes, at most 256, that the address is a multiple of.
int64_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<int64_t>(address & (~address + 1));
}

int64_t in_numbers(const ConstMatrix& m) { return m.pairs ? 2 * m.ld : m.ld; }

}  // namespace

const CublasLibrary* cublas_library(std::string* why) {
  static const Opened* const opened = new Opened;
  if (opened->named) throw std::runtime_error("SOMA_CUBLAS: " + opened->why);
  if (why != nullptr) *why = opened->why;
  return opened->why.empty() ? &opened->library : nullptr;
}

Cublas::Cublas(const CublasLibrary& library, int64_t staged_floats)
    : library_(library), least_(least_of_environment()), staged_floats_(staged_floats) {
  expect(library_.create(&handle_), "cublasLtCreate");
}

void Cublas::expect(int status, const char* function) const {
  if (status == 0) return;
  if (status == kNoMemory) {
    throw OutOfMemory("out of memory on the GPU: " + std::string(function) + " needs more than is free; " +
                      "SOMA_CUBLAS=none does without cuBLASLt");
  }
  fail(std::string(function) + ": " + library_.status_text(status) + " (" + std::to_string(status) +
       "; SOMA_CUBLAS=none does without cuBLASLt)");
}

Cublas::Plan::~Plan() {
  if (product != nullptr) library.destroy_product(product);
  for (const CublasLibrary::Handle layout : {a, b, c}) {
    if (layout != nullptr) library.destroy_layout(layout);
  }
}

std::unique_ptr<Cublas::Plan> Cublas::make(const Key& key) const {
  const auto [m, n, k, ld_a, ld_b, ld_c, form, align_a, align_b, align_c] = key;
  const bool pairs = (form & 1) != 0, transposed_a = (form & 2) != 0, transposed_b = (form & 4) != 0;
  const int type = pairs ? kBfloat16 : kFloat32;
  auto made = std::make_unique<Plan>(library_);
  Plan& plan = *made;
  expect(library_.create_product(&plan.product, pairs ? kSumsInFloat32 : kWithoutTf32, kFloat32),
         "cublasLtMatmulDescCreate");
  const auto transpose = [&](bool transposed, int attribute) {
    if (!transposed) return;
    expect(library_.set_product(plan.product, attribute, &kTranspose, sizeof kTranspose),
           "cublasLtMatmulDescSetAttribute");
  };
  transpose(transposed_b, kTransposeA);
  transpose(transposed_a, kTransposeB);
  const auto layout = [&](CublasLibrary::Handle* to, int of, int64_t rows, int64_t cols, int64_t ld) {
    expect(library_.create_layout(to, of, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), ld),
           "cublasLtMatrixLayoutCreate");
  };
  transposed_b ? layout(&plan.a, type, k, n, ld_b) : layout(&plan.a, type, n, k, ld_b);
  transposed_a ? layout(&plan.b, type, m, k, ld_a) : layout(&plan.b, type, k, m, ld_a);
  layout(&plan.c, kFloat32, n, m, ld_c);

  CublasLibrary::Handle preference = nullptr;
  expect(library_.create_preference(&preference), "cublasLtMatmulPreferenceCreate");
  const auto prefer = [&](int attribute, auto value) {
    expect(library_.set_preference(preference, attribute, &value, sizeof value),
           "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(kMostWorkspace, static_cast<uint64_t>(kWorkspaceFloats) * sizeof(float));
  prefer(kReductions, kNoReduction);
  int attribute = kAlignA;
  for (const int64_t bytes : {align_b, align_a, align_c, align_c}) prefer(attribute++, static_cast<uint32_t>(bytes));
  int found = 0;
  const int status =
      library_.choose(handle_, plan.product, plan.a, plan.b, plan.c, plan.c, preference, 1, &plan.choice, &found);
  library_.destroy_preference(preference);
  if (status != kNotSupported) expect(status, "cublasLtMatmulAlgoGetHeuristic");
  plan.found = status == 0 && found > 0 && plan.choice.status == 0;
  return made;
}

bool Cublas::multiply(const Matrix& c, const ConstMatrix& a, const ConstMatrix& b, bool accumulate, float* workspace,
                      cudaStream_t stream) {
  const Key key{c.rows,
                c.cols,
                a.width(),
                in_numbers(a),
                in_numbers(b),
                c.ld,
                (a.pairs ? 1 : 0) + (a.transposed ? 2 : 0) + (b.transposed ? 4 : 0),
                alignment_of(a.data),
                alignment_of(b.data),
                alignment_of(c.data)};
  const std::lock_guard<std::mutex> guard(lock_);
  auto known = plans_.find(key);
  if (known == plans_.end()) {
    if (plans_.size() == kMostPlans) plans_.clear();  // texts of many lengths make many
    known = plans_.emplace(key, make(key)).first;
  }
  const Plan& plan = *known->second;
  if (!plan.found) return false;
  if (Recording* const recording = Recording::looking()) {
    recording->note(key);
    for (const void* const at : {static_cast<const void*>(c.data), static_cast<const void*>(a.data),
                                 static_cast<const void*>(b.data), static_cast<const void*>(workspace)}) {
      recording->note(at);
    }
    recording->note(accumulate);
    return true;
  }
  const float one = 1.0f, beta = accumulate ? 1.0f : 0.0f;
  expect(library_.multiply(handle_, plan.product, &one, b.data, plan.a, a.data, plan.b, &beta, c.data, plan.c, c.data,
                           plan.c, &plan.choice.algorithm, workspace,
                           static_cast<std::size_t>(kWorkspaceFloats) * sizeof(float), stream),
         "cublasLtMatmul");
  return true;
}

}  // namespace soma::cuda
