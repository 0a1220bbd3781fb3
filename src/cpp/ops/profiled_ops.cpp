// The cost of every op, beside its timed call. Operations on an element are counted as the kernels write them: an
// addition or a multiplication is 1, a fused multiply-add 2. Bytes are those of the operands.
#include "ops/profiled_ops.h"

#include <algorithm>
#include <chrono>
#include <type_traits>

namespace soma {
namespace {

// Floating-point operations of one element, from the equations in kernels/*_kernels.h and the polynomial of exp.
constexpr double kExp = 22, kSoftmax = kExp + 6, kDivergence = 22, kGelu = kExp + 7, kGeluBackward = kGelu + 9;
constexpr double kGeluErf = kExp + 44, kGeluErfBackward = kGeluErf + 4;
constexpr double kNorm = 8, kNormBackward = 14, kNormGrad = 5, kAdamW = 18, kMomentum = 8, kMuon = 4;
constexpr double kRmsNorm = 4, kRmsNormBackward = 10, kRmsNormGrad = 3, kRotation = 3, kRotationNorm = 4;
constexpr double kRank = 2;  // a difference and a sum
constexpr double kSwiglu = kExp + 5, kSwigluBackward = kSwiglu + 8;
constexpr double kDropout = 1;  // and ten operations on integers
constexpr double kFloat = sizeof(float), kId = sizeof(int32_t);

double size(const ConstMatrix& x) { return static_cast<double>(x.rows) * static_cast<double>(x.cols); }
double bytes(const ConstMatrix& x) { return (x.pairs ? kFloat / 2 : kFloat) * size(x); }

// Pairs of a query and an earlier or equal position, over all heads.
double causal_pairs(const AttentionShape& s) {
  const auto t = static_cast<double>(s.length);
  return static_cast<double>(s.batch * s.heads) * t * (t + 1) / 2;
}

// The count of numbers in q and k.
double rotated(const AttentionShape& s) {
  return static_cast<double>(s.batch * s.length) * static_cast<double>(s.q_dim() + s.kv_dim());
}

// The cost of a product. Appends the parts of its epilogue to its name.
OpCost product_cost(const Matrix& c, const ConstMatrix& a, const ConstMatrix& b, const Epilogue& e, std::string* name) {
  const double n = size(c), cols = static_cast<double>(c.cols);
  const double computed = e.symmetric ? (n + cols) / 2 : n;
  OpCost cost{.products = 2 * computed * static_cast<double>(a.width()), .read = bytes(a) + bytes(b)};
  cost.written = c.data != nullptr ? bytes(c) : 0;
  const auto part = [&](bool present, const char* label, double flops, double read, double written) {
    if (!present) return;
    *name += label;
    cost.flops += flops;
    cost.read += kFloat * read;
    cost.written += kFloat * written;
  };
  // Names every field of Epilogue: a new field does not compile without its cost.
  const auto& [bias, residual, dropout, relu, gelu, gelu_erf, gelu_input, gelu_output, relu_output, swiglu, rotation,
               swiglu_gradient, accumulate, column_sums, symmetric, quadratic] = e;
  part(accumulate, " +=", n, n, 0);
  part(bias != nullptr, " +bias", n, cols, 0);
  part(residual != nullptr, " +residual", n, n, 0);
  part(bool(dropout), " dropout", n * kDropout, 0, 0);
  part(relu, " relu", n, 0, 0);
  part(gelu != nullptr, gelu_erf ? " gelu_erf" : " gelu", n * (gelu_erf ? kGeluErf : kGelu), 0,
       gelu != nullptr ? bytes(*gelu) / kFloat : 0);
  part(gelu_input != nullptr, gelu_erf ? " gelu_erf'" : " gelu'", n * (gelu_erf ? kGeluErfBackward : kGeluBackward), n,
       0);
  part(gelu_output != nullptr, "", 0, 0, gelu_output != nullptr ? bytes(*gelu_output) / kFloat : 0);
  part(relu_output != nullptr, " relu'", n, relu_output != nullptr ? bytes(*relu_output) / kFloat : 0, 0);
  part(swiglu != nullptr, " swiglu", n / 2 * kSwiglu, 0, swiglu != nullptr ? bytes(*swiglu) / kFloat : 0);
  if (rotation != nullptr) {
    const bool norm = rotation->rotation.q_gain != nullptr;
    const double written = rotation->qkv.data != c.data ? bytes(rotation->qkv) / kFloat : 0;
    part(true, norm ? " norm rotate" : " rotate", rotated(rotation->shape) * (kRotation + (norm ? kRotationNorm : 0)),
         0, written);
  }
  if (swiglu_gradient != nullptr) {
    part(true, " swiglu'", n * kSwigluBackward, 2 * n,
         (bytes(swiglu_gradient->d_hidden) + bytes(swiglu_gradient->output)) / kFloat);
  }
  part(column_sums != nullptr, " +sums", size(b), cols, cols);
  part(symmetric, " symmetric", 0, 0, 0);
  part(quadratic != nullptr, " quadratic", 3 * computed, computed, 0);
  return cost;
}

}  // namespace

void add_record(std::vector<OpRecord>* records, const OpRecord& more) {
  auto record = std::find_if(records->begin(), records->end(),
                             [&](const OpRecord& r) { return r.shape == more.shape && r.op == more.op; });
  if (record == records->end()) {
    records->push_back(more);
    return;
  }
  record->calls += more.calls;
  record->seconds += more.seconds;
  record->cost += more.cost;
}

template <typename Call>
auto ProfiledOps::timed(std::string op, const char* group, std::array<int64_t, 4> shape, const OpCost& cost,
                        Call&& call) {
  const auto begin = std::chrono::steady_clock::now();
  const auto done = [&] {
    device_.finish();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    add_record(&records_, {std::move(op), group, shape, 1, seconds, cost});
  };
  if constexpr (std::is_void_v<decltype(call())>) {
    call();
    done();
  } else {
    const auto result = call();
    done();
    return result;
  }
}

void ProfiledOps::matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& e) {
  std::string name = std::string("matmul ") + (a.transposed ? 't' : 'n') + (b.transposed ? 't' : 'n');
  const OpCost cost = product_cost(c, a, b, e, &name);
  timed(std::move(name), "products", {c.rows, c.cols, a.width()}, cost, [&] { inner_.matmul(c, a, b, e); });
}

