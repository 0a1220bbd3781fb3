// The llama block: h = x + attention(norm(x)); y = h + (silu(g) u) W2, g | u = norm(h) W1. Pre-norm RMSNorm, rotary
// positions, grouped-query attention, no biases (Touvron et al. 2023). With qk_norm, each head of queries and keys goes
// through RMSNorm too, as in Qwen3. Backward computes the outputs of norms and of the activation again.
#include "model/blocks/block.h"

namespace soma {
namespace {

constexpr Activation kActivations[] = {Activation::kSilu};
constexpr BlockTraits kTraits{
    .name = "llama",
    .final_norm = {NormKind::kRmsNorm, /*affine=*/true},
    .positions = Positions::kRotary,
    .ties_head = false,
    .norm_eps = 1e-6,
    .tensors = {"model.embed_tokens.weight", nullptr, "model.layers.", "model.norm", "lm_head.weight"},
    .activations = kActivations,
    .options = {true, true, true, true, true}};

class LlamaBlock final : public Block {
 public:
  LlamaBlock() : Block(kTraits) {}

  void declare(const Declare& declare, const ModelConfig& config, BlockParameters& w) const override {
    const int64_t c = config.d_model, f = config.d_ff, d = config.head_size();
    declare.vector("input_layernorm.weight", w.norm1_w, c, Init::kOne);
    declare.matrix("self_attn.qkv_proj.weight", w.w_qkv, c, config.qkv_dim(), Init::kNormal, qkv_parts(config));
    if (config.qk_norm) {
      declare.vector("self_attn.q_norm.weight", w.q_norm, d, Init::kOne);
      declare.vector("self_attn.k_norm.weight", w.k_norm, d, Init::kOne);
    }
    declare.matrix("self_attn.o_proj.weight", w.w_proj, config.q_dim(), c, Init::kResidual, {.heads = Heads::kRows});
    declare.vector("post_attention_layernorm.weight", w.norm2_w, c, Init::kOne);
    declare.matrix("mlp.gate_up_proj.weight", w.w_fc, c, 2 * f, Init::kNormal, {.widths = {f, f}});
    declare.matrix("mlp.down_proj.weight", w.w_out, f, c, Init::kResidual);
  }

  void place_activations(const BufferPlan& plan, BlockActivations& a) const override {
    const ModelConfig& config = plan.config;
    plan.qkv(a.qkv);
    if (config.qk_norm) plan.rows(a.unrotated, config.qkv_dim());
    plan.rows(a.attention, config.q_dim());
    plan.rows(a.lse, config.n_heads);
    plan.rows(a.middle, config.d_model);   // input + attention
    plan.rows(a.hidden, 2 * config.d_ff);  // gate | up
    plan.rows(a.rstd1, 1);
    plan.rows(a.rstd2, 1);
  }

  void place_scratch(const BufferPlan& plan, Scratch& s) const override {
    const ModelConfig& config = plan.config;
    const int64_t c = config.d_model, d = config.head_size();
    if (!config.qk_norm && plan.qkv_operands().pairs) plan.rows(s.unrotated, config.qkv_dim());
    plan.operand(s.normed1, c);
    if (plan.for_backward) plan.operand(s.normed2, c);
    plan.operand(s.activated, config.d_ff);
    if (!plan.for_backward) return;
    for (float** gradient : {&s.d_output, &s.d_input, &s.d_middle}) plan.rows(*gradient, c);
    plan.rows(s.d_branch1, c);  // gradients of the outputs of the norms
    plan.rows(s.d_branch2, c);
    plan.dropped(s.d_dropped1);
    plan.dropped(s.d_dropped2);
    if (config.q_dim() != c) {
      plan.rows(s.d_heads, config.q_dim());
    } else {
      s.d_heads = s.d_branch1;
    }
    plan.qkv(s.d_qkv);
    plan.gate_up(s.d_hidden);
    if (config.qk_norm) {
      plan.sequences(s.d_q_gain, config.n_heads * d);
      plan.sequences(s.d_k_gain, config.kv_heads() * d);
    }
  }

