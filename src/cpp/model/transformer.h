// A decoder-only transformer: embeddings, blocks, a head read in chunks of rows; forward, loss, exact gradients.
#pragma once

#include <memory>
#include <vector>

#include "base/arena.h"
#include "model/activations.h"
#include "model/block.h"
#include "model/config.h"
#include "model/parameters.h"
#include "ops/ops.h"
#include "ops/profiled_ops.h"

namespace soma {

class Transformer {
 public:
  // Throws std::invalid_argument on a bad config, std::bad_alloc when the parameters do not fit into memory.
  // Without `initialize` all parameters are zero, for a caller who sets them.
  Transformer(const ModelConfig& config, uint64_t seed, Precision precision, bool initialize = true);

  // What forward and loss compute their products in from now on, where no gradient is asked for; at first as training.
  void set_evaluation_precision(Precision precision);

  const ModelConfig& config() const { return config_; }
  const std::vector<ParameterInfo>& parameter_infos() const { return infos_; }
  int64_t num_parameters() const;

  float* values() { return values_.data(); }
  float* gradients();  // made at the first call: a model that only generates has none
  int64_t arena_size() const { return values_.size(); }
  Ops& ops() { return *ops_; }
  // Whether the ops measure themselves from now on. Turning it off forgets what was not taken.
  void profile(bool on);
  // What was measured since the last call; empty while profiling is off.
  std::vector<OpRecord> take_profile();
  const Parameters& parameters() const { return weights_; }

  // logits(B, T, V) for ids(B, T).
  void forward(float* logits, const int32_t* ids, int64_t batch, int64_t length);

  // sum of -log p(target) / normalizer over targets that are not kIgnoredTarget; normalizer 0: their number.
  double loss(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length, int64_t normalizer);
  // The same; gradients += its derivative. Throws Interrupted when asked to stop.
  double loss_and_grad(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length, int64_t normalizer);
  void zero_grad();

 private:
  Ops& ops(bool for_backward) { return for_backward || evaluation_ops_ == nullptr ? *ops_ : *evaluation_ops_; }
  // Copy the caller's numbers, which another thread may be writing to, and check the copies.
  const int32_t* take_ids(const int32_t* ids, int64_t batch, int64_t length);
  const int32_t* take_targets(const int32_t* targets, int64_t count, int64_t* normalizer);
  // Fills activations_; the result is activations_.final_normed.
  void run_blocks(const int32_t* ids, int64_t batch, int64_t length, bool for_backward);
  // Loss over the rows of final_normed, in chunks; with `backward` also the head's gradient and d_stream.
  double run_head(const int32_t* targets, int64_t rows, int64_t normalizer, bool backward);
  double run_loss(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length, int64_t normalizer,
                  bool backward);

  ModelConfig config_;
  std::vector<ParameterInfo> infos_;
  const Precision precision_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Ops> evaluation_ops_;  // null: ops_
  ProfiledOps* profiled_ = nullptr;      // ops_, while they measure themselves
  Arena values_, gradients_, activation_arena_, head_arena_;
  Parameters weights_, grads_;
  Activations activations_;
  std::vector<int32_t> ids_, targets_;
};

}  // namespace soma
