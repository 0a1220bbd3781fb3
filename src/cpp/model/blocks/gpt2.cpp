// The gpt2 block: h = x + attention(norm(x)); y = h + gelu(norm(h) W1 + b1) W2 + b2. Pre-norm with affine, biases
// everywhere (Radford et al. 2019). Backward computes the outputs of norms and GELU again. With ReLU in the place of
// GELU, the output of ReLU is saved, which suffices for backward.
#include "model/blocks/block.h"

namespace soma {
namespace {

constexpr Activation kActivations[] = {Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu};
constexpr BlockTraits kTraits{.name = "gpt2",
                              .final_norm = {NormKind::kLayerNorm, /*affine=*/true},
                              .positions = Positions::kLearned,
                              .ties_head = true,
                              .norm_eps = 1e-5,
                              .tensors = {"transformer.wte.weight", "transformer.wpe.weight", "transformer.h.",
                                          "transformer.ln_f", "lm_head.weight"},
                              .activations = kActivations,
                              .scales_attention = true};

bool has_relu(const ModelConfig& config) { return config.activation == Activation::kRelu; }
bool has_erf(const ModelConfig& config) { return config.activation == Activation::kGeluErf; }

// The output of the activation.
Matrix activated_rows(const BlockContext& ctx, const BlockActivations& a, const Scratch& s) {
  return ctx.operand(has_relu(ctx.config) ? a.hidden : s.activated, ctx.config.d_ff);
}

class Gpt2Block final : public Block {
 public:
  Gpt2Block() : Block(kTraits) {}

  void declare(const Declare& declare, const ModelConfig& config, BlockParameters& w) const override {
    const int64_t c = config.d_model, f = config.d_ff;
    declare.vector("ln_1.weight", w.norm1_w, c, Init::kOne);
    declare.vector("ln_1.bias", w.norm1_b, c, Init::kZero);
    declare.matrix("attn.c_attn.weight", w.w_qkv, c, config.qkv_dim(), Init::kNormal, qkv_parts(config));
    declare.vector("attn.c_attn.bias", w.b_qkv, config.qkv_dim(), Init::kZero);
    declare.matrix("attn.c_proj.weight", w.w_proj, config.q_dim(), c, Init::kResidual, {.heads = Heads::kRows});
    declare.vector("attn.c_proj.bias", w.b_proj, c, Init::kZero);
    declare.vector("ln_2.weight", w.norm2_w, c, Init::kOne);
    declare.vector("ln_2.bias", w.norm2_b, c, Init::kZero);
    declare.matrix("mlp.c_fc.weight", w.w_fc, c, f);
    declare.vector("mlp.c_fc.bias", w.b_fc, f, Init::kZero);
    declare.matrix("mlp.c_proj.weight", w.w_out, f, c, Init::kResidual);
    declare.vector("mlp.c_proj.bias", w.b_out, c, Init::kZero);
  }

  void place_activations(const BufferPlan& plan, BlockActivations& a) const override {
    const ModelConfig& config = plan.config;
    plan.qkv(a.qkv);
    plan.rows(a.attention, config.q_dim());
    plan.rows(a.lse, config.n_heads);
    plan.rows(a.middle, config.d_model);  // input + attention
    // The output of ReLU, or the input of GELU.
    has_relu(config) ? plan.operand(a.hidden, config.d_ff) : plan.rows(a.hidden, config.d_ff);
    for (float** statistics : {&a.mean1, &a.rstd1, &a.mean2, &a.rstd2}) plan.rows(*statistics, 1);
  }

  void place_scratch(const BufferPlan& plan, Scratch& s) const override {
    const int64_t c = plan.config.d_model, f = plan.config.d_ff;
    plan.operand(s.normed1, c);
    if (plan.for_backward) plan.operand(s.normed2, c);
    if (!has_relu(plan.config)) plan.operand(s.activated, f);
    if (!plan.for_backward) return;
    for (float** gradient : {&s.d_output, &s.d_input, &s.d_middle}) plan.rows(*gradient, c);
    plan.rows(s.d_branch1, c);  // gradients of the outputs of the norms
    plan.rows(s.d_branch2, c);
    plan.dropped(s.d_dropped1);
    plan.dropped(s.d_dropped2);
    plan.qkv(s.d_qkv);
    plan.operand(s.d_hidden, f);
  }

  void forward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
               float* output) const override {
    Ops& ops = ctx.ops;
    const int64_t m = ctx.rows(), c = ctx.config.d_model, f = ctx.config.d_ff;
    const float eps = ctx.config.norm_eps();
    const Matrix input{a.input, m, c}, heads{a.attention, m, c}, middle{a.middle, m, c}, out{output, m, c};
    const Matrix normed = ctx.operand(s.normed1, c), qkv = ctx.qkv(a.qkv), activated = activated_rows(ctx, a, s);

    ops.norm(normed, {a.mean1, a.rstd1}, input, {w.norm1_w.data, w.norm1_b.data}, eps);
    ops.matmul(qkv, normed, w.w_qkv, {.bias = w.b_qkv.data});
    ops.attention(heads, a.lse, qkv, ctx.attention_shape());
    ops.matmul(middle, heads, w.w_proj,
               {.bias = w.b_proj.data, .residual = a.input, .dropout = ctx.dropout(DropoutSite::kAttention)});

    ops.norm(normed, {a.mean2, a.rstd2}, middle, {w.norm2_w.data, w.norm2_b.data}, eps);
    if (has_relu(ctx.config)) {
      ops.matmul(activated, normed, w.w_fc, {.bias = w.b_fc.data, .relu = true});
    } else {
      ops.matmul({a.hidden, m, f}, normed, w.w_fc,
                 {.bias = w.b_fc.data, .gelu = &activated, .gelu_erf = has_erf(ctx.config)});
    }
    ops.matmul(out, activated, w.w_out,
               {.bias = w.b_out.data, .residual = a.middle, .dropout = ctx.dropout(DropoutSite::kMlp)});
  }

