// What tests/cuda call by ctypes: the ops, with the structs of ops.h by address, and the memory of the device. Each
// function synchronises. Scratch memory is allocated here, exactly as much as the op says.
#include <cstring>
#include <string>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/graphs.h"
#include "ops/cuda/language.h"

using namespace soma;
using cuda::check;

namespace {

// Made at their first use. No static variables of functions: their guards are for ThreadSanitizer, which is not there.
cuda::Cublas* large = nullptr;
cuda::Graphs* graphs = nullptr;
cudaStream_t stream = nullptr;
std::string error;

// y[i] += x, with x as an argument or as one that differs from call to call.
void add_plain(float* y, float x) { y[threadIdx.x] += x; }
void add_varying(float* y, cuda::Varying<float> x) { y[threadIdx.x] += x.get(); }

// Device memory for as long as it lives.
template <typename T>
class Device {
 public:
  explicit Device(int64_t count, const T* host = nullptr) {
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    void* p = nullptr;
    check(cudaMalloc(&p, bytes));
    data_ = static_cast<T*>(p);
    if (host != nullptr) check(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

double wait_for(const Device<double>& sum) {
  double value = 0;
  check(cudaMemcpy(&value, sum.get(), sizeof value, cudaMemcpyDeviceToHost));
  return value;
}

void wait() { check(cudaDeviceSynchronize()); }

}  // namespace

#define EXPORT __attribute__((visibility("default")))
extern "C" {

EXPORT void* soma_allocate(int64_t bytes) {
  void* p = nullptr;
  return cudaMalloc(&p, static_cast<std::size_t>(bytes)) == cudaSuccess ? p : nullptr;
}
EXPORT void soma_release(void* p) { cudaFree(p); }
EXPORT void soma_upload(void* to, const void* from, int64_t bytes) {
  check(cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice));
}
EXPORT void soma_download(void* to, const void* from, int64_t bytes) {
  check(cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost));
}
EXPORT void soma_set_order(int order, uint64_t seed) {
  emulation::set_order(static_cast<emulation::Order>(order), seed);
}
EXPORT void soma_set_memory(int64_t bytes) { emulation::set_memory(static_cast<std::size_t>(bytes)); }
EXPORT int64_t soma_taken_memory() { return static_cast<int64_t>(emulation::taken_memory()); }
EXPORT void soma_set_machine(int devices, int major, int minor, int driver) {
  emulation::set_machine(devices, major, minor, driver);
}
EXPORT void soma_graph_counts(int64_t* made, int64_t* launched) {
  *made = emulation::graph_counts().made;
  *launched = emulation::graph_counts().launched;
}
EXPORT int64_t soma_graphs_held() { return emulation::graph_counts().held; }
EXPORT void soma_fail_next() { emulation::fail_next(); }
// Of the structs that Python mirrors.
EXPORT void soma_sizes(int64_t* sizes) {
  const std::size_t all[] = {
      sizeof(Matrix),         sizeof(ConstMatrix),  sizeof(NormWeights),      sizeof(NormStats), sizeof(Dropout),
      sizeof(AdamWRange),     sizeof(AdamWOptions), sizeof(MuonOptions),      sizeof(Epilogue),  sizeof(Quadratic),
      sizeof(SwigluGradient), sizeof(RotatedHeads), sizeof(RotationGradient), sizeof(RowScores)};
  for (const std::size_t size : all) *sizes++ = static_cast<int64_t>(size);
}

// Adds 1, 2, ... `steps` to eight numbers, each in a call that a graph may repeat. What they are then, if right.
EXPORT float soma_repeat(int steps, bool varying) {
  if (graphs == nullptr) {
    graphs = new cuda::Graphs;
    check(cudaStreamCreate(&stream));
  }
  const float zeros[8] = {};
  const Device<float> y(8, zeros);
  for (int step = 1; step <= steps; ++step) {
    const auto body = [&] {
      const cuda::Recording* const recording = cuda::Recording::capturing();
      const cudaStream_t into = recording != nullptr ? recording->stream() : stream;
      const auto x = static_cast<float>(step);
      varying ? cuda::Kernel{add_varying, dim3(1), 8, into}(y.get(), x)
              : cuda::Kernel{add_plain, dim3(1), 8, into}(y.get(), x);
    };
    graphs->run(
        nullptr, stream, [](void* context) { (*static_cast<decltype(body)*>(context))(); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
  check(cudaStreamSynchronize(stream));
  float sums[8];
  check(cudaMemcpy(sums, y.get(), sizeof sums, cudaMemcpyDeviceToHost));
  for (const float sum : sums) {
    if (sum != sums[0]) return -1;
  }
  return sums[0];
}

EXPORT void soma_norm(const Matrix* y, const NormStats* saved, const ConstMatrix* x, const NormWeights* w, float eps) {
  cuda::norm(*y, *saved, *x, *w, eps, nullptr);
  wait();
}
EXPORT void soma_norm_backward(const Matrix* dx, const ConstMatrix* dy, const ConstMatrix* x, const NormStats* saved,
                               const NormWeights* w, const float* residual, const Matrix* again) {
  cuda::norm_backward(*dx, *dy, *x, *saved, *w, residual, again, nullptr);
  wait();
}
EXPORT void soma_norm_grad(float* dgamma, float* dbeta, const ConstMatrix* dy, const ConstMatrix* x,
                           const NormStats* saved, int kind) {
  const Device<float> partials(cuda::norm_grad_floats(x->rows, x->cols));
  cuda::norm_grad(dgamma, dbeta, *dy, *x, *saved, static_cast<NormKind>(kind), partials.get(), nullptr);
  wait();
}
EXPORT void soma_sum_rows(float* out, const ConstMatrix* x) {
  const Device<float> partials(cuda::sum_rows_floats(x->rows, x->cols));
  cuda::sum_rows(out, *x, partials.get(), nullptr);
  wait();
}
EXPORT void soma_dropout(const Matrix* y, const ConstMatrix* x, const Dropout* dropout) {
  cuda::dropout(*y, *x, *dropout, nullptr);
  wait();
}
EXPORT void soma_embed(const Matrix* out, const int32_t* ids, const ConstMatrix* wte, const ConstMatrix* wpe,
                       int64_t length, const Dropout* dropout) {
  cuda::embed(*out, ids, *wte, wpe, length, *dropout, nullptr);
  wait();
}
// host_ids: the same ids on the host
EXPORT void soma_embed_backward(const Matrix* dwte, const Matrix* dwpe, const ConstMatrix* dout, const int32_t* ids,
                                const int32_t* host_ids, int64_t length) {
  const Device<int32_t> sorted(cuda::sorted_ids(dout->rows), cuda::sort_ids(host_ids, dout->rows).data());
  cuda::embed_backward(*dwte, dwpe, *dout, ids, sorted.get(), length, nullptr);
  wait();
}
EXPORT void soma_cross_entropy(float* losses, const Matrix* logits, const int32_t* targets, float grad_scale,
                               const Matrix* gradient) {
  cuda::cross_entropy(losses, *logits, targets, grad_scale, *gradient, nullptr);
  wait();
}
EXPORT void soma_soft_cross_entropy(float* losses, const Matrix* logits, const ConstMatrix* q, const int32_t* targets,
                                    float share, float grad_scale, const Matrix* gradient) {
  cuda::soft_cross_entropy(losses, *logits, *q, targets, share, grad_scale, *gradient, nullptr);
  wait();
}
EXPORT void soma_add_softmax(const Matrix* q, const Matrix* logits, float share, bool onto) {
  cuda::add_softmax(*q, *logits, share, onto, nullptr);
  wait();
}
EXPORT void soma_score(const RowScores* scores, const Matrix* logits, const int32_t* targets) {
  cuda::score(*scores, *logits, targets, nullptr);
  wait();
}
EXPORT double soma_sum_squares(const float* x, int64_t n) {
  const Device<double> sum(1), partials(cuda::sum_squares_doubles(n));
  cuda::sum_squares(sum.get(), x, n, partials.get(), nullptr);
  return wait_for(sum);
}
EXPORT void soma_adamw(float* p, float* g, float* m, float* v, const AdamWRange* ranges, int64_t count,
                       const AdamWOptions* options) {
  cuda::adamw(p, g, m, v, ranges, count, *options, nullptr, nullptr);
  wait();
}
EXPORT double soma_muon_momentum(const Matrix* g, const Matrix* m, float momentum, float scale) {
  const Device<double> sum(1), partials(g->rows);
  cuda::muon_momentum(sum.get(), *g, *m, momentum, scale, partials.get(), nullptr);
  return wait_for(sum);
}
EXPORT void soma_scale(const Matrix* y, const ConstMatrix* x, float s) {
  cuda::scale(*y, *x, s, nullptr);
  wait();
}
EXPORT void soma_muon(const Matrix* p, const Matrix* o, const MuonOptions* options) {
  cuda::muon(*p, *o, *options, nullptr);
  wait();
}
EXPORT void soma_average(float* y, const float* x, float rate, int64_t n) {
  cuda::average(y, x, rate, n, nullptr);
  wait();
}
EXPORT void soma_matmul(const Matrix* c, const ConstMatrix* a, const ConstMatrix* b, const Epilogue* epilogue,
                        bool bfloat16) {
  const Precision precision = bfloat16 ? Precision::kBfloat16 : Precision::kFloat32;
  const Device<float> scratch(cuda::matmul_floats(*a, *b, *epilogue, precision));
  cuda::matmul(*c, *a, *b, *epilogue, precision, scratch.get(), nullptr);
  wait();
}
// The same with cuBLASLt, whatever its size. Returns what went wrong, or null.
EXPORT const char* soma_matmul_large(const Matrix* c, const ConstMatrix* a, const ConstMatrix* b,
                                     const Epilogue* epilogue, bool bfloat16) {
  try {
    if (large == nullptr) large = new cuda::Cublas(*cuda::cublas_library(), 1024);  // 128 rows are staged at a time
    const Precision precision = bfloat16 ? Precision::kBfloat16 : Precision::kFloat32;
    const Device<float> scratch(cuda::matmul_floats(*a, *b, *epilogue, precision, large));
    cuda::matmul(*c, *a, *b, *epilogue, precision, scratch.get(), nullptr, large);
    wait();
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}
EXPORT void soma_attention(const Matrix* out, float* lse, const ConstMatrix* qkv, const AttentionShape* shape,
                           bool bfloat16) {
  cuda::attention(*out, lse, *qkv, *shape, bfloat16 ? Precision::kBfloat16 : Precision::kFloat32, nullptr);
  wait();
}
EXPORT void soma_attention_backward(const Matrix* dqkv, const ConstMatrix* dout, const ConstMatrix* out,
                                    const ConstMatrix* qkv, const float* lse, const AttentionShape* shape,
                                    const RotationGradient* rotated, bool bfloat16) {
  const Precision precision = bfloat16 ? Precision::kBfloat16 : Precision::kFloat32;
  const Device<float> scratch(cuda::attention_backward_floats(*shape, precision, rotated != nullptr));
  cuda::attention_backward(*dqkv, *dout, *out, *qkv, lse, *shape, rotated, precision, scratch.get(), nullptr);
  wait();
}
}