// One record for all gradients. Its shape: rows, count, columns of all left operands, columns of all right operands.
void ProfiledOps::weight_gradients(const WeightGradient* list, int64_t count) {
  OpCost cost{};
  int64_t left = 0, right = 0;
  for (const WeightGradient* g = list; g < list + count; ++g) {
    std::string name;
    cost += product_cost(g->dw, g->x.t(), g->dy, {.accumulate = true, .column_sums = g->column_sums}, &name);
    left += g->x.cols;
    right += g->dy.cols;
  }
  timed("weight gradients", "products", {list->x.rows, count, left, right}, cost,
        [&] { inner_.weight_gradients(list, count); });
}

void ProfiledOps::pack(const Packing* list, int64_t count) {
  OpCost cost{};
  for (const Packing* l = list; l < list + count; ++l) {
    cost.read += kFloat * size(l->b);
    cost.written += kFloat * static_cast<double>(inner_.packed_floats(l->b.height(), l->b.width()));
  }
  timed("pack weights", "pack", {count}, cost, [&] { inner_.pack(list, count); });
}

void ProfiledOps::norm(Matrix y, NormStats saved, ConstMatrix x, const NormWeights& w, float eps) {
  const double flops = w.kind == NormKind::kRmsNorm ? kRmsNorm : kNorm;
  const OpCost cost{.flops = flops * size(x), .read = kFloat * size(x), .written = bytes(y)};
  timed("norm", "norms", {x.rows, x.cols}, cost, [&] { inner_.norm(y, saved, x, w, eps); });
}

void ProfiledOps::norm_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, NormStats saved, const NormWeights& w,
                                const float* residual, const Matrix* again) {
  const double flops = w.kind == NormKind::kRmsNorm ? kRmsNormBackward : kNormBackward;
  const OpCost cost{.flops = (flops + (again != nullptr ? 2 : 0)) * size(x),
                    .read = kFloat * size(x) * (residual != nullptr ? 3 : 2),
                    .written = kFloat * size(dx) + (again != nullptr ? bytes(*again) : 0)};
  timed("norm_backward", "norms", {x.rows, x.cols}, cost,
        [&] { inner_.norm_backward(dx, dy, x, saved, w, residual, again); });
}

