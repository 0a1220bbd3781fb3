// Forward, loss and backward of the whole model.
#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/fork.h"
#include "base/interrupt.h"

namespace soma {
namespace {

// Calls f(tensor) for every matrix of a block.
template <typename F>
void each_matrix(BlockParameters& block, F&& f) {
  each_weight(
      [&](Tensor& t) {
        if (t.rows > 0 && !t.is_vector) f(t);
      },
      block);
}

// Where the tensors of a block begin.
const float* first_tensor(const BlockParameters& block) {
  const float* first = block.w_qkv.data;
  each_weight([&](const Tensor& t) { first = t.rows > 0 ? std::min(first, static_cast<const float*>(t.data)) : first; },
              block);
  return first;
}

// Limits within which batch splits are faster: floats of the parameters; floats of the outputs of a block;
// multiply-adds of a pass, at least for each thread (else threads wait), and at most in all (else an interrupt waits).
constexpr int64_t kSmallModel = int64_t{2} << 20, kSmallBatch = int64_t{4} << 20;
constexpr int64_t kLeastWork = int64_t{1} << 19, kMostWork = int64_t{1} << 31;
// The most multiply-adds of a pass that is repeated as a whole, which an interrupt cannot end.
constexpr int64_t kMostRepeated = int64_t{1} << 36;

}  // namespace

Transformer::Transformer(const ModelConfig& config, uint64_t seed, Precision precision, Device& device, bool initialize)
    : config_(config),
      precision_(precision),
      device_(device),
      evaluation_precision_(precision),
      values_(device.memory()),
      gradients_(device.memory()) {
  config_.validate();
  infos_ = describe_parameters(config_);
  values_.reserve_dense(weights_.carve(config_, nullptr));
  weights_.carve(config_, values_.data());
  make_work();
  if (initialize) initialize_parameters(config_, device_.memory(), values_.data(), seed);
}

void Transformer::make_work() {
  auto work = std::make_unique<Work>(device_, precision_);
  if (evaluation_precision_ != precision_)
    work->evaluation_ops = std::make_unique<SplitOps>(device_, evaluation_precision_);
  work->prepacked = weights_;
  work_ = std::move(work);
}

void Transformer::leave_memory_of_calls() {
  static_cast<void>(work_.release());  // its vectors may be half resized, so it must not be freed
  make_work();
}

void Transformer::set_evaluation_precision(Precision precision) {
  evaluation_precision_ = precision;
  work_->evaluation_ops = precision == precision_ ? nullptr : std::make_unique<SplitOps>(device_, precision);
}

int64_t Transformer::num_parameters() const {
  int64_t count = 0;
  for (const ParameterInfo& info : infos_) count += info.size();
  return count;
}

float* Transformer::gradients() {
  if (gradients_.size() == 0) {
    const NoFork made_or_not;
    gradients_.reserve(values_.size());
    grads_.carve(config_, gradients_.data());
  }
  return gradients_.data();
}

int64_t Transformer::held_floats() const {
  return values_.size() + gradients_.size() + work_->activation_arena.size() + work_->head_arena.size() +
         work_->packing_arena.size();
}

void Transformer::profile(bool on) {
  work_->ops.profile(on);
  if (work_->evaluation_ops != nullptr) work_->evaluation_ops->profile(on);
}

std::vector<OpRecord> Transformer::take_profile() {
  std::vector<OpRecord> records = work_->ops.take_profile();
  if (work_->evaluation_ops == nullptr) return records;
  for (const OpRecord& r : work_->evaluation_ops->take_profile()) add_record(&records, r);
  return records;
}

bool Transformer::all_finite() {
  return device_.run([&] { return std::isfinite(ops().sum_squares(values_.data(), values_.size())); });
}

void Transformer::zero_grad() {
  if (gradients_.size() > 0) device_.memory().clear(gradients_.data(), gradients_.bytes());
}

void Transformer::take_ids(const int32_t* ids, int64_t batch, int64_t length) {
  check(batch >= 1 && length >= 1, "ids must hold at least one token, got shape (", batch, ", ", length, ")");
  check(length <= config_.max_seq_len, "ids are ", length, " tokens long, but max_seq_len is ", config_.max_seq_len);
  work_->ids.assign(ids, ids + batch * length);
  ids = work_->ids.data();
  for (int64_t i = 0; i < batch * length; ++i) {
    check(ids[i] >= 0 && ids[i] < config_.vocab_size, "ids must be from 0 to ", config_.vocab_size - 1, ", got ",
          ids[i], " in row ", i / length, ", position ", i % length);
  }
}

void Transformer::take_targets(const int32_t* targets, int64_t count, int64_t* normalizer) {
  work_->targets.assign(targets, targets + count);
  targets = work_->targets.data();
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
}

const int32_t* Transformer::upload(Arena& arena, const std::vector<int32_t>& numbers) {
  static_assert(sizeof(int32_t) == sizeof(float));
  arena.reserve(static_cast<int64_t>(numbers.size()));
  device_.memory().upload(arena.data(), numbers.data(), numbers.size() * sizeof(int32_t));
  return reinterpret_cast<const int32_t*>(arena.data());
}

Transformer::Plan Transformer::plan(SplitOps& ops, int64_t batch, int64_t length, bool for_backward) {
  const int64_t threads = device_.splits(), size = arena_size(), m = batch * length;
  const int64_t largest = (batch + threads - 1) / threads;
  int64_t outputs = 0;  // columns of the matrices of a block
  each_matrix(weights_.blocks[0], [&](const Tensor& t) { outputs += t.cols; });
  const bool small = size <= kSmallModel && m * outputs <= kSmallBatch;
  const int64_t work = m * (size + config_.n_layers * length * config_.q_dim());
  const bool worth_it = threads > 1 && work >= kLeastWork * threads && work <= kMostWork;
  const bool even = 8 * largest * threads <= 9 * batch;  // the longest split is at most an eighth longer than the mean
  const bool cut = small && worth_it && even;
  if (!cut && !ops.whole().packs_first()) return {ops, weights_, batch, length, 1};
  pack_weights(ops.whole(), for_backward);
  return {ops, work_->prepacked, batch, length, cut ? threads : 1};
}

void Transformer::pack_weights(Ops& ops, bool for_backward) {
  work_->packings.clear();
  Carver sizes(nullptr);
  const auto each = [&](auto&& f) {
    for (BlockParameters& b : work_->prepacked.blocks) each_matrix(b, [&](Tensor& t) { f(t, true, for_backward); });
    f(work_->prepacked.head, for_backward, true);  // the head is stored transposed
  };
  each([&](Tensor& t, bool stored, bool transposed) {
    if (stored) sizes.take(ops.packed_floats(t.rows, t.cols));
    if (transposed) sizes.take(ops.packed_floats(t.cols, t.rows));
  });
  work_->packing_arena.reserve(sizes.used());
  Carver carver(work_->packing_arena.data());
  each([&](Tensor& t, bool stored, bool transposed) {
    const ConstMatrix b{t.data, t.rows, t.cols};
    t.panels = stored ? carver.take(ops.packed_floats(t.rows, t.cols)) : nullptr;
    t.panels_transposed = transposed ? carver.take(ops.packed_floats(t.cols, t.rows)) : nullptr;
    if (stored) work_->packings.push_back({b, t.panels});
    if (transposed) work_->packings.push_back({b.t(), t.panels_transposed});
  });
  ops.pack(work_->packings.data(), static_cast<int64_t>(work_->packings.size()));
}

void Transformer::run_blocks(const Plan& plan, const int32_t* ids, bool for_backward) {
  const int64_t length = plan.length, c = config_.d_model;
  const Operands operands = plan.ops.whole().operands();
  work_->rotation.reach(config_, length);
  work_->activation_arena.reserve(
      work_->activations.carve(config_, operands, plan.batch, length, for_backward, plan.noise.drops(), nullptr));
  work_->activations.carve(config_, operands, plan.batch, length, for_backward, plan.noise.drops(),
                           work_->activation_arena.data());

  plan.ops.run(plan.splits, plan.batch, [&](Ops& ops, int64_t begin, int64_t end) {
    BlockContext ctx{ops, config_, end - begin, length, work_->rotation.turns()};
    const int64_t row = begin * length, m = ctx.rows();
    ctx.noise = plan.noise;
    ctx.first_row = row;
    const std::vector<BlockActivations>& blocks = work_->activations.blocks;
    const BufferPlan from(config_, operands, for_backward, begin, length);
    const Scratch scratch = scratch_from(work_->activations.scratch, from);
    const ConstMatrix wpe = plan.weights.wpe;
    ops.embed({blocks[0].input + row * c, m, c}, ids + row, plan.weights.wte,
              config_.learned_positions() ? &wpe : nullptr, length, ctx.dropout(DropoutSite::kEmbedding));
    for (std::size_t l = 0; l < blocks.size(); ++l) {
      check_interrupt();
      ctx.layer = static_cast<int64_t>(l);
      float* output = l + 1 < blocks.size() ? blocks[l + 1].input : work_->activations.output;
      config_.block->forward(ctx, plan.weights.blocks[l], activations_from(blocks[l], from), scratch, output + row * c);
    }
    if (config_.final_norm()) {
      ops.norm(operands.matrix(work_->activations.final_normed + row * operands.ld(c), m, c), final_stats(row),
               {work_->activations.output + row * c, m, c}, final_norm(), config_.norm_eps());
    }
  });
}

NormWeights Transformer::final_norm() const {
  return {weights_.norm_w.data, weights_.norm_b.data, config_.final_norm().kind};
}

NormStats Transformer::final_stats(int64_t row) const {
  const Activations& a = work_->activations;
  return {a.final_mean != nullptr ? a.final_mean + row : nullptr, a.final_rstd + row};
}

Matrix Transformer::final_rows(Ops& ops, int64_t row, int64_t count) {
  const int64_t c = config_.d_model;
  if (!config_.final_norm()) return {work_->activations.final_normed + row * c, count, c};
  return ops.operands().matrix(work_->activations.final_normed + row * ops.operands().ld(c), count, c);
}

void Transformer::forward(float* logits, const int32_t* ids, int64_t batch, int64_t length) {
  take_ids(ids, batch, length);
  device_.run([&] {
    const Plan plan = this->plan(ops_of_evaluation(), batch, length, false);
    run_blocks(plan, upload(work_->id_arena, work_->ids), false);
    // On the host the product writes to the array of the caller, else to buffers that are downloaded one by one.
    Memory& memory = device_.memory();
    const int64_t v = config_.vocab_size, rows = plan.rows();
    LogitsLayout layout{rows, v};
    if (!memory.on_host()) {
      layout = plan.ops.whole().logits_layout(rows, v);
      work_->head_arena.reserve(layout.rows * layout.ld);
    }
    for (int64_t first = 0; first < rows; first += layout.rows) {
      check_interrupt();
      const int64_t n = std::min(layout.rows, rows - first);
      float* const out = memory.on_host() ? logits : work_->head_arena.data();
      plan.ops.run(plan.splits, n, [&](Ops& ops, int64_t begin, int64_t end) {
        ops.matmul({out + begin * layout.ld, end - begin, v, layout.ld}, final_rows(ops, first + begin, end - begin),
                   ConstMatrix(plan.weights.head).t());
      });
      if (memory.on_host()) continue;
      const std::size_t row = sizeof(float) * static_cast<std::size_t>(v);
      memory.download(logits + first * v, out, row, static_cast<std::size_t>(n),
                      sizeof(float) * static_cast<std::size_t>(layout.ld));
    }
  });
}

Transformer::Lesson Transformer::begin_lesson(const Teaching& teaching, const int32_t* ids, int64_t batch,
                                              int64_t length) {
  Lesson lesson;
  lesson.share = teaching.share;
  if (teaching.share == 0) return lesson;
  for (Transformer* teacher : teaching.teachers) {
    const Plan plan = teacher->plan(work_->ops, batch, length, false);
    teacher->run_blocks(plan, ids, false);
    lesson.teachers.emplace_back(teacher, plan);
  }
  return lesson;
}

void Transformer::Lesson::probabilities(const Matrix& q, float* more, int64_t first) const {
  const float weight = 1.0f / static_cast<float>(teachers.size());
  for (std::size_t i = 0; i < teachers.size(); ++i) {
    const auto& [teacher, plan] = teachers[i];
    const Matrix all{i == 0 ? q.data : more, q.rows, q.cols, q.ld};
    plan.ops.run(plan.splits, q.rows, [&](Ops& ops, int64_t begin, int64_t end) {
      const Matrix logits = all.part(begin, end);
      ops.matmul(logits, teacher->final_rows(ops, first + begin, end - begin), ConstMatrix(plan.weights.head).t());
      ops.add_softmax(q.part(begin, end), logits, weight, i > 0);
    });
  }
}

const float* Transformer::run_head(const Plan& plan, const int32_t* targets, int64_t normalizer, bool backward,
                                   float* d_normed, const Lesson& lesson) {
  const int64_t c = config_.d_model, v = config_.vocab_size, rows = plan.rows();
  const int64_t teachers = static_cast<int64_t>(lesson.teachers.size());
  const Operands operands = plan.ops.whole().operands();
  HeadBuffers buffers{};
  work_->head_arena.reserve(buffers.carve(config_, plan.ops.whole(), rows, backward, teachers, nullptr));
  buffers.carve(config_, plan.ops.whole(), rows, backward, teachers, work_->head_arena.data());
  const float grad_scale = backward ? 1.0f / static_cast<float>(normalizer) : 0.0f;

  const ConstMatrix head = plan.weights.head;
  const auto [most, ld] = buffers.layout;
  for (int64_t first = 0; first < rows; first += most) {
    check_interrupt();
    const int64_t n = std::min(most, rows - first);
    const Matrix all_logits{buffers.logits, n, v, ld}, q{buffers.probabilities, n, v, ld};
    const Matrix all_gradients = operands.pairs ? operands.matrix(buffers.gradient, n, v) : all_logits;
    if (teachers > 0) lesson.probabilities(q, buffers.of_one_teacher, first);
    plan.ops.run(plan.splits, n, [&](Ops& ops, int64_t begin, int64_t end) {
      const int64_t row = first + begin, count = end - begin;
      const Matrix logits = all_logits.part(begin, end), gradient = all_gradients.part(begin, end);
      ops.matmul(logits, final_rows(ops, row, count), head.t());
      if (teachers > 0) {
        ops.soft_cross_entropy(buffers.losses + row, logits, q.part(begin, end), targets + row, lesson.share,
                               grad_scale, gradient);
      } else {
        ops.cross_entropy(buffers.losses + row, logits, targets + row, grad_scale, gradient);
      }
      if (backward) ops.matmul({d_normed + row * c, count, c}, gradient, head);
    });
    if (!backward) continue;
    const BlockContext whole{plan.ops.whole(), config_, n, 1, nullptr, plan.splits > 1};
    whole.weight_gradients({{grads_.head, all_gradients, final_rows(whole.ops, first, n), nullptr}});
  }
  return buffers.losses;
}

void Transformer::run_backward(const Plan& plan, const int32_t* ids, const float* d_normed) {
  Ops& whole_ops = plan.ops.whole();
  const Operands operands = whole_ops.operands();
  const float* const turns = work_->rotation.turns();
  const BlockContext whole{whole_ops, config_, plan.batch, plan.length, turns, plan.splits > 1};
  const int64_t m = plan.rows(), c = config_.d_model;
  const Matrix dwpe = grads_.wpe;
  const std::vector<BlockActivations>& blocks = work_->activations.blocks;
  Scratch& s = work_->activations.scratch;
  Progress* const progress = device_.memory().on_host() ? progress_.get() : nullptr;
  if (config_.final_norm().affine) {
    whole_ops.norm_grad(grads_.norm_w.data, grads_.norm_b.data, {d_normed, m, c}, {work_->activations.output, m, c},
                        final_stats(0), config_.final_norm().kind);
  }
  if (progress != nullptr && !config_.tied_head) {
    progress->reach((config_.final_norm().affine ? grads_.norm_w : grads_.head).data - gradients_.data());
  }
  for (std::size_t l = blocks.size(); l-- > 0;) {
    check_interrupt();
    const bool top = l + 1 == blocks.size();
    const float* output = top ? work_->activations.output : blocks[l + 1].input;
    plan.ops.run(plan.splits, plan.batch, [&](Ops& ops, int64_t begin, int64_t end) {
      const int64_t row = begin * plan.length;
      const BlockContext ctx{ops,        config_, end - begin, plan.length, turns, false, static_cast<int64_t>(l),
                             plan.noise, row};
      const int64_t rows = ctx.rows();
      const BufferPlan from(config_, operands, true, begin, plan.length);
      const Scratch mine = scratch_from(s, from);
      if (top && config_.final_norm()) {
        ops.norm_backward({mine.d_output, rows, c}, {d_normed + row * c, rows, c}, {output + row * c, rows, c},
                          final_stats(row), final_norm(), nullptr);
      }
      config_.block->backward(ctx, plan.weights.blocks[l], activations_from(blocks[l], from), mine, output + row * c);
    });
    config_.block->gradients(whole, grads_.blocks[l], blocks[l], s);
    if (progress != nullptr) progress->reach(first_tensor(grads_.blocks[l]) - gradients_.data());
    std::swap(s.d_output, s.d_input);
  }
  const Matrix d_embedding{s.d_output, m, c};
  if (plan.noise.drops()) {
    whole_ops.dropout(d_embedding, d_embedding, plan.noise.dropout(0, DropoutSite::kEmbedding, 0));
  }
  whole_ops.embed_backward(grads_.wte, config_.learned_positions() ? &dwpe : nullptr, d_embedding, ids,
                           work_->ids.data(), plan.length);
}

double Transformer::run_loss(const Task& task, bool backward, const Noise& noise, const Teaching& teaching) {
  auto [ids, targets, batch, length, normalizer] = task;
  take_ids(ids, batch, length);
  take_targets(targets, batch * length, &normalizer);
  if (backward) gradients();
  for (const Transformer* teacher : teaching.teachers) {
    check(teacher->config_.vocab_size == config_.vocab_size && teacher->config_.max_seq_len >= length,
          "a teacher must have a vocabulary of ", config_.vocab_size, " and read ", length, " tokens");
    check(&teacher->device_ == &device_, "a teacher must be on ", device_.name(), ", the device of the model, got ",
          teacher->device_.name());
  }
  ids = upload(work_->id_arena, work_->ids);
  const Lesson lesson = begin_lesson(teaching, ids, batch, length);  // teachers see every token
  if (noise.mask_tokens(work_->ids.data(), batch * length)) upload(work_->id_arena, work_->ids);
  targets = upload(work_->target_arena, work_->targets);
  const float* losses = nullptr;
  const auto pass = [&] {
    Plan plan = this->plan(backward ? work_->ops : ops_of_evaluation(), batch, length, backward);
    plan.noise = noise;
    run_blocks(plan, ids, backward);
    const Scratch& s = work_->activations.scratch;
    float* const d_normed = config_.final_norm() ? s.d_input : s.d_output;
    losses = run_head(plan, targets, normalizer, backward, d_normed, lesson);
    if (backward) run_backward(plan, ids, d_normed);
  };
  batch * length * arena_size() <= kMostRepeated ? repeat(pass) : pass();
  work_->losses.resize(work_->targets.size());
  device_.memory().download(work_->losses.data(), losses, work_->losses.size() * sizeof(float));
  if (backward && progress_ != nullptr) progress_->reach(0);
  double total = 0;
  for (const float row : work_->losses) total += row;
  return total / static_cast<double>(normalizer);
}

double Transformer::loss(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length,
                         int64_t normalizer) {
  return device_.run([&] { return run_loss({ids, targets, batch, length, normalizer}, false, {}, {}); });
}

double Transformer::loss_and_grad(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length,
                                  int64_t normalizer, const Noise& noise, const Teaching& teaching) {
  return device_.run([&] { return run_loss({ids, targets, batch, length, normalizer}, true, noise, teaching); });
}

}  // namespace soma
