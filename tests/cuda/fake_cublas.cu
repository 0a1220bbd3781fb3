// A library with the functions of cuBLASLt that are used, for the emulation. Products are computed by the letter of its
// documentation: matrices by columns, transposed as the descriptor says. Arguments that it would refuse are refused.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdlib>
#include <string>

namespace {

constexpr int kInvalid = 7, kNotSupported = 15, kFailed = 13;

struct Product {
  int compute, scale, transposed[2];
};
struct Layout {
  int type;
  uint64_t rows, cols;
  int64_t ld;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = 7, align[4] = {256, 256, 256, 256};
};

// What the last product was asked for: see soma_fake_asked.
struct Asked {
  int64_t compute, type, transposed_a, transposed_b, m, n, k, reductions, beta, products, choices, held;
} asked{};
std::string failing;           // the function that fails once
int failure = 0, passing = 0;  // and how many calls it passes before

int result(const char* function, bool right) {
  if (failing == function && passing-- == 0) {
    failing.clear();
    return failure;
  }
  return right ? 0 : kInvalid;
}

float read(const void* data, bool pairs, int64_t i) {
  if (!pairs) return static_cast<const float*>(data)[i];
  const uint32_t half = static_cast<const uint16_t*>(data)[i];
  return __uint_as_float(half << 16);
}

// One thread an element of D, by columns; sums in the order of k.
void multiply(const void* a, const void* b, const float* c, float* d, bool pairs, int64_t a_along, int64_t a_deep,
              int64_t b_along, int64_t b_deep, int64_t ld, int64_t m, int64_t n, int64_t k, float beta) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 64 + threadIdx.x, i = at % m, j = at / m;
  if (j >= n) return;
  float sum = beta == 0.0f ? 0.0f : c[j * ld + i];
  for (int64_t p = 0; p < k; ++p) {
    sum = fmaf(read(a, pairs, i * a_along + p * a_deep), read(b, pairs, j * b_along + p * b_deep), sum);
  }
  d[j * ld + i] = sum;
}

bool aligned(const void* p, uint32_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// ------------------------------------------------------------------------------------------------------ for the tests

EXPORT void soma_fake_asked(int64_t* numbers) { std::memcpy(numbers, &asked, sizeof asked); }
EXPORT void soma_fake_fail(const char* function, int status, int after) {
  failing = function, failure = status, passing = after;
}

// ------------------------------------------------------------------------------------------------------------ cuBLASLt

EXPORT std::size_t cublasLtGetVersion() {
  const char* const version = std::getenv("SOMA_FAKE_CUBLAS_VERSION");
  return version != nullptr ? static_cast<std::size_t>(std::atoll(version)) : 130002;
}
EXPORT const char* cublasLtGetStatusString(int status) {
  return status == kFailed ? "CUBLAS_STATUS_EXECUTION_FAILED" : "CUBLAS_STATUS_INVALID_VALUE";
}
EXPORT int cublasLtCreate(void** library) {
  *library = &asked;
  return 0;
}
EXPORT int cublasLtMatmulDescCreate(void** made, int compute, int scale) {
  *made = new Product{compute, scale, {0, 0}};
  ++asked.held;
  return result("cublasLtMatmulDescCreate", scale == 0 && (compute == 68 || compute == 69));
}
EXPORT int cublasLtMatmulDescDestroy(void* product) {
  delete static_cast<Product*>(product);
  --asked.held;
  return 0;
}
EXPORT int cublasLtMatmulDescSetAttribute(void* product, int attribute, const void* value, std::size_t bytes) {
  if ((attribute != 3 && attribute != 4) || bytes != 4) return kInvalid;
  std::memcpy(&static_cast<Product*>(product)->transposed[attribute - 3], value, 4);
  return 0;
}
EXPORT int cublasLtMatrixLayoutCreate(void** made, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  *made = new Layout{type, rows, cols, ld};
  ++asked.held;
  const bool right = (type == 0 || type == 14) && rows > 0 && cols > 0 && ld >= static_cast<int64_t>(rows);
  return result("cublasLtMatrixLayoutCreate", right);
}
EXPORT int cublasLtMatrixLayoutDestroy(void* layout) {
  delete static_cast<Layout*>(layout);
  --asked.held;
  return 0;
}
EXPORT int cublasLtMatmulPreferenceCreate(void** made) {
  *made = new Preference;
  return 0;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete static_cast<Preference*>(preference);
  return 0;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, std::size_t bytes) {
  auto& p = *static_cast<Preference*>(preference);
  if (attribute == 1 && bytes == 8) return std::memcpy(&p.workspace, value, 8), 0;
  if (attribute == 3 && bytes == 4) return std::memcpy(&p.reductions, value, 4), 0;
  if (attribute >= 5 && attribute <= 8 && bytes == 4) return std::memcpy(&p.align[attribute - 5], value, 4), 0;
  return kInvalid;
}

// The algorithm keeps what it was chosen for: alignments and workspace.
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void* product, void* a, void* b, void* c, void* d, void* preference,
                                          int count, void* choices, int* found) {
  const auto& p = *static_cast<Preference*>(preference);
  ++asked.choices;
  asked.reductions = p.reductions;
  struct Choice {
    uint64_t algorithm[8];
    std::size_t workspace;
    int status;
    float waves;
    int reserved[4];
  } choice{};
  for (int i = 0; i < 4; ++i) choice.algorithm[i] = p.align[i];
  choice.algorithm[4] = choice.workspace = 4096;
  std::memcpy(choices, &choice, sizeof choice);
  const int status = result("cublasLtMatmulAlgoGetHeuristic",
                            product != nullptr && a != b && c == d && count == 1 && p.workspace >= choice.workspace);
  *found = status == 0 ? 1 : 0;
  return status;
}

