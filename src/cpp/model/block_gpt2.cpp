// The gpt2 block: h = x + attention(norm(x)); y = h + gelu(norm(h) W1 + b1) W2 + b2. Pre-norm with affine, biases
// everywhere (Radford et al. 2019). Norm and GELU outputs are computed again in backward instead of being kept.
#include "model/block.h"
#include "model/decode_weights.h"

namespace soma {

void gpt2_block_forward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                        float* output) {
  Ops& ops = x.ops;
  const int64_t m = x.rows(), c = x.config.d_model, f = x.config.d_ff;
  const float eps = x.config.norm_eps();
  const Matrix input{a.input, m, c}, normed{s.normed, m, c}, qkv{a.qkv, m, 3 * c}, heads{a.attention, m, c};
  const Matrix middle{a.middle, m, c}, hidden{a.hidden, m, f}, activated{s.activated, m, f}, out{output, m, c};

  ops.norm(normed, {a.mean1, a.rstd1}, input, w.norm1_w.data, w.norm1_b.data, eps);
  ops.matmul(qkv, normed, w.w_qkv, {.bias = w.b_qkv.data});
  ops.attention(heads, a.lse, qkv, x.attention_shape());
  ops.matmul(middle, heads, w.w_proj, {.bias = w.b_proj.data, .residual = a.input});

  ops.norm(normed, {a.mean2, a.rstd2}, middle, w.norm2_w.data, w.norm2_b.data, eps);
  ops.matmul(hidden, normed, w.w_fc, {.bias = w.b_fc.data, .gelu = s.activated});
  ops.matmul(out, activated, w.w_out, {.bias = w.b_out.data, .residual = a.middle});
}

void gpt2_block_backward(const BlockContext& x, const BlockParameters& w, const BlockParameters& dw,
                         const BlockActivations& a, const Scratch& s, const float*) {
  Ops& ops = x.ops;
  const int64_t m = x.rows(), c = x.config.d_model, f = x.config.d_ff;
  const float eps = x.config.norm_eps();
  const ConstMatrix input{a.input, m, c}, qkv{a.qkv, m, 3 * c}, heads{a.attention, m, c}, middle{a.middle, m, c};
  const Matrix normed{s.normed, m, c}, activated{s.activated, m, f};
  const Matrix d_stream{s.d_stream, m, c}, d_branch{s.d_branch, m, c}, d_hidden{s.d_hidden, m, f};
  const Matrix d_qkv{s.d_qkv, m, 3 * c};

  ops.matmul(d_hidden, d_stream, ConstMatrix(w.w_out).t(), {.gelu_input = a.hidden, .gelu_output = s.activated});
  ops.matmul(dw.w_out, ConstMatrix(activated).t(), d_stream, {.accumulate = true, .column_sums = dw.b_out.data});
  ops.norm(normed, {nullptr, nullptr}, middle, w.norm2_w.data, w.norm2_b.data, eps);
  ops.matmul(dw.w_fc, ConstMatrix(normed).t(), d_hidden, {.accumulate = true, .column_sums = dw.b_fc.data});
  ops.matmul(d_branch, d_hidden, ConstMatrix(w.w_fc).t());
  ops.norm_grad(dw.norm2_w.data, dw.norm2_b.data, d_branch, middle, {a.mean2, a.rstd2});
  ops.norm_backward(d_stream, d_branch, middle, {a.mean2, a.rstd2}, w.norm2_w.data, true);

  ops.matmul(dw.w_proj, heads.t(), d_stream, {.accumulate = true, .column_sums = dw.b_proj.data});
  ops.matmul(d_branch, d_stream, ConstMatrix(w.w_proj).t());
  ops.attention_backward(d_qkv, d_branch, qkv, heads, a.lse, x.attention_shape());
  ops.norm(normed, {nullptr, nullptr}, input, w.norm1_w.data, w.norm1_b.data, eps);
  ops.matmul(dw.w_qkv, ConstMatrix(normed).t(), d_qkv, {.accumulate = true, .column_sums = dw.b_qkv.data});
  ops.matmul(d_branch, d_qkv, ConstMatrix(w.w_qkv).t());
  ops.norm_grad(dw.norm1_w.data, dw.norm1_b.data, d_branch, input, {a.mean1, a.rstd1});
  ops.norm_backward(d_stream, d_branch, input, {a.mean1, a.rstd1}, w.norm1_w.data, true);
}

Rows gpt2_block_decode(const BlockDecodeContext& x, const BlockDecodeWeights& w, const DecodeBuffers& d, Rows stream,
                       const CacheRow* cache) {
  const Team& team = x.team;
  const float eps = x.config.norm_eps();

  Rows normed = decode_norm(team, d.normed1, stream, w.norm1_w, w.norm1_b, eps);
  decode_qkv(team, d.qkv, normed, w.w_qkv, w.b_qkv, x.heads(), d.prompt);
  decode_attention(team, d.heads, d.qkv, cache, x.heads(), d.scores);
  team.wait();
  decode_linear(team, d.middle, d.heads, w.w_proj, {.bias = w.b_proj, .residual = &stream}, d.prompt);
  team.wait();

  normed = decode_norm(team, d.normed2, d.middle, w.norm2_w, w.norm2_b, eps);
  decode_linear(team, d.hidden, normed, w.w_fc, {.bias = w.b_fc, .activation = RowActivation::kGelu}, d.prompt);
  team.wait();
  decode_linear(team, d.stream, d.hidden, w.w_out, {.bias = w.b_out, .residual = &d.middle}, d.prompt);
  team.wait();
  return d.stream;
}

}  // namespace soma