  void forward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
               float* output) const override {
    Ops& ops = ctx.ops;
    const int64_t m = ctx.rows(), c = ctx.config.d_model, f = ctx.config.d_ff;
    const float eps = ctx.config.norm_eps();
    const Matrix input{a.input, m, c}, heads{a.attention, m, ctx.config.q_dim()}, middle{a.middle, m, c};
    const Matrix out{output, m, c}, hidden{a.hidden, m, 2 * f};
    const Matrix normed = ctx.operand(s.normed1, c), qkv = ctx.qkv(a.qkv), activated = ctx.operand(s.activated, f);
    const RotatedHeads rotated{rotation(ctx, w), ctx.attention_shape(), qkv};

    ops.norm(normed, {nullptr, a.rstd1}, input, rms(w.norm1_w), eps);
    ops.matmul(unrotated(ctx, a, s), normed, w.w_qkv, {.rotated = &rotated});
    ops.attention(heads, a.lse, qkv, ctx.attention_shape());
    ops.matmul(middle, heads, w.w_proj, {.residual = a.input, .dropout = ctx.dropout(DropoutSite::kAttention)});

    ops.norm(normed, {nullptr, a.rstd2}, middle, rms(w.norm2_w), eps);
    ops.matmul(hidden, normed, w.w_fc, {.swiglu = &activated});
    ops.matmul(out, activated, w.w_out, {.residual = a.middle, .dropout = ctx.dropout(DropoutSite::kMlp)});
  }

  void backward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                const float*) const override {
    Ops& ops = ctx.ops;
    const int64_t m = ctx.rows(), c = ctx.config.d_model, f = ctx.config.d_ff;
    const ConstMatrix input{a.input, m, c}, middle{a.middle, m, c}, qkv = ctx.qkv(a.qkv);
    const Matrix normed1 = ctx.operand(s.normed1, c), normed2 = ctx.operand(s.normed2, c);
    const Matrix d_middle{s.d_middle, m, c}, d_input{s.d_input, m, c};
    const Matrix d_normed1{s.d_branch1, m, c}, d_normed2{s.d_branch2, m, c};
    const Matrix d_heads{s.d_heads, m, ctx.config.q_dim()}, d_qkv = ctx.qkv(s.d_qkv),
                                                            d_hidden = ctx.gate_up(s.d_hidden);
    const SwigluGradient through{{a.hidden, m, 2 * f}, d_hidden, ctx.operand(s.activated, f)};
    const RotationGradient rotated{rotation(ctx, w), unrotated(ctx, a, s), s.d_q_gain, s.d_k_gain};

    ops.matmul({nullptr, m, f}, ctx.drop_gradient(s.d_dropped2, s.d_output, DropoutSite::kMlp),
               ConstMatrix(w.w_out).t(), {.swiglu_gradient = &through});
    ops.matmul(d_normed2, d_hidden, ConstMatrix(w.w_fc).t());
    ops.norm_backward(d_middle, d_normed2, middle, {nullptr, a.rstd2}, rms(w.norm2_w), s.d_output, &normed2);

    ops.matmul(d_heads, ctx.drop_gradient(s.d_dropped1, s.d_middle, DropoutSite::kAttention),
               ConstMatrix(w.w_proj).t());
    ops.attention_backward(d_qkv, d_heads, {a.attention, m, ctx.config.q_dim()}, qkv, a.lse, ctx.attention_shape(),
                           &rotated);
    ops.matmul(d_normed1, d_qkv, ConstMatrix(w.w_qkv).t());
    ops.norm_backward(d_input, d_normed1, input, {nullptr, a.rstd1}, rms(w.norm1_w), s.d_middle, &normed1);
  }

