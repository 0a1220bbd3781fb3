// The operations a model is made of, behind one interface per device. Ops know blocking, packing and threads, and no
// model. Glossary: B sequences, T positions, C channels (d_model), H heads, D head size, V vocabulary, M = B*T rows.
// Matrices are row-major floats, or pairs (see Operands). `=` overwrites, `+=` accumulates. Results do not depend on
// the number of threads.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/norm_kind.h"

namespace soma {

// What matrix products compute with. kBfloat16: both operands rounded to nearest even once, sums in single precision.
// Everything else is single precision either way.
enum class Precision { kFloat32, kBfloat16 };

// What a row of pairs takes, in floats: pairs for all columns, then zeros up to a multiple of 16 pairs. Rows are an odd
// number of cache lines apart, because rows at powers of two share their sets of L1.
inline int64_t pairs_units(int64_t cols) { return (cols + 31) / 32 * 16; }
inline int64_t pairs_ld(int64_t cols) { return (cols + 63) / 64 * 32 + 16; }

struct ConstMatrix {
  const float* data;
  int64_t rows, cols, ld;   // ld in floats
  bool pairs = false;       // bfloat16, column 2i in the low half of float i of a row and 2i + 1 in the high half
  bool transposed = false;  // the operand is the transpose of what is stored
  // What Ops::pack made of it as a right operand, as it is stored and transposed; null: a product does it itself.
  const float *panels = nullptr, *panels_transposed = nullptr;

  ConstMatrix(const float* d, int64_t r, int64_t c) : data(d), rows(r), cols(c), ld(c) {}
  // Where an element of what is stored lies; of pairs, at an even column.
  const float* at(int64_t row, int64_t col) const { return data + row * ld + (pairs ? col / 2 : col); }
  ConstMatrix t() const {
    ConstMatrix m = *this;
    m.transposed = !m.transposed;
    return m;
  }
  int64_t height() const { return transposed ? cols : rows; }
  int64_t width() const { return transposed ? rows : cols; }
};

struct Matrix {
  float* data = nullptr;
  int64_t rows = 0, cols = 0, ld = 0;
  bool pairs = false;

  Matrix() = default;
  Matrix(float* d, int64_t r, int64_t c) : Matrix(d, r, c, c) {}
  Matrix(float* d, int64_t r, int64_t c, int64_t stride) : data(d), rows(r), cols(c), ld(stride) {}
  float* row(int64_t r) const { return data + r * ld; }
  operator ConstMatrix() const {
    ConstMatrix m{data, rows, cols};
    m.ld = ld;
    m.pairs = pairs;
    return m;
  }
};

// The layout of a matrix that only products read. In bfloat16 the op that makes the matrix rounds it once, into pairs.
struct Operands {
  bool pairs;

