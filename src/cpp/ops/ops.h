// The operations of a model, behind one interface per device. Ops know blocking, packing and threads, and no
// model. Glossary: B sequences, T positions, C channels (d_model), H heads, D head size, V vocabulary, M = B*T rows.
// Matrices are row-major floats, or pairs (see Operands). `=` overwrites, `+=` accumulates. Results do not depend on
// the number of threads.
#pragma once

#include <cstdint>

#include "kernels/norm_kind.h"

namespace soma {

// The precision of matrix products. kBfloat16: both operands are rounded to nearest even once, sums are in single
// precision. Everything else is in single precision.
enum class Precision { kFloat32, kBfloat16 };

// The floats of a row of pairs: pairs for all columns, then zeros up to a multiple of 16 pairs. Rows are an odd number
// of cache lines apart, because rows at powers of two share their sets of L1.
inline int64_t pairs_units(int64_t cols) { return (cols + 31) / 32 * 16; }
inline int64_t pairs_ld(int64_t cols) { return (cols + 63) / 64 * 32 + 16; }

struct ConstMatrix {
  const float* data;
  int64_t rows, cols, ld;   // ld in floats
  bool pairs = false;       // bfloat16, column 2i in the low half of float i of a row and 2i + 1 in the high half
  bool transposed = false;  // the operand is the transpose of the stored matrix
  // The panels that Ops::pack made of it as a right operand, stored and transposed. Null: the product packs it.
  const float *panels = nullptr, *panels_transposed = nullptr;

