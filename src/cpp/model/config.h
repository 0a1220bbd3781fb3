// What a model is: its sizes and its block, and what the block decides about the model around it. Glossary as in
// ops/ops.h; F = d_ff.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "ops/decode.h"

namespace soma {

class Block;  // model/blocks/block.h

enum class NormKind { kNone, kLayerNorm };
struct NormTraits {
  NormKind kind = NormKind::kNone;
  bool affine = false;  // with a learned gain and shift
  explicit operator bool() const { return kind != NormKind::kNone; }
};

enum class Positions {
  kLearned,  // a row of wpe is added to each token's embedding
  kInBlock,  // the block brings them in, if anything does
};

// Names of the tensors outside the blocks, as checkpoints have them.
struct TensorNames {
  const char *wte, *wpe;
  const char* block;       // of block l: this, l and a dot stand before its tensors' names
  const char* final_norm;  // + ".weight", ".bias"
  const char* head;
};

// What a block decides about the model around it.
struct BlockTraits {
  const char* name;
  NormTraits final_norm;  // after the last block
  Positions positions;
  bool ties_head;  // the output head is the token embedding, unless the user says otherwise
  float norm_eps;
  TensorNames tensors;
  std::span<const Activation> activations;  // those its mlp can have, its own first
  bool scales_attention = false;            // takes the settings of ModelConfig that attention_scale reads
};

// Throws std::invalid_argument naming those there are for a name that is none of theirs.
Activation find_activation(std::string_view name);
const char* activation_name(Activation activation);

struct ModelConfig {
  int64_t vocab_size, d_model, n_layers, n_heads, d_ff, max_seq_len;
  const Block* block;
  bool tied_head;
  Activation activation;
  bool scale_attn_weights, scale_attn_by_inverse_layer_idx;

  int64_t head_size() const { return d_model / n_heads; }
  int64_t kv_heads() const { return n_heads; }  // every head of queries has keys and values of its own
  int64_t q_dim() const { return n_heads * head_size(); }
  int64_t kv_dim() const { return kv_heads() * head_size(); }
  int64_t qkv_dim() const { return q_dim() + 2 * kv_dim(); }  // a row is q | k | v

  const BlockTraits& traits() const;
  NormTraits final_norm() const { return traits().final_norm; }
  bool learned_positions() const { return traits().positions == Positions::kLearned; }
  float norm_eps() const { return traits().norm_eps; }
  // What a layer's scores of attention are multiplied by: 1 / sqrt(D), and 1 / (layer + 1), each where it is asked for.
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

}  // namespace soma