void ProfiledOps::norm_grad(float* dgamma, float* dbeta, ConstMatrix dy, ConstMatrix x, NormStats saved,
                            NormKind kind) {
  const double flops = kind == NormKind::kRmsNorm ? kRmsNormGrad : kNormGrad, vectors = dbeta != nullptr ? 2 : 1;
  const OpCost cost{.flops = flops * size(x),
                    .read = kFloat * 2 * size(x),
                    .written = kFloat * vectors * static_cast<double>(x.cols)};
  timed("norm_grad", "norms", {x.rows, x.cols}, cost, [&] { inner_.norm_grad(dgamma, dbeta, dy, x, saved, kind); });
}

void ProfiledOps::sum_rows(float* out, ConstMatrix x) {
  const auto cols = static_cast<double>(x.cols);
  const OpCost cost{.flops = size(x), .read = kFloat * (size(x) + cols), .written = kFloat * cols};
  timed("sum_rows", "norms", {x.rows, x.cols}, cost, [&] { inner_.sum_rows(out, x); });
}

// Two products, q k^T and p v.
void ProfiledOps::attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& s) {
  const double pairs = causal_pairs(s);
  const OpCost cost{.products = 2 * 2 * pairs * static_cast<double>(s.head_size),
                    .flops = (kExp + 4) * pairs + size(out),
                    .read = bytes(qkv),
                    .written = kFloat * size(out)};
  timed("attention", "attention", {s.batch, s.length, s.heads, s.head_size}, cost,
        [&] { inner_.attention(out, lse, qkv, s); });
}

// Five products: q k^T again, dp = dout v^T, dv = p^T dout, dq = ds k, dk = ds^T q.
void ProfiledOps::attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix out, ConstMatrix qkv, const float* lse,
                                     const AttentionShape& s, const RotationGradient* rotation) {
  const double pairs = causal_pairs(s);
  OpCost cost{.products = 5 * 2 * pairs * static_cast<double>(s.head_size),
              .flops = (kExp + 8) * pairs,
              .read = bytes(qkv) + bytes(dout),
              .written = bytes(dqkv)};
  if (rotation != nullptr) {
    const bool norm = rotation->rotation.q_gain != nullptr;
    cost.flops += rotated(s) * (kRotation + (norm ? kRmsNormBackward + kRmsNormGrad : 0));
    cost.read += norm ? kFloat * rotated(s) : 0;
  }
  timed("attention_backward", "attention", {s.batch, s.length, s.heads, s.head_size}, cost,
        [&] { inner_.attention_backward(dqkv, dout, out, qkv, lse, s, rotation); });
}

void ProfiledOps::dropout(Matrix y, ConstMatrix x, const Dropout& dropout) {
  const OpCost cost{.flops = kDropout * size(x), .read = bytes(x), .written = bytes(y)};
  timed("dropout", "dropout", {x.rows, x.cols}, cost, [&] { inner_.dropout(y, x, dropout); });
}

void ProfiledOps::embed(Matrix out, const int32_t* ids, ConstMatrix wte, const ConstMatrix* wpe, int64_t length,
                        const Dropout& dropout) {
  const double tables = wpe != nullptr ? 2 : 1;
  const OpCost cost{.flops = (tables - 1 + (dropout ? kDropout : 0)) * size(out),
                    .read = kFloat * tables * size(out) + kId * static_cast<double>(out.rows),
                    .written = kFloat * size(out)};
  timed(dropout ? "embed dropout" : "embed", "embedding", {out.rows, out.cols}, cost,
        [&] { inner_.embed(out, ids, wte, wpe, length, dropout); });
}

void ProfiledOps::embed_backward(Matrix dwte, const Matrix* dwpe, ConstMatrix dout, const int32_t* ids,
                                 const int32_t* on_host, int64_t length) {
  const double tables = dwpe != nullptr ? 2 : 1;
  const OpCost cost{.flops = tables * size(dout),
                    .read = kFloat * (tables + 1) * size(dout) + kId * static_cast<double>(dout.rows),
                    .written = kFloat * tables * size(dout)};
  timed("embed_backward", "embedding", {dout.rows, dout.cols}, cost,
        [&] { inner_.embed_backward(dwte, dwpe, dout, ids, on_host, length); });
}

