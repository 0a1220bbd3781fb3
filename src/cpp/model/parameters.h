// Every tensor of a model, declared once: visit() drives sizing, carving, initialisation, weight decay, checkpoint
// names and Python views. Values, gradients and both moments share this plan, each in an arena of its own.
#pragma once

#include <string>
#include <vector>

#include "base/arena.h"
#include "model/config.h"
#include "ops/ops.h"

namespace soma {

struct Tensor {
  float* data = nullptr;
  int64_t rows = 0, cols = 0;  // a vector has rows == 1 and is_vector
  bool is_vector = false;
  float *panels = nullptr, *panels_transposed = nullptr;  // see ConstMatrix

  int64_t size() const { return rows * cols; }
  operator Matrix() const { return {data, rows, cols}; }
  operator ConstMatrix() const {
    ConstMatrix m{data, rows, cols};
    m.panels = panels;
    m.panels_transposed = panels_transposed;
    return m;
  }
};

// y = x w + b: w is (in, out). Fields that a block style lacks stay null.
struct BlockParameters {
  Tensor norm1_w, norm1_b;
  Tensor w_qkv, b_qkv, w_proj, b_proj;  // attention: C -> 3C (q | k | v) and back C -> C
  Tensor norm2_w, norm2_b;
  Tensor w_fc, b_fc, w_out, b_out;  // mlp: C -> F -> C
};

enum class Init { kNormal, kResidual, kZero, kOne };

struct Parameters {
  Tensor wte, wpe;  // (V, C), (max_seq_len, C)
  std::vector<BlockParameters> blocks;
  Tensor norm_w, norm_b;  // gpt2: after the last block
  Tensor head;            // (V, C); the same memory as wte where tied

  // Carves the plan out of `base` (null: only shapes). Returns the floats it takes.
  int64_t carve(const ModelConfig& config, float* base);

  // f(name, tensor, init) for every tensor of its own, in the order of the arena.
  template <typename F>
  void visit(const ModelConfig& config, F&& f);
};

struct ParameterInfo {
  std::string name;
  int64_t offset;  // floats from the start of the arena
  int64_t rows, cols;
  bool is_vector;
  Init init;
  int64_t size() const { return rows * cols; }
  bool decays() const { return !is_vector; }  // weight decay is for matrices and embeddings only
};

// The plan as a list.
std::vector<ParameterInfo> describe_parameters(const ModelConfig& config);

// Initial values: N(0, 0.02) for matrices and embeddings (gpt2: N(0, 0.02 / sqrt(2 n_layers)) for projections back into
// the residual stream, Radford et al. 2019), 1 for norm weights, 0 for biases. Tensor i draws from stream i of the
// seed.
void initialize_parameters(const ModelConfig& config, float* arena, uint64_t seed);

template <typename F>
void Parameters::visit(const ModelConfig& config, F&& f) {
  const bool gpt2 = config.block == BlockStyle::kGpt2;
  const int64_t c = config.d_model, ff = config.d_ff;
  const auto matrix = [&](const std::string& name, Tensor& t, int64_t rows, int64_t cols, Init init) {
    t.rows = rows;
    t.cols = cols;
    f(name, t, init);
  };
  const auto vector = [&](const std::string& name, Tensor& t, int64_t size, Init init) {
    t.rows = 1;
    t.cols = size;
    t.is_vector = true;
    f(name, t, init);
  };
  const auto name = [&](const char* soma, const char* other) { return std::string(gpt2 ? other : soma); };

  blocks.resize(static_cast<std::size_t>(config.n_layers));
  matrix(name("wte", "transformer.wte.weight"), wte, config.vocab_size, c, Init::kNormal);
  matrix(name("wpe", "transformer.wpe.weight"), wpe, config.max_seq_len, c, Init::kNormal);
  for (int64_t l = 0; l < config.n_layers; ++l) {
    BlockParameters& b = blocks[static_cast<std::size_t>(l)];
    const std::string p = name("h.", "transformer.h.") + std::to_string(l) + ".";
    const Init back = gpt2 ? Init::kResidual : Init::kNormal;
    if (gpt2) {
      vector(p + "ln_1.weight", b.norm1_w, c, Init::kOne);
      vector(p + "ln_1.bias", b.norm1_b, c, Init::kZero);
    }
    matrix(p + name("attn.w_qkv", "attn.c_attn.weight"), b.w_qkv, c, 3 * c, Init::kNormal);
    if (gpt2) vector(p + "attn.c_attn.bias", b.b_qkv, 3 * c, Init::kZero);
    matrix(p + name("attn.w_proj", "attn.c_proj.weight"), b.w_proj, c, c, back);
    if (gpt2) vector(p + "attn.c_proj.bias", b.b_proj, c, Init::kZero);
    if (gpt2) {
      vector(p + "ln_2.weight", b.norm2_w, c, Init::kOne);
      vector(p + "ln_2.bias", b.norm2_b, c, Init::kZero);
    }
    matrix(p + name("mlp.w_fc", "mlp.c_fc.weight"), b.w_fc, c, ff, Init::kNormal);
    vector(p + name("mlp.b_fc", "mlp.c_fc.bias"), b.b_fc, ff, Init::kZero);
    matrix(p + name("mlp.w_proj", "mlp.c_proj.weight"), b.w_out, ff, c, back);
    vector(p + name("mlp.b_proj", "mlp.c_proj.bias"), b.b_out, c, Init::kZero);
  }
  if (gpt2) {
    vector("transformer.ln_f.weight", norm_w, c, Init::kOne);
    vector("transformer.ln_f.bias", norm_b, c, Init::kZero);
  }
  if (!config.tied_head) matrix(name("lm_head", "lm_head.weight"), head, config.vocab_size, c, Init::kNormal);
}

}  // namespace soma