EXPORT int cublasLtMatmul(void* library, void* product, const void* alpha, const void* a, void* of_a, const void* b,
                          void* of_b, const void* beta, const void* c, void* of_c, void* d, void* of_d,
                          const void* algorithm, void* workspace, std::size_t bytes, cudaStream_t stream) {
  const auto& p = *static_cast<Product*>(product);
  const Layout &la = *static_cast<Layout*>(of_a), &lb = *static_cast<Layout*>(of_b), &ld = *static_cast<Layout*>(of_d);
  const bool ta = p.transposed[0] != 0, tb = p.transposed[1] != 0, pairs = la.type == 14;
  const auto m = static_cast<int64_t>(ta ? la.cols : la.rows), k = static_cast<int64_t>(ta ? la.rows : la.cols);
  const auto n = static_cast<int64_t>(tb ? lb.rows : lb.cols), deep = static_cast<int64_t>(tb ? lb.cols : lb.rows);
  const auto* const chosen = static_cast<const uint64_t*>(algorithm);
  const void* const all[4] = {a, b, c, d};
  bool right = library == &asked && *static_cast<const float*>(alpha) == 1.0f && of_c == of_d && c == d && deep == k;
  right = right && la.type == lb.type && ld.type == 0 && static_cast<int64_t>(ld.rows) == m &&
          static_cast<int64_t>(ld.cols) == n && bytes >= chosen[4] && aligned(workspace, 256);
  for (int i = 0; i < 4; ++i) right = right && aligned(all[i], static_cast<uint32_t>(chosen[i]));
  const float onto = *static_cast<const float*>(beta);
  asked = {p.compute,          la.type,       ta,        tb, m, n, k, asked.reductions, onto != 0.0f,
           asked.products + 1, asked.choices, asked.held};
  if (const int status = result("cublasLtMatmul", right)) return status;
  const cudaLaunchConfig_t config{dim3(static_cast<unsigned>((m * n + 63) / 64)), dim3(64), 0, stream};
  cudaLaunchKernelEx(&config, multiply, a, b, static_cast<const float*>(c), static_cast<float*>(d), pairs,
                     ta ? la.ld : 1, ta ? 1 : la.ld, tb ? 1 : lb.ld, tb ? lb.ld : 1, ld.ld, m, n, k, onto);
  return 0;
}
