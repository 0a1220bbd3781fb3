// Forward, loss and backward of the whole model.
#include "model/transformer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/interrupt.h"
#include "base/parallel.h"

namespace soma {
namespace {

// Rows of logits that exist at a time: at most 512, and at most 128 MB of them, but never below 16.
int64_t head_rows(int64_t vocab_size) {
  constexpr int64_t kMaxLogits = int64_t{32} << 20;
  return std::clamp<int64_t>(kMaxLogits / vocab_size, 16, 512);
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, uint64_t seed, Precision precision, bool initialize)
    : config_(config), precision_(precision), ops_(make_cpu_ops(precision)) {
  config_.validate();
  infos_ = describe_parameters(config_);
  values_.reserve_dense(weights_.carve(config_, nullptr));
  weights_.carve(config_, values_.data());
  if (initialize) initialize_parameters(config_, values_.data(), seed);
}

void Transformer::set_evaluation_precision(Precision precision) {
  evaluation_ops_ = precision == precision_ ? nullptr : make_cpu_ops(precision);
}

void Transformer::profile(bool on) {
  if (on == (profiled_ != nullptr)) return;
  if (on) {
    auto profiled = std::make_unique<ProfiledOps>(std::move(ops_));
    profiled_ = profiled.get();
    ops_ = std::move(profiled);
  } else {
    ops_ = std::exchange(profiled_, nullptr)->release();
  }
}

std::vector<OpRecord> Transformer::take_profile() {
  return profiled_ == nullptr ? std::vector<OpRecord>{} : profiled_->take();
}

int64_t Transformer::num_parameters() const {
  int64_t count = 0;
  for (const ParameterInfo& info : infos_) count += info.size();
  return count;
}

float* Transformer::gradients() {
  if (gradients_.size() == 0) {
    gradients_.reserve(values_.size());
    grads_.carve(config_, gradients_.data());
  }
  return gradients_.data();
}

void Transformer::zero_grad() {
  if (gradients_.size() > 0) std::fill(gradients_.data(), gradients_.data() + gradients_.size(), 0.0f);
}

const int32_t* Transformer::take_ids(const int32_t* ids, int64_t batch, int64_t length) {
  check(batch >= 1 && length >= 1, "ids must hold at least one token, got shape (", batch, ", ", length, ")");
  check(length <= config_.max_seq_len, "ids are ", length, " tokens long, but max_seq_len is ", config_.max_seq_len);
  ids_.assign(ids, ids + batch * length);
  ids = ids_.data();
  for (int64_t i = 0; i < batch * length; ++i) {
    check(ids[i] >= 0 && ids[i] < config_.vocab_size, "ids must be from 0 to ", config_.vocab_size - 1, ", got ",
          ids[i], " in row ", i / length, ", position ", i % length);
  }
  return ids;
}

const int32_t* Transformer::take_targets(const int32_t* targets, int64_t count, int64_t* normalizer) {
  targets_.assign(targets, targets + count);
  targets = targets_.data();
  int64_t counted = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (targets[i] == kIgnoredTarget) continue;
    check(targets[i] >= 0 && targets[i] < config_.vocab_size, "targets must be from 0 to ", config_.vocab_size - 1,
          ", or ", kIgnoredTarget, " to be ignored, got ", targets[i], " at element ", i);
    ++counted;
  }
  check(*normalizer >= 0, "normalizer must be positive, got ", *normalizer);
  check(counted > 0 || *normalizer > 0, "targets are all ", kIgnoredTarget,
        " (ignored), so there is no loss to compute");
  if (*normalizer == 0) *normalizer = counted;
  return targets;
}

void Transformer::run_blocks(const int32_t* ids, int64_t batch, int64_t length, bool for_backward) {
  activation_arena_.reserve(activations_.carve(config_, batch, length, for_backward, nullptr));
  activations_.carve(config_, batch, length, for_backward, activation_arena_.data());
  Ops& ops = this->ops(for_backward);
  const BlockContext context{ops, config_, batch, length};
  const int64_t m = context.rows(), c = config_.d_model;

  ops.embed({activations_.blocks[0].input, m, c}, ids, weights_.wte, weights_.wpe, length);
  for (std::size_t l = 0; l < weights_.blocks.size(); ++l) {
    check_interrupt();
    const BlockActivations& a = activations_.blocks[l];
    float* output = l + 1 < weights_.blocks.size() ? activations_.blocks[l + 1].input : activations_.output;
    block_forward(context, weights_.blocks[l], a, activations_.scratch, output);
  }
  if (config_.block == BlockStyle::kGpt2) {
    ops.norm({activations_.final_normed, m, c}, {activations_.final_mean, activations_.final_rstd},
             {activations_.output, m, c}, weights_.norm_w.data, weights_.norm_b.data, config_.norm_eps());
  }
}

void Transformer::forward(float* logits, const int32_t* ids, int64_t batch, int64_t length) {
  ids = take_ids(ids, batch, length);
  with_crew([&] {
    run_blocks(ids, batch, length, false);
    const int64_t m = batch * length;
    check_interrupt();
    ops(false).matmul({logits, m, config_.vocab_size}, ConstMatrix{activations_.final_normed, m, config_.d_model},
                      ConstMatrix(weights_.head).t());
  });
}

double Transformer::run_head(const int32_t* targets, int64_t rows, int64_t normalizer, bool backward) {
  const int64_t c = config_.d_model, v = config_.vocab_size, chunk = std::min(rows, head_rows(v));
  Carver sizes(nullptr);
  sizes.take(chunk * v);
  sizes.take(chunk);
  head_arena_.reserve(sizes.used());
  Carver carver(head_arena_.data());
  float* logits_data = carver.take(chunk * v);
  float* losses = carver.take(chunk);

  Ops& ops = this->ops(backward);
  double total = 0;
  for (int64_t first = 0; first < rows; first += chunk) {
    check_interrupt();
    const int64_t n = std::min(chunk, rows - first);
    const ConstMatrix x{activations_.final_normed + first * c, n, c};
    const Matrix logits{logits_data, n, v};
    ops.matmul(logits, x, ConstMatrix(weights_.head).t());
    ops.cross_entropy(losses, logits, targets + first, backward ? 1.0f / static_cast<float>(normalizer) : 0.0f);
    for (int64_t r = 0; r < n; ++r) total += losses[r];
    if (!backward) continue;
    ops.matmul(grads_.head, ConstMatrix(logits).t(), x, {.accumulate = true});
    ops.matmul({activations_.scratch.d_stream + first * c, n, c}, logits, weights_.head);
  }
  return total / static_cast<double>(normalizer);
}

double Transformer::run_loss(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length,
                             int64_t normalizer, bool backward) {
  ids = take_ids(ids, batch, length);
  targets = take_targets(targets, batch * length, &normalizer);
  if (backward) gradients();
  run_blocks(ids, batch, length, backward);
  const int64_t m = batch * length, c = config_.d_model;
  const double loss = run_head(targets, m, normalizer, backward);
  if (!backward) return loss;

  const BlockContext context{*ops_, config_, batch, length};
  const Scratch& s = activations_.scratch;
  if (config_.block == BlockStyle::kGpt2) {
    const NormStats stats{activations_.final_mean, activations_.final_rstd};
    const Matrix d_stream{s.d_stream, m, c}, d_normed{s.d_branch, m, c};
    std::copy(s.d_stream, s.d_stream + m * c, s.d_branch);
    ops_->norm_grad(grads_.norm_w.data, grads_.norm_b.data, d_normed, {activations_.output, m, c}, stats);
    ops_->norm_backward(d_stream, d_normed, {activations_.output, m, c}, stats, weights_.norm_w.data, false);
  }
  for (std::size_t l = weights_.blocks.size(); l-- > 0;) {
    check_interrupt();
    const float* output = l + 1 < weights_.blocks.size() ? activations_.blocks[l + 1].input : activations_.output;
    block_backward(context, weights_.blocks[l], grads_.blocks[l], activations_.blocks[l], s, output);
  }
  ops_->embed_backward(grads_.wte, grads_.wpe, {s.d_stream, m, c}, ids, length);
  return loss;
}

double Transformer::loss(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length,
                         int64_t normalizer) {
  return with_crew([&] { return run_loss(ids, targets, batch, length, normalizer, false); });
}

double Transformer::loss_and_grad(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length,
                                  int64_t normalizer) {
  return with_crew([&] { return run_loss(ids, targets, batch, length, normalizer, true); });
}

}  // namespace soma