  ConstMatrix(const float* d, int64_t r, int64_t c) : data(d), rows(r), cols(c), ld(c) {}
  // The address of a stored element. In pairs, `col` is even.
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
  Matrix part(int64_t begin, int64_t end) const {  // some of its rows
    Matrix m = *this;
    m.data = row(begin);
    m.rows = end - begin;
    return m;
  }
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

// A polynomial of the symmetric matrix x. The product that it belongs to computes the square of x.
struct Quadratic {
  float constant, linear, square;
  const Matrix* x;
};

// Causal attention over packed queries, keys and values. A row of qkv is q | k | v: H heads of D numbers in q, K heads
// in k and in v. H is a multiple of K; H / K consecutive heads of queries share a head of keys and values.
struct AttentionShape {
  int64_t batch, length, heads, head_size, kv_heads;
  float scale;  // above 0, as a rule 1 / sqrt(D): the factor of the scores
  int64_t q_dim() const { return heads * head_size; }
  int64_t kv_dim() const { return kv_heads * head_size; }
  int64_t qkv_dim() const { return q_dim() + 2 * kv_dim(); }
};

// Rotary positions (Su et al. 2021). The two halves of a head of q or k are the coordinates of D/2 points, which are
// turned by angles that grow with the position. With gains, each head goes through RMSNorm first (QK-norm).
struct Rotation {
  const float* turns = nullptr;                      // (positions, D): cosines of D/2 angles, then their sines
  const float *q_gain = nullptr, *k_gain = nullptr;  // (D) each, or null: no norm
  float eps = 0.0f;
};

// The rotation of a product C = q | k | v: qkv = rotated q | rotated k | v. qkv in floats may be C itself. For pairs, D
// is even.
struct RotatedHeads {
  Rotation rotation;
  AttentionShape shape;
  Matrix qkv;
};

// The gradient through RotatedHeads, within attention_backward. With gains, `before` is C in floats before the
// rotation, and q_gain (B*H, D) and k_gain (B*K, D) become the gradients of the gains, a row for each head of a
// sequence.
struct RotationGradient {
  Rotation rotation;
  ConstMatrix before;
  float *q_gain = nullptr, *k_gain = nullptr;
};

// The gradient through y = silu(gate) up, hidden = gate | up. The product C is the gradient of y; C has no memory and
// is not stored. If d_hidden is pairs, gate has an even number of columns.
struct SwigluGradient {
  ConstMatrix hidden;       // (rows, 2 cols), floats
  Matrix d_hidden, output;  // d_hidden (rows, 2 cols); output = y again (rows, cols)
};

// Inverted dropout (Srivastava et al. 2014): an element becomes 0 with probability `rate`, else it is divided by
// 1 - rate. A hash of key, row and column decides, so that backward and any cut of the work make the same mask.
struct Dropout {
  double rate = 0;  // below 1; 0: no dropout
  uint64_t key = 0;
  int64_t first_row = 0;  // of the matrix within the whole batch
  explicit operator bool() const { return rate > 0; }
};

// The steps that a matrix product applies to its result before it stores it.
struct Epilogue {
  const float* bias = nullptr;      // (cols): added to every row
  const float* residual = nullptr;  // (rows, cols): added; not the result's own memory
  Dropout dropout{};                // of the product and its bias, before the residual; not with relu
  bool relu = false;
  const Matrix* gelu = nullptr;  // (rows, cols): = gelu(C)
  bool gelu_erf = false;         // gelu is x Phi(x), here and below; else its tanh form
  // The gradient through gelu or relu, all (rows, cols):
  const float* gelu_input = nullptr;         // C = C gelu'(gelu_input), and
  const Matrix* gelu_output = nullptr;       //   = gelu(gelu_input), computed again
  const ConstMatrix* relu_output = nullptr;  // C = relu_output > 0 ? C : 0
  // Steps on whole rows of C, in floats, while they are in cache:
  const Matrix* swiglu = nullptr;  // (rows, cols/2): = silu(gate) up, where C = gate | up
  const RotatedHeads* rotated = nullptr;
  const SwigluGradient* swiglu_gradient = nullptr;
  bool accumulate = false;       // C += instead of C =; without other steps, and not for C in pairs
  float* column_sums = nullptr;  // (cols): += the sum over the rows of b as used in the product; b is not packed
  // C is square, symmetric and not in pairs: the half above the diagonal is computed, the other half mirrored. Only
  // `quadratic` may be given beside it.
  bool symmetric = false;
  const Quadratic* quadratic = nullptr;  // C = constant I + linear x + square C
};

// dw += x^T dy; column_sums (null: none) += the sum over the rows of dy.
struct WeightGradient {
  Matrix dw;
  ConstMatrix x, dy;
  float* column_sums;
};

// A right operand of products, and the memory for its panels.
struct Packing {
  ConstMatrix b;
  float* panels;
};

// The gain and shift of a norm. Both are null for a norm without them; RMSNorm has no shift.
struct NormWeights {
  const float *gamma = nullptr, *beta = nullptr;
  NormKind kind = NormKind::kLayerNorm;
};

struct NormStats {  // saved by norm for backward, (M) each; RMSNorm has no mean
  float* mean;
  float* rstd;
};

// A range of the parameters with one weight decay.
struct AdamWRange {
  int64_t offset, size;
  bool decays;
};

struct AdamWOptions {
  float lr, beta1, beta2, eps;
  float grad_scale;    // clipping: every gradient is multiplied by it first; update() computes it
  int64_t step;        // 1 for the first step
  float weight_decay;  // of the stretches that decay
  bool cautious;       // no decay where the update's sign is not the parameter's
};

// A step over the parameters of `ranges`, arrays as for Ops::adamw. Beyond a norm of max_norm, the whole gradient is
// scaled down to it.
struct Update {
  float *p, *g, *m, *v;
  const AdamWRange* ranges;
  int64_t count;
  int64_t size;     // floats of the whole gradient
  double max_norm;  // <= 0: no clipping
  AdamWOptions options;
};

// The norm of the whole gradient, and the factor that clips it.
struct Clip {
  double norm;
  float scale;
};

struct MuonOptions {
  float lr;
  float scale;  // of the orthogonal factor
  float weight_decay;
  bool cautious;  // decay only where factor and parameter have one sign, or one of them is zero
};

// The results of Ops::score. Of two ids, that of the larger logit is better; of equal logits, the smaller id.
struct RowScores {
  float* logprobs;      // (rows): log softmax(logits)[target], in nats
  int32_t* ranks;       // (rows): 1 + the number of ids that are better than the target
  int64_t top;          // how many of the best ids; from 0 to the columns of the logits
  int32_t* top_ids;     // (rows, top): the best first
  float* top_logprobs;  // (rows, top): theirs
  RowScores from(int64_t row) const {
    return {logprobs + row, ranks + row, top, top_ids + row * top, top_logprobs + row * top};
  }
};

// How the logits of a loss are kept: the rows that exist at a time, and the floats from row to row.
struct LogitsLayout {
  int64_t rows, ld;
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual Operands operands() const = 0;
  virtual LogitsLayout logits_layout(int64_t rows, int64_t vocab_size) const = 0;
  // Whether the weights are packed at the beginning of every call, and not by the products that read them.
  virtual bool packs_first() const = 0;

  // c = a b, then the epilogue: bias, residual, relu. Or c += a b.
  virtual void matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& epilogue = {}) = 0;

  // Several gradients over the same number of rows. All operands dy are packed first, in at most (sum of columns) x
  // rows floats.
  virtual void weight_gradients(const WeightGradient* list, int64_t count) = 0;
  // The floats of a packed right operand (k, n), and packing of several. Panels are valid until b is written to.
  virtual int64_t packed_floats(int64_t k, int64_t n) const = 0;
  virtual void pack(const Packing* list, int64_t count) = 0;