  void gradients(const BlockContext& ctx, const BlockParameters& dw, const BlockActivations& a,
                 const Scratch& s) const override {
    const int64_t m = ctx.rows(), c = ctx.config.d_model, f = ctx.config.d_ff, d = ctx.config.head_size();
    const ConstMatrix heads{a.attention, m, ctx.config.q_dim()};
    ctx.weight_gradients(
        {{dw.w_qkv, ctx.operand(s.normed1, c), ctx.qkv(s.d_qkv), nullptr},
         {dw.w_proj, heads, ctx.dropped_gradient(s.d_dropped1, s.d_middle), nullptr},
         {dw.w_fc, ctx.operand(s.normed2, c), ctx.gate_up(s.d_hidden), nullptr},
         {dw.w_out, ctx.operand(s.activated, f), ctx.dropped_gradient(s.d_dropped2, s.d_output), nullptr}});
    const NormKind kind = NormKind::kRmsNorm;
    ctx.ops.norm_grad(dw.norm1_w.data, nullptr, {s.d_branch1, m, c}, {a.input, m, c}, {nullptr, a.rstd1}, kind);
    ctx.ops.norm_grad(dw.norm2_w.data, nullptr, {s.d_branch2, m, c}, {a.middle, m, c}, {nullptr, a.rstd2}, kind);
    if (!ctx.config.qk_norm) return;
    ctx.ops.sum_rows(dw.q_norm.data, {s.d_q_gain, ctx.batch * ctx.config.n_heads, d});
    ctx.ops.sum_rows(dw.k_norm.data, {s.d_k_gain, ctx.batch * ctx.config.kv_heads(), d});
  }

  void place_decode(const DecodePlan& plan, DecodeBuffers& d) const override {
    d.middle = plan.rows(plan.config.d_model);
    d.qkv = plan.rows(plan.config.qkv_dim());
    d.heads = plan.rows(plan.config.q_dim());
    d.hidden = plan.rows(2 * plan.config.d_ff);
    d.activated = plan.rows(plan.config.d_ff);
  }

  Matrix decode(const BlockDecodeContext& ctx, const BlockDecodeWeights& w, const DecodeBuffers& d, Matrix stream,
                const CacheRow* cache) const override {
    DecodeOps& ops = ctx.ops;
    const float eps = ctx.config.norm_eps();
    const Rotation rotation{ctx.turns, w.q_norm, w.k_norm, eps};

    Matrix normed = ops.norm(d.normed1, stream, {w.norm1_w, nullptr, NormKind::kRmsNorm}, eps);
    ops.qkv(d.qkv, normed, w.w_qkv, nullptr, ctx.heads(), d.prompt);
    ops.attention(d.heads, d.qkv, cache, ctx.heads(), d.scores, &rotation);
    ops.sync();
    ops.linear(d.middle, d.heads, w.w_proj, {.residual = &stream}, d.prompt);
    ops.sync();

    normed = ops.norm(d.normed2, d.middle, {w.norm2_w, nullptr, NormKind::kRmsNorm}, eps);
    ops.swiglu(d.activated, d.hidden, normed, w.w_fc, d.prompt);
    ops.sync();
    ops.linear(d.stream, d.activated, w.w_out, {.residual = &d.middle}, d.prompt);
    ops.sync();
    return d.stream;
  }

 private:
  static NormWeights rms(const Tensor& gain) { return {gain.data, nullptr, NormKind::kRmsNorm}; }
  static Rotation rotation(const BlockContext& ctx, const BlockParameters& w) {
    return {ctx.turns, w.q_norm.data, w.k_norm.data, ctx.config.norm_eps()};
  }
  // Queries, keys and values before the rotation: saved if heads are normed, else in scratch beside pairs, else in the
  // memory of the rotated ones.
  static Matrix unrotated(const BlockContext& ctx, const BlockActivations& a, const Scratch& s) {
    float* const data = a.unrotated != nullptr ? a.unrotated : s.unrotated != nullptr ? s.unrotated : a.qkv;
    return {data, ctx.rows(), ctx.config.qkv_dim()};
  }
};

}  // namespace

const Block& llama_block() {
  static const LlamaBlock block;
  return block;
}

}  // namespace soma