  void backward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                const float*) const override {
    Ops& ops = ctx.ops;
    const int64_t m = ctx.rows(), c = ctx.config.d_model, f = ctx.config.d_ff;
    const ConstMatrix input{a.input, m, c}, middle{a.middle, m, c}, qkv = ctx.qkv(a.qkv);
    const NormWeights norm1{w.norm1_w.data, w.norm1_b.data}, norm2{w.norm2_w.data, w.norm2_b.data};
    const Matrix normed1 = ctx.operand(s.normed1, c), normed2 = ctx.operand(s.normed2, c);
    const Matrix activated = activated_rows(ctx, a, s);
    const ConstMatrix relu_output = activated;
    const Matrix d_middle{s.d_middle, m, c}, d_input{s.d_input, m, c};
    const Matrix d_normed1{s.d_branch1, m, c}, d_normed2{s.d_branch2, m, c};
    const Matrix d_heads{s.d_branch1, m, c}, d_qkv = ctx.qkv(s.d_qkv), d_hidden = ctx.operand(s.d_hidden, f);

    ops.matmul(d_hidden, ctx.drop_gradient(s.d_dropped2, s.d_output, DropoutSite::kMlp), ConstMatrix(w.w_out).t(),
               has_relu(ctx.config)
                   ? Epilogue{.relu_output = &relu_output}
                   : Epilogue{.gelu_erf = has_erf(ctx.config), .gelu_input = a.hidden, .gelu_output = &activated});
    ops.matmul(d_normed2, d_hidden, ConstMatrix(w.w_fc).t());
    ops.norm_backward(d_middle, d_normed2, middle, {a.mean2, a.rstd2}, norm2, s.d_output, &normed2);

    ops.matmul(d_heads, ctx.drop_gradient(s.d_dropped1, s.d_middle, DropoutSite::kAttention),
               ConstMatrix(w.w_proj).t());
    ops.attention_backward(d_qkv, d_heads, {a.attention, m, c}, qkv, a.lse, ctx.attention_shape());
    ops.matmul(d_normed1, d_qkv, ConstMatrix(w.w_qkv).t());
    ops.norm_backward(d_input, d_normed1, input, {a.mean1, a.rstd1}, norm1, s.d_middle, &normed1);
  }

  void gradients(const BlockContext& ctx, const BlockParameters& dw, const BlockActivations& a,
                 const Scratch& s) const override {
    const int64_t m = ctx.rows(), c = ctx.config.d_model, f = ctx.config.d_ff;
    const ConstMatrix heads{a.attention, m, c};
    ctx.weight_gradients(
        {{dw.w_qkv, ctx.operand(s.normed1, c), ctx.qkv(s.d_qkv), dw.b_qkv.data},
         {dw.w_proj, heads, ctx.dropped_gradient(s.d_dropped1, s.d_middle), dw.b_proj.data},
         {dw.w_fc, ctx.operand(s.normed2, c), ctx.operand(s.d_hidden, f), dw.b_fc.data},
         {dw.w_out, activated_rows(ctx, a, s), ctx.dropped_gradient(s.d_dropped2, s.d_output), dw.b_out.data}});
    ctx.ops.norm_grad(dw.norm1_w.data, dw.norm1_b.data, {s.d_branch1, m, c}, {a.input, m, c}, {a.mean1, a.rstd1});
    ctx.ops.norm_grad(dw.norm2_w.data, dw.norm2_b.data, {s.d_branch2, m, c}, {a.middle, m, c}, {a.mean2, a.rstd2});
  }

  Matrix decode(const BlockDecodeContext& ctx, const BlockDecodeWeights& w, const DecodeBuffers& d, Matrix stream,
                const CacheRow* cache) const override {
    DecodeOps& ops = ctx.ops;
    const float eps = ctx.config.norm_eps();

    Matrix normed = ops.norm(d.normed1, stream, {w.norm1_w, w.norm1_b}, eps);
    ops.qkv(d.qkv, normed, w.w_qkv, w.b_qkv, ctx.heads(), d.prompt);
    ops.attention(d.heads, d.qkv, cache, ctx.heads(), d.scores);
    ops.sync();
    ops.linear(d.middle, d.heads, w.w_proj, {.bias = w.b_proj, .residual = &stream}, d.prompt);
    ops.sync();

    normed = ops.norm(d.normed2, d.middle, {w.norm2_w, w.norm2_b}, eps);
    ops.linear(d.hidden, normed, w.w_fc, {.bias = w.b_fc, .activation = ctx.config.activation}, d.prompt);
    ops.sync();
    ops.linear(d.stream, d.hidden, w.w_out, {.bias = w.b_out, .residual = &d.middle}, d.prompt);
    ops.sync();
    return d.stream;
  }
};

}  // namespace

const Block& gpt2_block() {
  static const Gpt2Block block;
  return block;
}

}  // namespace soma
