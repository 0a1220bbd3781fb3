// The soma block: h = norm(x + attention(x)); y = norm(h + relu(h W1 + b1) W2 + b2). Post-norm (Vaswani et al. 2017),
// norm without affine. The normalised output is saved, so the backward pass of a norm needs only rstd.
#include "model/blocks/block.h"

namespace soma {
namespace {

constexpr Activation kActivations[] = {Activation::kRelu};
constexpr BlockTraits kTraits{.name = "soma",
                              .final_norm = {},
                              .positions = Positions::kLearned,
                              .ties_head = false,
                              .norm_eps = 1e-6,
                              .tensors = {"wte", "wpe", "h.", nullptr, "lm_head"},
                              .activations = kActivations};

class SomaBlock final : public Block {
 public:
  SomaBlock() : Block(kTraits) {}

  void declare(const Declare& declare, const ModelConfig& config, BlockParameters& w) const override {
    const int64_t c = config.d_model, f = config.d_ff;
    declare.matrix("attn.w_qkv", w.w_qkv, c, config.qkv_dim(), Init::kNormal, qkv_parts(config));
    declare.matrix("attn.w_proj", w.w_proj, config.q_dim(), c, Init::kNormal, {.heads = Heads::kRows});
    declare.matrix("mlp.w_fc", w.w_fc, c, f);
    declare.vector("mlp.b_fc", w.b_fc, f, Init::kZero);
    declare.matrix("mlp.w_proj", w.w_out, f, c);
    declare.vector("mlp.b_proj", w.b_out, c, Init::kZero);
  }

  void place_activations(const BufferPlan& plan, BlockActivations& a) const override {
    const ModelConfig& config = plan.config;
    plan.qkv(a.qkv);
    plan.rows(a.attention, config.q_dim());
    plan.rows(a.lse, config.n_heads);
    plan.rows(a.middle, config.d_model);  // norm(input + attention)
    plan.operand(a.hidden, config.d_ff);  // after ReLU
    plan.rows(a.rstd1, 1);
    plan.rows(a.rstd2, 1);
  }

  // All gradients of the residual stream use one buffer in turn.
  void place_scratch(const BufferPlan& plan, Scratch& s) const override {
    if (!plan.for_backward) return;
    const int64_t c = plan.config.d_model;
    plan.rows(s.d_output, c);
    s.d_input = s.d_middle = s.d_output;
    plan.rows(s.d_branch1, c);  // gradients of the inputs of the norms
    plan.rows(s.d_branch2, c);
    plan.dropped(s.d_dropped1);
    plan.dropped(s.d_dropped2);
    plan.qkv(s.d_qkv);
    plan.operand(s.d_hidden, plan.config.d_ff);
  }

  void forward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch&,
               float* output) const override {
    Ops& ops = ctx.ops;
    const int64_t m = ctx.rows(), c = ctx.config.d_model, f = ctx.config.d_ff;
    const float eps = ctx.config.norm_eps();
    const Matrix input{a.input, m, c}, heads{a.attention, m, c}, middle{a.middle, m, c}, out{output, m, c};
    const Matrix qkv = ctx.qkv(a.qkv), hidden = ctx.operand(a.hidden, f);

    ops.matmul(qkv, input, w.w_qkv);
    ops.attention(heads, a.lse, qkv, ctx.attention_shape());
    ops.matmul(middle, heads, w.w_proj, {.residual = a.input, .dropout = ctx.dropout(DropoutSite::kAttention)});
    ops.norm(middle, {nullptr, a.rstd1}, middle, {}, eps);

    ops.matmul(hidden, middle, w.w_fc, {.bias = w.b_fc.data, .relu = true});
    ops.matmul(out, hidden, w.w_out,
               {.bias = w.b_out.data, .residual = a.middle, .dropout = ctx.dropout(DropoutSite::kMlp)});
    ops.norm(out, {nullptr, a.rstd2}, out, {}, eps);
  }