  // y = (x - mean) / sqrt(var + eps) * gamma + beta, row by row; for RMSNorm see NormKind. y may be x, or pairs.
  virtual void norm(Matrix y, NormStats saved, ConstMatrix x, const NormWeights& w, float eps) = 0;
  // dx = residual (null: 0; may be dx) + the gradient through norm. For a layer norm with saved.mean null, x is the
  // normalised output itself. `again`, if not null, becomes the output of norm; w then has its gain, and shift if any.
  virtual void norm_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, NormStats saved, const NormWeights& w,
                             const float* residual, const Matrix* again = nullptr) = 0;
  // dgamma += sum dy xhat, dbeta += sum dy; RMSNorm has no dbeta
  virtual void norm_grad(float* dgamma, float* dbeta, ConstMatrix dy, ConstMatrix x, NormStats saved,
                         NormKind kind = NormKind::kLayerNorm) = 0;

  // qkv and dqkv may be pairs if D is even.
  // out(B*T, H*D) = softmax(scale q k^T, causal) v per head; lse(B*H*T) = log sum exp of the scaled scores, for
  // backward. A thread holds the scores of at most one tile of query rows.
  virtual void attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& shape) = 0;
  // dqkv = the gradient of qkv, with `rotated` the gradient before the rotation. `out` and lse are those of attention,
  // from which probabilities and their means are computed again.
  virtual void attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix out, ConstMatrix qkv, const float* lse,
                                  const AttentionShape& shape, const RotationGradient* rotated = nullptr) = 0;

  // out[j] += the sum over the rows of x, in order; x is floats
  virtual void sum_rows(float* out, ConstMatrix x) = 0;

  // y = x after dropout, also the gradient through it; y may be x, or pairs
  virtual void dropout(Matrix y, ConstMatrix x, const Dropout& dropout) = 0;

  // out[r] = dropout(wte[ids[r]] + wpe[r % T]); without wpe (null), wte[ids[r]] alone. kMaskedToken has zeros in the
  // place of its row of wte.
  virtual void embed(Matrix out, const int32_t* ids, ConstMatrix wte, const ConstMatrix* wpe, int64_t length,
                     const Dropout& dropout = {}) = 0;
  // dwte[ids[r]] += dout[r], without masked tokens; dwpe[r % T] += dout[r], if given. `on_host` has the same ids in
  // memory of the host.
  virtual void embed_backward(Matrix dwte, const Matrix* dwpe, ConstMatrix dout, const int32_t* ids,
                              const int32_t* on_host, int64_t length) = 0;

  // losses[r] = -log softmax(logits[r])[targets[r]], 0 for kIgnoredTarget. If grad_scale is not 0, gradient =
  // grad_scale (softmax - onehot), with a zero row for kIgnoredTarget. The logits are then overwritten; gradient is
  // logits, or pairs.
  virtual void cross_entropy(float* losses, Matrix logits, const int32_t* targets, float grad_scale,
                             Matrix gradient) = 0;

  // Distillation. q has the teachers' probabilities. losses[r] = (1 - share) times the loss above + share
  // KL(q || softmax); gradient = grad_scale (softmax - (1 - share) onehot - share q); both are 0 for kIgnoredTarget.
  virtual void soft_cross_entropy(float* losses, Matrix logits, ConstMatrix q, const int32_t* targets, float share,
                                  float grad_scale, Matrix gradient) = 0;
  // q = (onto ? q : 0) + share softmax(logits), row by row. Logits are overwritten; q may be logits where not onto.
  virtual void add_softmax(Matrix q, Matrix logits, float share, bool onto) = 0;
  // See RowScores. Where a logit is not finite, its row has a log-probability that is not finite, and no best ids.
  virtual void score(const RowScores& scores, ConstMatrix logits, const int32_t* targets) = 0;

  // sum x^2 over n floats
  virtual double sum_squares(const float* x, int64_t n) = 0;
  // One pass over the parameters of `ranges`: decoupled weight decay, Adam; g = 0 afterwards. p, g and m are arenas; v
  // has the second moments of these ranges alone, one behind the other.
  virtual void adamw(float* p, float* g, float* m, float* v, const AdamWRange* ranges, int64_t count,
                     const AdamWOptions& options) = 0;

  // sum_squares, then adamw. Where the norm is not finite, nothing is updated. A device whose memory is not the host's
  // decides this without asking the host.
  virtual Clip update(const Update& update);

  // g = scale g; m = momentum m + (1 - momentum) g; g = (1 - momentum) g + momentum m. Returns sum g^2.
  virtual double muon_momentum(Matrix g, Matrix m, float momentum, float scale) = 0;
  // y = s x; y may be pairs
  virtual void scale(Matrix y, ConstMatrix x, float s) = 0;
  // muon_momentum, then x = g / (1.01 |g| + 1e-6); x may be pairs. Likewise.
  virtual void muon_direction(Matrix x, Matrix g, Matrix m, float momentum, float grad_scale);
  // p -= lr (scale o + weight_decay p); o = 0
  virtual void muon(Matrix p, Matrix o, const MuonOptions& options) = 0;
  // y += rate (x - y) over n floats; where rate is 1, y = x
  virtual void average(float* y, const float* x, float rate, int64_t n) = 0;
};

constexpr int32_t kIgnoredTarget = -100, kMaskedToken = -1;

}  // namespace soma