  int64_t ld(int64_t cols) const { return pairs ? pairs_ld(cols) : cols; }
  // Tiles may read past the last row.
  int64_t floats(int64_t rows, int64_t cols) const { return pairs ? (rows + 31) * ld(cols) : rows * cols; }
  Matrix matrix(float* data, int64_t rows, int64_t cols) const {
    Matrix m{data, rows, cols};
    m.ld = ld(cols);
    m.pairs = pairs;
    return m;
  }
};

// A polynomial of the symmetric matrix x, whose square is a product's result.
struct Quadratic {
  float constant, linear, square;
  const Matrix* x;
};

// Causal attention over packed queries, keys and values: a row of qkv is q | k | v, q being H heads of D numbers, k and
// v being K. H is a multiple of K: H / K heads of queries after each other share a head of keys and values.
struct AttentionShape {
  int64_t batch, length, heads, head_size, kv_heads;
  float scale;  // above 0, as a rule 1 / sqrt(D): the factor of the scores
  int64_t q_dim() const { return heads * head_size; }
  int64_t kv_dim() const { return kv_heads * head_size; }
  int64_t qkv_dim() const { return q_dim() + 2 * kv_dim(); }
};

// Rotary positions (Su et al. 2021): the two halves of each head of q and k are D/2 points of planes, which are turned
// by angles that grow with the position. Where there are gains, each head goes through RMSNorm first (QK-norm).
struct Rotation {
  const float* turns = nullptr;                      // (positions, D): cosines of D/2 angles, then their sines
  const float *q_gain = nullptr, *k_gain = nullptr;  // (D) each, or null: no norm
  float eps = 0.0f;
};

// Of a product C = q | k | v: qkv = rotated q | rotated k | v. Floats of qkv may be C itself; of pairs D is even.
struct RotatedHeads {
  Rotation rotation;
  AttentionShape shape;
  Matrix qkv;
};

// Its gradient, taken where that of attention is made. With gains, `before` is C as it was, floats; q_gain (B*H, D) and
// k_gain (B*K, D) become the gains' gradients, a row for each head of a sequence.
struct RotationGradient {
  Rotation rotation;
  ConstMatrix before;
  float *q_gain = nullptr, *k_gain = nullptr;
};

// The gradient through y = silu(gate) up, of whose hidden = gate | up a product C makes y's gradient. C is not stored
// and has no memory. Where d_hidden is pairs, gate is an even number of columns.
struct SwigluGradient {
  ConstMatrix hidden;       // (rows, 2 cols), floats
  Matrix d_hidden, output;  // (rows, 2 cols) and y once more, (rows, cols)
};

// What a matrix product does to its result before it is stored.
struct Epilogue {
  const float* bias = nullptr;      // (cols): added to every row
  const float* residual = nullptr;  // (rows, cols): added; not the result's own memory
  bool relu = false;
  const Matrix* gelu = nullptr;  // (rows, cols): = gelu(C)
  bool gelu_erf = false;         // every gelu here is x Phi(x); else its tanh form
  // The gradient through gelu or relu, all (rows, cols):
  const float* gelu_input = nullptr;         // C = C gelu'(gelu_input), and
  const Matrix* gelu_output = nullptr;       //   = gelu(gelu_input), computed again on the way
  const ConstMatrix* relu_output = nullptr;  // C = relu_output > 0 ? C : 0
  // Of whole rows of C, floats, while they are in cache:
  const Matrix* swiglu = nullptr;         // (rows, cols/2): = silu(gate) up, where C = gate | up
  const RotatedHeads* rotated = nullptr;  // see there
  const SwigluGradient* swiglu_gradient = nullptr;
  bool accumulate = false;       // C += instead of C =; not together with the others, nor with C in pairs
  float* column_sums = nullptr;  // (cols): += the sum over the rows of b, as products see it; b is not packed before
  // C is square and symmetric, not in pairs: the half above the diagonal is computed, the other mirrored. It goes with
  // `quadratic` alone.
  bool symmetric = false;
  const Quadratic* quadratic = nullptr;  // C = constant I + linear x + square C
};

// dw += x^T dy; column_sums (null: none) += the sum over the rows of dy.
struct WeightGradient {
  Matrix dw;
  ConstMatrix x, dy;
  float* column_sums;
};

// A right operand of products, and where its panels go.
struct Packing {
  ConstMatrix b;
  float* panels;
};

// The learned part of a norm, both null where there is none; RMSNorm has no shift.
struct NormWeights {
  const float *gamma = nullptr, *beta = nullptr;
  NormKind kind = NormKind::kLayerNorm;
};

struct NormStats {  // saved by norm for its backward; (M) each; RMSNorm has no mean
  float* mean;
  float* rstd;
};

// A stretch of the parameters with one weight decay.
struct AdamWRange {
  int64_t offset, size;
  bool decays;
};

struct AdamWOptions {
  float lr, beta1, beta2, eps;
  float grad_scale;    // clipping: every gradient is multiplied by it first
  int64_t step;        // 1 for the first step
  float weight_decay;  // of the stretches that decay
  bool cautious;       // no decay where the update's sign is not the parameter's
};

struct MuonOptions {
  float lr;
  float scale;  // of the orthogonal factor
  float weight_decay;
  bool cautious;  // decay only where factor and parameter have one sign, or one of them is zero
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual Operands operands() const = 0;

  // c = a b, then the epilogue: bias, residual, relu. Or c += a b.
  virtual void matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& epilogue = {}) = 0;

