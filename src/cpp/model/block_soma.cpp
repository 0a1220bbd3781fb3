// The soma block: h = norm(x + attention(x)); y = norm(h + relu(h W1 + b1) W2 + b2). Post-norm (Vaswani et al. 2017),
// norm without affine. The normalised output itself is saved, so a norm's backward needs rstd alone.
#include "model/block.h"
#include "model/decode_weights.h"

namespace soma {

void soma_block_forward(const BlockContext& x, const BlockParameters& w, const BlockActivations& a, const Scratch&,
                        float* output) {
  Ops& ops = x.ops;
  const int64_t m = x.rows(), c = x.config.d_model, f = x.config.d_ff;
  const float eps = x.config.norm_eps();
  const Matrix input{a.input, m, c}, qkv{a.qkv, m, 3 * c}, heads{a.attention, m, c}, middle{a.middle, m, c};
  const Matrix hidden{a.hidden, m, f}, out{output, m, c};

  ops.matmul(qkv, input, w.w_qkv);
  ops.attention(heads, a.lse, qkv, x.attention_shape());
  ops.matmul(middle, heads, w.w_proj, {.residual = a.input});
  ops.norm(middle, {nullptr, a.rstd1}, middle, nullptr, nullptr, eps);

  ops.matmul(hidden, middle, w.w_fc, {.bias = w.b_fc.data, .relu = true});
  ops.matmul(out, hidden, w.w_out, {.bias = w.b_out.data, .residual = a.middle});
  ops.norm(out, {nullptr, a.rstd2}, out, nullptr, nullptr, eps);
}

void soma_block_backward(const BlockContext& x, const BlockParameters& w, const BlockParameters& dw,
                         const BlockActivations& a, const Scratch& s, const float* output) {
  Ops& ops = x.ops;
  const int64_t m = x.rows(), c = x.config.d_model, f = x.config.d_ff;
  const ConstMatrix input{a.input, m, c}, qkv{a.qkv, m, 3 * c}, heads{a.attention, m, c}, middle{a.middle, m, c};
  const ConstMatrix hidden{a.hidden, m, f}, out{output, m, c};
  const Matrix d_stream{s.d_stream, m, c}, d_sum{s.d_branch, m, c}, d_hidden{s.d_hidden, m, f},
      d_qkv{s.d_qkv, m, 3 * c};

  ops.norm_backward(d_sum, d_stream, out, {nullptr, a.rstd2}, nullptr, false);
  ops.matmul(dw.w_out, hidden.t(), d_sum, {.accumulate = true, .column_sums = dw.b_out.data});
  ops.matmul(d_hidden, d_sum, ConstMatrix(w.w_out).t(), {.relu_output = a.hidden});
  ops.matmul(dw.w_fc, middle.t(), d_hidden, {.accumulate = true, .column_sums = dw.b_fc.data});
  ops.matmul(d_stream, d_hidden, ConstMatrix(w.w_fc).t(), {.residual = d_sum.data});

  ops.norm_backward(d_sum, d_stream, middle, {nullptr, a.rstd1}, nullptr, false);
  ops.matmul(dw.w_proj, heads.t(), d_sum, {.accumulate = true});
  ops.matmul(d_stream, d_sum, ConstMatrix(w.w_proj).t());  // gradient of the heads' output
  ops.attention_backward(d_qkv, d_stream, qkv, heads, a.lse, x.attention_shape());
  ops.matmul(dw.w_qkv, input.t(), d_qkv, {.accumulate = true});
  ops.matmul(d_stream, d_qkv, ConstMatrix(w.w_qkv).t(), {.residual = d_sum.data});
}

Rows soma_block_decode(const BlockDecodeContext& x, const BlockDecodeWeights& w, const DecodeBuffers& d, Rows stream,
                       const CacheRow* cache) {
  const Team& team = x.team;
  const float eps = x.config.norm_eps();

  decode_qkv(team, d.qkv, stream, w.w_qkv, nullptr, x.heads(), d.prompt);
  decode_attention(team, d.heads, d.qkv, cache, x.heads(), d.scores);
  team.wait();
  decode_linear(team, d.middle, d.heads, w.w_proj, {.residual = &stream}, d.prompt);
  team.wait();
  const Rows middle = decode_norm(team, d.normed1, d.middle, nullptr, nullptr, eps);

  decode_linear(team, d.hidden, middle, w.w_fc, {.bias = w.b_fc, .activation = RowActivation::kRelu}, d.prompt);
  team.wait();
  decode_linear(team, d.stream, d.hidden, w.w_out, {.bias = w.b_out, .residual = &middle}, d.prompt);
  team.wait();
  return decode_norm(team, d.normed2, d.stream, nullptr, nullptr, eps);
}

}  // namespace soma
