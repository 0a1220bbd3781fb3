// A decoder-only transformer: embeddings, blocks and a head; forward, loss, exact gradients.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "model/activations.h"
#include "model/blocks/block.h"
#include "model/config.h"
#include "model/noise.h"
#include "model/parameters.h"
#include "model/progress.h"
#include "model/rotation_table.h"
#include "model/split_ops.h"
#include "ops/device.h"

namespace soma {

class Transformer;

// The loss becomes (1 - share) cross-entropy + share KL(q || p). q is the mean of the teachers' probabilities, p the
// model's (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", at temperature 1).
struct Teaching {
  std::vector<Transformer*> teachers;  // different models, none of which is the student
  float share = 0;
};

// The results of Transformer::score, for the targets that count, in order. See RowScores.
struct TargetScores {
  std::vector<float> logprobs;
  std::vector<int32_t> ranks, top_ids;
  std::vector<float> top_logprobs;
};

class Transformer {
 public:
  // Throws std::invalid_argument on a bad config, std::bad_alloc if the parameters do not fit into memory. Without
  // `initialize` all parameters are zero, for a caller who sets them.
  Transformer(const ModelConfig& config, uint64_t seed, Precision precision, Device& device, bool initialize = true);

  // For the child of a fork, if another thread of the parent was inside a call: replaces the memory of that call.
  // Parameters are unchanged. Gradients may be half accumulated, as after an interrupt. Profiling is off.
  void leave_memory_of_calls();

  // Sets the precision of products in forward and loss without gradients; at first it is that of training.
  void set_evaluation_precision(Precision precision);

  const ModelConfig& config() const { return config_; }
  Device& device() const { return device_; }
  const std::vector<ParameterInfo>& parameter_infos() const { return infos_; }
  int64_t num_parameters() const;

  float* values() { return values_.data(); }
  float* gradients();  // allocated at the first call
  int64_t arena_size() const { return values_.size(); }
  bool all_finite();            // whether every parameter is; false also where their squares overflow
  int64_t held_floats() const;  // of memory: parameters, gradients, and what calls have taken so far
  Ops& ops() { return work_->ops.whole(); }
  SplitOps& split_ops() { return work_->ops; }
  // See Repeats; f runs as it is while ops are timed one by one.
  template <typename F>
  void repeat(F&& f) {
    work_->ops.profiled() ? f() : repeats_.run(f);
  }
  // See SplitOps.
  void profile(bool on);
  std::vector<OpRecord> take_profile();
  const Parameters& parameters() const { return weights_; }

  // logits(B, T, V) for ids(B, T).
  void forward(float* logits, const int32_t* ids, int64_t batch, int64_t length);

  // What the head reads, (B, T, C), in floats: in bfloat16 before its product rounds them.
  void hidden(float* rows, const int32_t* ids, int64_t batch, int64_t length);
  // The scores of all targets that are not kIgnoredTarget, and their `top` best ids. Only their rows of logits are
  // computed, some at a time. Throws std::invalid_argument where a logit is not finite.
  TargetScores score(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length, int64_t top);

  // The sum of -log p(target) / normalizer over targets that are not kIgnoredTarget. normalizer 0: their number.
  double loss(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length, int64_t normalizer);
  // The same with noise and teachers; gradients += its derivative. Throws Interrupted on a request to stop. Teachers
  // compute in the training precision of this model; the caller sees to it that nobody else computes with them.
  double loss_and_grad(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length, int64_t normalizer,
                       const Noise& noise = {}, const Teaching& teaching = {});
  void zero_grad();
  // What later passes with gradients report to; null: nothing. Where the host has not its memory, only the end is said.
  void report_to(std::shared_ptr<Progress> progress) { progress_ = std::move(progress); }

 private:
  // The way of one call. Usually every op divides its work among the threads. In a small model, where waiting at every
  // op would cost much, each thread runs a batch split through all blocks instead, with weights packed beforehand. Then
  // threads wait for each other only in the loss and in sums over all rows.
  struct Plan {
    SplitOps& ops;
    const Parameters& weights;
    int64_t batch, length, splits;
    Noise noise{};
    int64_t rows() const { return batch * length; }
  };
  // Teachers whose hidden states are computed; their logits exist for some rows at a time.
  struct Lesson {
    std::vector<std::pair<Transformer*, Plan>> teachers;
    float share = 0;
    // q (rows, V) = the mean of the teachers' probabilities from the row `first` on. `more` is memory of as many
    // floats, which a single teacher does not need.
    void probabilities(const Matrix& q, float* more, int64_t first) const;
  };
  void make_work();
  SplitOps& ops_of_evaluation() { return work_->evaluation_ops == nullptr ? work_->ops : *work_->evaluation_ops; }
  Plan plan(SplitOps& ops, int64_t batch, int64_t length, bool for_backward);
  void pack_weights(Ops& ops, bool for_backward);

  // Copy the arrays of the caller, since another thread may write to them, and check the copies.
  void take_ids(const int32_t* ids, int64_t batch, int64_t length);
  void take_targets(const int32_t* targets, int64_t count, int64_t* normalizer);
  // Numbers as ops read them, in the memory of the device.
  const int32_t* upload(Arena& arena, const std::vector<int32_t>& numbers);
  // Fills activations_; the result is activations_.final_normed.
  void run_blocks(const Plan& plan, const int32_t* ids, bool for_backward);
  NormWeights final_norm() const;
  NormStats final_stats(int64_t row) const;
  Matrix final_rows(Ops& ops, int64_t row, int64_t count);  // rows of final_normed
  // `count` rows of final_normed with these ascending numbers side by side, in `memory` if they do not lie so.
  Matrix gather_rows(Ops& ops, const int64_t* rows, int64_t count, float* memory);
  // The losses of the rows of final_normed, in chunks. With `backward` also the gradient of the head and `d_normed`.
  const float* run_head(const Plan& plan, const int32_t* targets, int64_t normalizer, bool backward, float* d_normed,
                        const Lesson& lesson);
  // The forward passes of the teachers, without their heads.
  Lesson begin_lesson(const Teaching& teaching, const int32_t* ids, int64_t batch, int64_t length);
  void run_backward(const Plan& plan, const int32_t* ids, const float* d_normed);
  // The arguments of loss().
  struct Task {
    const int32_t *ids, *targets;
    int64_t batch, length, normalizer;
  };
  double run_loss(const Task& task, bool backward, const Noise& noise, const Teaching& teaching);

  ModelConfig config_;
  std::vector<ParameterInfo> infos_;
  const Precision precision_;
  Device& device_;
  Repeats repeats_{device_};
  Precision evaluation_precision_;
  Arena values_, gradients_;
  Parameters weights_, grads_;
  std::shared_ptr<Progress> progress_;

  // Memory that calls write to, and that holds nothing between calls.
  struct Work {
    Work(Device& device, Precision precision)
        : ops(device, precision),
          activation_arena(device.memory()),
          head_arena(device.memory()),
          packing_arena(device.memory()),
          id_arena(device.memory()),
          target_arena(device.memory()),
          rotation(device.memory()) {}
    SplitOps ops;
    std::unique_ptr<SplitOps> evaluation_ops;  // null: ops
    Arena activation_arena, head_arena, packing_arena, id_arena, target_arena;
    Parameters prepacked;  // weights_ with packed panels; valid within one call
    std::vector<Packing> packings;
    Activations activations;
    RotationTable rotation;
    std::vector<int32_t> ids, targets;
    std::vector<float> losses;
  };
  std::unique_ptr<Work> work_;
};

}  // namespace soma
