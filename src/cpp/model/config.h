// The configuration of a model: its sizes, its block, its options, and the traits that the block decides. Glossary as
// in ops/ops.h; F = d_ff.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "ops/decode.h"

#include "ops/ops.h"

namespace soma {

class Block;  // model/blocks/block.h

struct NormTraits {
  NormKind kind = NormKind::kNone;
  bool affine = false;  // with a learned gain, and a shift if the kind of norm has one
  explicit operator bool() const { return kind != NormKind::kNone; }
};

enum class Positions {
  kLearned,  // a row of wpe is added to each token's embedding
  kRotary,   // the block rotates queries and keys
};

// The names of the tensors outside the blocks in checkpoints.
struct TensorNames {
  const char *wte, *wpe;
  const char* block;       // the names of the tensors of block l begin with this, l and a dot
  const char* final_norm;  // + ".weight", ".bias"
  const char* head;
};

// Fields of a config that only some blocks have.
enum class Option { kKvHeads, kHeadDim, kQkNorm, kRopeTheta, kNormEps };
constexpr int kOptions = 5;

// The traits of a model that its block decides.
struct BlockTraits {
  const char* name;
  NormTraits final_norm;  // after the last block
  Positions positions;
  bool ties_head;  // the output head is the token embedding, unless the user says otherwise
  double norm_eps;
  TensorNames tensors;
  std::span<const Activation> activations;  // activations that its mlp can have, the default first
  bool scales_attention = false;            // whether the config may change attention_scale
  std::array<bool, kOptions> options{};     // by Option: whether the block has it
  bool has(Option option) const { return options[static_cast<std::size_t>(option)]; }
};

// Throws std::invalid_argument with the known names for an unknown name.
Activation find_activation(std::string_view name);
const char* activation_name(Activation activation);

struct ModelConfig {
  int64_t vocab_size, d_model, n_layers, n_heads, d_ff, max_seq_len;
  const Block* block;
  bool tied_head;
  Activation activation;
  bool scale_attn_weights, scale_attn_by_inverse_layer_idx;

  // Options; 0 and false stand for the default.
  int64_t n_kv_heads = 0, head_dim = 0;
  bool qk_norm = false;
  double rope_theta = 0, eps = 0;

  int64_t head_size() const { return head_dim > 0 ? head_dim : d_model / n_heads; }
  int64_t kv_heads() const { return n_kv_heads > 0 ? n_kv_heads : n_heads; }
  int64_t q_dim() const { return n_heads * head_size(); }
  int64_t kv_dim() const { return kv_heads() * head_size(); }
  int64_t qkv_dim() const { return q_dim() + 2 * kv_dim(); }  // a row is q | k | v

  const BlockTraits& traits() const;
  NormTraits final_norm() const { return traits().final_norm; }
  bool learned_positions() const { return traits().positions == Positions::kLearned; }
  bool rotary_positions() const { return traits().positions == Positions::kRotary; }
  float norm_eps() const { return static_cast<float>(eps > 0 ? eps : traits().norm_eps); }
  // The factor of a layer's attention scores: 1 / sqrt(D), and 1 / (layer + 1), each if the config asks for it.
  float attention_scale(int64_t layer) const;

  // Throws std::invalid_argument naming the field and its limits.
  void validate() const;
};

struct SizeLimit {
  const char* name;
  int64_t ModelConfig::* size;
  int64_t low, high;
};
const std::array<SizeLimit, 6>& size_limits();

// The limits of an option that is a number, if it is given.
struct OptionLimit {
  Option option;
  bool whole;  // an integer
  double low, high;
};
const std::array<OptionLimit, 4>& option_limits();

// The default of rope_theta.
constexpr double kRopeTheta = 10000.0;

const char* option_name(Option option);

}  // namespace soma
