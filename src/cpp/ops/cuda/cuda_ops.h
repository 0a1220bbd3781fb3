// The ops of ops.h on a GPU: the same names, equations and arguments, for memory of the device. They wait in `stream`.
// Memory for partial sums is the caller's; how much says the function before. Results depend on shapes alone, and not
// on the order in which blocks run: there are no atomics.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "ops/cuda/cublas.h"
#include "ops/ops.h"

namespace soma::cuda {

// norms.cu
void norm(Matrix y, NormStats saved, ConstMatrix x, const NormWeights& w, float eps, cudaStream_t stream);
void norm_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, NormStats saved, const NormWeights& w,
                   const float* residual, const Matrix* again, cudaStream_t stream);
int64_t norm_grad_floats(int64_t rows, int64_t cols);
void norm_grad(float* dgamma, float* dbeta, ConstMatrix dy, ConstMatrix x, NormStats saved, NormKind kind,
               float* partials, cudaStream_t stream);

// rowwise.cu; x of sum_rows may be pairs too
int64_t sum_rows_floats(int64_t rows, int64_t cols);
void sum_rows(float* out, ConstMatrix x, float* partials, cudaStream_t stream);
void dropout(Matrix y, ConstMatrix x, const Dropout& dropout, cudaStream_t stream);
void embed(Matrix out, const int32_t* ids, ConstMatrix wte, const ConstMatrix* wpe, int64_t length,
           const Dropout& dropout, cudaStream_t stream);
// The rows of each id, in order, without masked tokens: the number of distinct ids; all rows of the first id, then
// those of the next; where those of each id start, and the end. Made on the host; always of sorted_ids(count) numbers.
inline int64_t sorted_ids(int64_t count) { return 2 * count + 2; }
std::vector<int32_t> sort_ids(const int32_t* ids, int64_t count);
// `sorted` is that of sort_ids for all rows, on the device.
void embed_backward(Matrix dwte, const Matrix* dwpe, ConstMatrix dout, const int32_t* ids, const int32_t* sorted,
                    int64_t length, cudaStream_t stream);

// loss.cu
void cross_entropy(float* losses, Matrix logits, const int32_t* targets, float grad_scale, Matrix gradient,
                   cudaStream_t stream);
void soft_cross_entropy(float* losses, Matrix logits, ConstMatrix q, const int32_t* targets, float share,
                        float grad_scale, Matrix gradient, cudaStream_t stream);
void add_softmax(Matrix q, Matrix logits, float share, bool onto, cudaStream_t stream);
void score(const RowScores& scores, ConstMatrix logits, const int32_t* targets, cudaStream_t stream);

// optimizer.cu; sums go to *sum on the device
int64_t sum_squares_doubles(int64_t n);
void sum_squares(double* sum, const float* x, int64_t n, double* partials, cudaStream_t stream);
// *clip on the device, as Ops::update makes it of the sum of squares. With it, adamw scales by it, or updates nothing.
void clip(Clip* clip, const double* squares, double most, cudaStream_t stream);
void adamw(float* p, float* g, float* m, float* v, const AdamWRange* ranges, int64_t count, const AdamWOptions& options,
           const Clip* clip, cudaStream_t stream);
void muon_momentum(double* sum, Matrix g, Matrix m, float momentum, float scale, double* partials,
                   cudaStream_t stream);  // partials: one a row
void scale(Matrix y, ConstMatrix x, float s, cudaStream_t stream);
// x = g / (1.01 |g| + 1e-6); *squares is the sum of muon_momentum
void muon_direction(Matrix x, ConstMatrix g, const double* squares, cudaStream_t stream);
void muon(Matrix p, Matrix o, const MuonOptions& options, cudaStream_t stream);
void average(float* y, const float* x, float rate, int64_t n, cudaStream_t stream);
void exchange(float* a, float* b, int64_t n, cudaStream_t stream);

// whole_rows.cu: what Epilogue::swiglu and Epilogue::rotated ask for, of a product c in floats
void swiglu(Matrix y, ConstMatrix c, cudaStream_t stream);
void rotate(const RotatedHeads& to, ConstMatrix c, cudaStream_t stream);

// matmul.cu; column_sums are not of a transposed matrix. In bfloat16, operands in floats are rounded into scratch.
// `large` makes what it can; null: own kernels make all.
int64_t matmul_floats(ConstMatrix a, ConstMatrix b, const Epilogue& epilogue, Precision precision,
                      const Cublas* large = nullptr);
void matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& epilogue, Precision precision, float* scratch,
            cudaStream_t stream, Cublas* large = nullptr);

// attention.cu
void attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& shape, Precision precision,
               cudaStream_t stream);
int64_t attention_backward_floats(const AttentionShape& shape, Precision precision, bool rotated);
void attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix out, ConstMatrix qkv, const float* lse,
                        const AttentionShape& shape, const RotationGradient* rotated, Precision precision,
                        float* scratch, cudaStream_t stream);

}  // namespace soma::cuda