  void backward(const BlockContext& ctx, const BlockParameters& w, const BlockActivations& a, const Scratch& s,
                const float* output) const override {
    Ops& ops = ctx.ops;
    const int64_t m = ctx.rows(), c = ctx.config.d_model, f = ctx.config.d_ff;
    const ConstMatrix middle{a.middle, m, c}, out{output, m, c};
    const ConstMatrix qkv = ctx.qkv(a.qkv), hidden = ctx.operand(a.hidden, f);
    const Matrix d_output{s.d_output, m, c}, d_middle{s.d_middle, m, c}, d_input{s.d_input, m, c};
    const Matrix d_sum1{s.d_branch1, m, c}, d_sum2{s.d_branch2, m, c};
    const Matrix d_heads{s.d_input, m, c}, d_qkv = ctx.qkv(s.d_qkv), d_hidden = ctx.operand(s.d_hidden, f);

    ops.norm_backward(d_sum2, d_output, out, {nullptr, a.rstd2}, {}, nullptr);
    ops.matmul(d_hidden, ctx.drop_gradient(s.d_dropped2, s.d_branch2, DropoutSite::kMlp), ConstMatrix(w.w_out).t(),
               {.relu_output = &hidden});
    ops.matmul(d_middle, d_hidden, ConstMatrix(w.w_fc).t(), {.residual = d_sum2.data});

    ops.norm_backward(d_sum1, d_middle, middle, {nullptr, a.rstd1}, {}, nullptr);
    ops.matmul(d_heads, ctx.drop_gradient(s.d_dropped1, s.d_branch1, DropoutSite::kAttention),
               ConstMatrix(w.w_proj).t());
    ops.attention_backward(d_qkv, d_heads, {a.attention, m, c}, qkv, a.lse, ctx.attention_shape());
    ops.matmul(d_input, d_qkv, ConstMatrix(w.w_qkv).t(), {.residual = d_sum1.data});
  }

  void gradients(const BlockContext& ctx, const BlockParameters& dw, const BlockActivations& a,
                 const Scratch& s) const override {
    const int64_t m = ctx.rows(), c = ctx.config.d_model, f = ctx.config.d_ff;
    const ConstMatrix input{a.input, m, c}, heads{a.attention, m, c}, middle{a.middle, m, c};
    ctx.weight_gradients(
        {{dw.w_qkv, input, ctx.qkv(s.d_qkv), nullptr},
         {dw.w_proj, heads, ctx.dropped_gradient(s.d_dropped1, s.d_branch1), nullptr},
         {dw.w_fc, middle, ctx.operand(s.d_hidden, f), dw.b_fc.data},
         {dw.w_out, ctx.operand(a.hidden, f), ctx.dropped_gradient(s.d_dropped2, s.d_branch2), dw.b_out.data}});
  }

  Matrix decode(const BlockDecodeContext& ctx, const BlockDecodeWeights& w, const DecodeBuffers& d, Matrix stream,
                const CacheRow* cache) const override {
    DecodeOps& ops = ctx.ops;
    const float eps = ctx.config.norm_eps();

    ops.qkv(d.qkv, stream, w.w_qkv, nullptr, ctx.heads(), d.prompt);
    ops.attention(d.heads, d.qkv, cache, ctx.heads(), d.scores);
    ops.sync();
    ops.linear(d.middle, d.heads, w.w_proj, {.residual = &stream}, d.prompt);
    ops.sync();
    const Matrix middle = ops.norm(d.normed1, d.middle, {}, eps);

    ops.linear(d.hidden, middle, w.w_fc, {.bias = w.b_fc, .activation = Activation::kRelu}, d.prompt);
    ops.sync();
    ops.linear(d.stream, d.hidden, w.w_out, {.bias = w.b_out, .residual = &middle}, d.prompt);
    ops.sync();
    return ops.norm(d.normed2, d.stream, {}, eps);
  }
};

}  // namespace

const Block& soma_block() {
  static const SomaBlock block;
  return block;
}

}  // namespace soma