  // Several of the same number of rows, done together: the operands dy are all packed at once, in `sum of columns` x
  // rows floats at most.
  virtual void weight_gradients(const WeightGradient* list, int64_t count) = 0;
  // Floats of a packed right operand (k, n), and packing several. The panels hold as long as b is not written to.
  virtual int64_t packed_floats(int64_t k, int64_t n) const = 0;
  virtual void pack(const Packing* list, int64_t count) = 0;

  // y = (x - mean) / sqrt(var + eps) * gamma + beta, row by row, or RMSNorm, see NormKind. y may be x, or pairs.
  virtual void norm(Matrix y, NormStats saved, ConstMatrix x, const NormWeights& w, float eps) = 0;
  // dx = residual (null: 0; may be dx) + the gradient through norm. Of a layer norm with saved.mean null, x is the
  // normalised output itself. `again`, if not null, becomes what norm made of x; w then has all that it can have.
  virtual void norm_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, NormStats saved, const NormWeights& w,
                             const float* residual, const Matrix* again = nullptr) = 0;
  // dgamma += sum dy xhat, dbeta += sum dy; RMSNorm has no dbeta
  virtual void norm_grad(float* dgamma, float* dbeta, ConstMatrix dy, ConstMatrix x, NormStats saved,
                         NormKind kind = NormKind::kLayerNorm) = 0;

  // qkv and dqkv may be pairs where D is even.
  // out(B*T, H*D) = softmax(scale q k^T, causal) v per head; lse(B*H*T) = log sum exp of the scaled scores, for
  // backward. No more than one tile of query rows of scores exists per thread.
  virtual void attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& shape) = 0;
  // dqkv = gradient, with `rotated` that of what was rotated; the probabilities are computed again from lse.
  virtual void attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix qkv, const float* lse,
                                  const AttentionShape& shape, const RotationGradient* rotated = nullptr) = 0;

  // out[j] += sum of the rows of x, floats, in their order
  virtual void sum_rows(float* out, ConstMatrix x) = 0;

  // out[r] = wte[ids[r]] + wpe[r % T]; without wpe (null), wte[ids[r]] alone
  virtual void embed(Matrix out, const int32_t* ids, ConstMatrix wte, const ConstMatrix* wpe, int64_t length) = 0;
  // dwte[ids[r]] += dout[r]; dwpe[r % T] += dout[r], where given
  virtual void embed_backward(Matrix dwte, const Matrix* dwpe, ConstMatrix dout, const int32_t* ids,
                              int64_t length) = 0;

  // losses[r] = -log softmax(logits[r])[targets[r]], 0 where the target is ignored (kIgnoredTarget). Where grad_scale
  // is not 0, gradient = grad_scale (softmax - onehot), a zero row where ignored, and logits are lost; gradient is
  // logits, or pairs.
  virtual void cross_entropy(float* losses, Matrix logits, const int32_t* targets, float grad_scale,
                             Matrix gradient) = 0;

  // sum x^2 over n floats
  virtual double sum_squares(const float* x, int64_t n) = 0;
  // One pass over the parameters of `ranges`: decoupled weight decay, Adam; g = 0 afterwards. p, g and m are arenas; v
  // has the second moments of these ranges alone, one behind the other.
  virtual void adamw(float* p, float* g, float* m, float* v, const AdamWRange* ranges, int64_t count,
                     const AdamWOptions& options) = 0;

  // g = scale g; m = momentum m + (1 - momentum) g; g = (1 - momentum) g + momentum m. Returns sum g^2.
  virtual double muon_momentum(Matrix g, Matrix m, float momentum, float scale) = 0;
  // y = s x; y may be pairs
  virtual void scale(Matrix y, ConstMatrix x, float s) = 0;
  // p -= lr (scale o + weight_decay p); o = 0
  virtual void muon(Matrix p, Matrix o, const MuonOptions& options) = 0;
  // y += rate (x - y) over n floats; where rate is 1, y = x
  virtual void average(float* y, const float* x, float rate, int64_t n) = 0;
};

constexpr int32_t kIgnoredTarget = -100;

std::unique_ptr<Ops> make_cpu_ops(Precision precision);

}  // namespace soma