void ProfiledOps::cross_entropy(float* losses, Matrix logits, const int32_t* targets, float grad_scale,
                                Matrix gradient) {
  const OpCost cost{.flops = kSoftmax * size(logits),
                    .read = kFloat * size(logits) + kId * static_cast<double>(logits.rows),
                    .written = grad_scale != 0.0f ? bytes(gradient) : 0};
  timed("cross_entropy", "loss", {logits.rows, logits.cols}, cost,
        [&] { inner_.cross_entropy(losses, logits, targets, grad_scale, gradient); });
}

void ProfiledOps::soft_cross_entropy(float* losses, Matrix logits, ConstMatrix q, const int32_t* targets, float share,
                                     float grad_scale, Matrix gradient) {
  const OpCost cost{.flops = (kSoftmax + kDivergence) * size(logits),
                    .read = kFloat * 2 * size(logits) + kId * static_cast<double>(logits.rows),
                    .written = bytes(gradient)};
  timed("soft_cross_entropy", "loss", {logits.rows, logits.cols}, cost,
        [&] { inner_.soft_cross_entropy(losses, logits, q, targets, share, grad_scale, gradient); });
}

void ProfiledOps::add_softmax(Matrix q, Matrix logits, float share, bool onto) {
  const double n = size(logits);
  const OpCost cost{
      .flops = (kSoftmax + (onto ? 1 : 0)) * n, .read = kFloat * (onto ? 2 : 1) * n, .written = kFloat * n};
  timed("add_softmax", "loss", {logits.rows, logits.cols}, cost, [&] { inner_.add_softmax(q, logits, share, onto); });
}

// The best ids are looked for among all.
void ProfiledOps::score(const RowScores& scores, ConstMatrix logits, const int32_t* targets) {
  const double n = size(logits), rows = static_cast<double>(logits.rows), top = static_cast<double>(scores.top);
  const OpCost cost{.flops = (kSoftmax + kRank + (scores.top > 0 ? 1 : 0)) * n,
                    .read = kFloat * n + kId * rows,
                    .written = (kFloat + kId) * rows * (1 + top)};
  timed("score", "loss", {logits.rows, logits.cols, scores.top}, cost, [&] { inner_.score(scores, logits, targets); });
}

double ProfiledOps::sum_squares(const float* x, int64_t n) {
  const auto count = static_cast<double>(n);
  return timed("sum_squares", "optimizer", {n}, {.flops = 2 * count, .read = kFloat * count},
               [&] { return inner_.sum_squares(x, n); });
}

void ProfiledOps::adamw(float* p, float* g, float* m, float* v, const AdamWRange* ranges, int64_t count,
                        const AdamWOptions& options) {
  int64_t size = 0;
  for (const AdamWRange* r = ranges; r < ranges + count; ++r) size += r->size;
  const auto n = static_cast<double>(size);
  const OpCost cost{.flops = kAdamW * n, .read = kFloat * 4 * n, .written = kFloat * 4 * n};
  timed("adamw", "optimizer", {size}, cost, [&] { inner_.adamw(p, g, m, v, ranges, count, options); });
}

double ProfiledOps::muon_momentum(Matrix g, Matrix m, float momentum, float scale) {
  const double n = size(g);
  return timed("muon_momentum", "optimizer", {g.rows, g.cols},
               {.flops = kMomentum * n, .read = kFloat * 2 * n, .written = kFloat * 2 * n},
               [&] { return inner_.muon_momentum(g, m, momentum, scale); });
}

void ProfiledOps::scale(Matrix y, ConstMatrix x, float s) {
  const OpCost cost{.flops = size(x), .read = bytes(x), .written = bytes(y)};
  timed("scale", "optimizer", {x.rows, x.cols}, cost, [&] { inner_.scale(y, x, s); });
}

void ProfiledOps::muon(Matrix p, Matrix o, const MuonOptions& options) {
  const double n = size(p);
  const OpCost cost{.flops = kMuon * n, .read = kFloat * 2 * n, .written = kFloat * 2 * n};
  timed("muon", "optimizer", {p.rows, p.cols}, cost, [&] { inner_.muon(p, o, options); });
}

void ProfiledOps::average(float* y, const float* x, float rate, int64_t n) {
  const auto count = static_cast<double>(n);
  const OpCost cost{.flops = 3 * count, .read = kFloat * 2 * count, .written = kFloat * count};
  timed("average", "optimizer", {n}, cost, [&] { inner_.average(y, x, rate, n); });
}

}  // namespace soma
