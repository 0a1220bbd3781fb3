// The memory of a block: values that forward saves for backward, scratch that all blocks share, and scratch of
// decoding. M = B*T rows. An operand is a matrix that only products and attention read; see Operands in ops/ops.h.
#pragma once

#include "base/arena.h"
#include "model/config.h"
#include "ops/decode.h"
#include "ops/ops.h"

namespace soma {

// The layout of queries, keys and values. In pairs, a head must begin with a whole pair.
inline Operands qkv_operands(const ModelConfig& config, Operands operands) {
  return {operands.pairs && config.head_size() % 2 == 0};
}

// The layout of gate | up, F each. In pairs, `up` must begin with a whole pair.
inline Operands hidden_operands(const ModelConfig& config, Operands operands) {
  return {operands.pairs && config.d_ff % 2 == 0};
}

// The values that one block saves. A buffer that a block does not place stays null.
struct BlockActivations {
  float* input = nullptr;      // (M, C) the residual stream into the block; placed for every block
  float* qkv = nullptr;        // (M, qkv_dim) operand, see qkv_operands
  float* unrotated = nullptr;  // (M, qkv_dim) q | k | v before heads are normed and rotated
  float* attention = nullptr;  // (M, q_dim) heads side by side
  float* lse = nullptr;        // (B, H, T) log sum exp of the attention scores
  float* middle = nullptr;     // (M, C) between attention and mlp
  float* hidden = nullptr;     // (M, F) of the mlp, or (M, 2F): gate | up
  float *mean1 = nullptr, *rstd1 = nullptr, *mean2 = nullptr, *rstd2 = nullptr;  // (M) norm statistics
};

// Scratch that every block overwrites. The gradients of parameters are computed from the gradients here.
struct Scratch {
  float *normed1 = nullptr, *normed2 = nullptr;        // (M, C) operands: outputs of the norms
  float* activated = nullptr;                          // (M, F) operand: output of the activation
  float* unrotated = nullptr;                          // (M, qkv_dim) as in BlockActivations, if it is not saved
  float *d_output = nullptr, *d_input = nullptr;       // (M, C) gradient of the output and of the input of the block
  float* d_middle = nullptr;                           // (M, C) gradient of `middle`
  float *d_branch1 = nullptr, *d_branch2 = nullptr;    // (M, C) gradients in the branches of attention and mlp
  float *d_dropped1 = nullptr, *d_dropped2 = nullptr;  // (M, C) operands: gradients through the branches' dropout
  float* d_heads = nullptr;                            // (M, q_dim) gradient of `attention`, if the block places it
  float* d_qkv = nullptr;                              // (M, qkv_dim) operand, see qkv_operands
  float* d_hidden = nullptr;                           // (M, F) operand, or (M, 2F), see hidden_operands
  float *d_q_gain = nullptr, *d_k_gain = nullptr;      // (B*H, D), (B*K, D) gradients of the gains, a row for each head
};

// Places the buffers of a block one by one: carves each, or moves it to a later row.
class BufferPlan {
 public:
  const ModelConfig& config;
  const bool for_backward;

  // Carves for `count` sequences of `length` rows. A null base of the carver only measures.
  BufferPlan(const ModelConfig& c, Operands operands, bool backward, bool drops, int64_t count, int64_t length,
             Carver& carver)
      : BufferPlan(c, operands, backward, drops, count, length, &carver) {}
  // Moves buffers to sequence `first`.
  BufferPlan(const ModelConfig& c, Operands operands, bool backward, int64_t first, int64_t length)
      : BufferPlan(c, operands, backward, true, first, length, nullptr) {}

  Operands qkv_operands() const { return soma::qkv_operands(config, operands_); }
  void rows(float*& buffer, int64_t cols) const { place(buffer, rows_ * cols, cols, rows_); }
  void sequences(float*& buffer, int64_t cols) const { place(buffer, sequences_ * cols, cols, sequences_); }
  void operand(float*& buffer, int64_t cols) const { place(buffer, operands_, cols); }
  void dropped(float*& buffer) const {
    if (drops_) operand(buffer, config.d_model);
  }
  void qkv(float*& buffer) const { place(buffer, qkv_operands(), config.qkv_dim()); }
  void gate_up(float*& buffer) const { place(buffer, hidden_operands(config, operands_), 2 * config.d_ff); }

 private:
  BufferPlan(const ModelConfig& c, Operands operands, bool backward, bool drops, int64_t count, int64_t length,
             Carver* carver)
      : config(c),
        for_backward(backward),
        operands_(operands),
        drops_(drops),
        sequences_(count),
        rows_(count * length),
        carver_(carver) {}

  void place(float*& buffer, Operands kept, int64_t cols) const {
    place(buffer, kept.floats(rows_, cols), kept.ld(cols), rows_);
  }
  void place(float*& buffer, int64_t floats, int64_t ld, int64_t before) const {
    if (carver_ != nullptr) {
      buffer = carver_->take(floats);
    } else if (buffer != nullptr) {
      buffer += before * ld;
    }
  }

  const Operands operands_;
  const bool drops_;
  const int64_t sequences_, rows_;
  Carver* const carver_;
};

// Scratch of decoding R rows. For the outputs of norms see decode_norm, for the scores decode_attention.
struct DecodeBuffers {
  Matrix stream;  // (R, C)
  float *normed1 = nullptr, *normed2 = nullptr, *scores = nullptr;
  const PromptMemory* prompt = nullptr;  // null for few rows
  Matrix qkv, heads, middle, hidden;     // placed by the block: (R, qkv_dim), (R, q_dim), (R, C), (R, F) or (R, 2F)
  Matrix activated;                      // (R, F) after SwiGLU
};

// Carves matrices of R rows for decoding. A null base of the carver only measures.
struct DecodePlan {
  const ModelConfig& config;
  int64_t count;
  Carver& carver;

  Matrix rows(int64_t cols) const { return {carver.take(count * padded_ld(cols)), count, cols, padded_ld(cols)}; }
};

}  // namespace soma
