// Hidden states, and scores of targets, whose logits exist for some rows at a time.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/interrupt.h"
#include "model/transformer.h"

namespace soma {

void Transformer::hidden(float* rows, const int32_t* ids, int64_t batch, int64_t length) {
  take_ids(ids, batch, length);
  device_.run([&] {
    const Plan plan = this->plan(ops_of_evaluation(), batch, length, false);
    run_blocks(plan, upload(work_->id_arena, work_->ids), false);
    const int64_t m = plan.rows(), c = config_.d_model;
    Ops& ops = plan.ops.whole();
    const float* from = work_->activations.final_normed;
    if (config_.final_norm() && ops.operands().pairs) {
      const Matrix output{work_->activations.output, m, c};
      ops.norm(output, final_stats(0), output, final_norm(), config_.norm_eps());
      from = output.data;
    }
    device_.memory().download(rows, from, static_cast<std::size_t>(m * c) * sizeof(float));
  });
}

Matrix Transformer::gather_rows(Ops& ops, const int64_t* rows, int64_t count, float* memory) {
  if (rows[count - 1] - rows[0] == count - 1) return final_rows(ops, rows[0], count);
  Matrix gathered = final_rows(ops, 0, count);
  gathered.data = memory;
  for (int64_t begin = 0, end = 1; begin < count; begin = end++) {
    while (end < count && rows[end] - rows[end - 1] == 1) ++end;
    const Matrix run = final_rows(ops, rows[begin], end - begin);
    device_.memory().copy(gathered.row(begin), run.data, static_cast<std::size_t>(run.rows * run.ld) * sizeof(float));
  }
  return gathered;
}

TargetScores Transformer::score(const int32_t* ids, const int32_t* targets, int64_t batch, int64_t length,
                                int64_t top) {
  const int64_t v = config_.vocab_size;
  check(top >= 0 && top <= v, "top must be from 0 to ", v, ", got ", top);
  take_ids(ids, batch, length);
  int64_t normalizer = 1;
  take_targets(targets, batch * length, &normalizer);
  std::vector<int64_t> rows;  // those whose targets count
  for (int64_t r = 0; r < batch * length; ++r) {
    if (work_->targets[static_cast<std::size_t>(r)] != kIgnoredTarget) rows.push_back(r);
  }
  std::erase(work_->targets, kIgnoredTarget);
  const auto count = static_cast<int64_t>(rows.size());
  TargetScores scores{.logprobs = std::vector<float>(rows.size()),
                      .ranks = std::vector<int32_t>(rows.size()),
                      .top_ids = std::vector<int32_t>(rows.size() * static_cast<std::size_t>(top)),
                      .top_logprobs = std::vector<float>(rows.size() * static_cast<std::size_t>(top))};
  if (count == 0) return scores;
  device_.run([&] {
    const Plan plan = this->plan(ops_of_evaluation(), batch, length, false);
    run_blocks(plan, upload(work_->id_arena, work_->ids), false);
    const int32_t* const on_device = upload(work_->target_arena, work_->targets);
    Ops& whole = plan.ops.whole();
    ScoreBuffers buffers{};
    work_->head_arena.reserve(buffers.carve(config_, whole, count, top, nullptr));
    buffers.carve(config_, whole, count, top, work_->head_arena.data());
    Memory& memory = device_.memory();
    const auto fetch = [&](auto& to, const auto* from, int64_t first, int64_t numbers) {
      if (numbers > 0) memory.download(to.data() + first, from, static_cast<std::size_t>(numbers) * sizeof *from);
    };
    for (int64_t first = 0; first < count; first += buffers.layout.rows) {
      check_interrupt();
      const int64_t n = std::min(buffers.layout.rows, count - first);
      const Matrix states = gather_rows(whole, rows.data() + first, n, buffers.rows);
      const Matrix all_logits{buffers.logits, n, v, buffers.layout.ld};
      plan.ops.run(plan.splits, n, [&](Ops& ops, int64_t begin, int64_t end) {
        const Matrix logits = all_logits.part(begin, end);
        ops.matmul(logits, states.part(begin, end), ConstMatrix(plan.weights.head).t());
        ops.score(buffers.scores.from(begin), logits, on_device + first + begin);
      });
      fetch(scores.logprobs, buffers.scores.logprobs, first, n);
      fetch(scores.ranks, buffers.scores.ranks, first, n);
      fetch(scores.top_ids, buffers.scores.top_ids, first * top, n * top);
      fetch(scores.top_logprobs, buffers.scores.top_logprobs, first * top, n * top);
    }
  });
  check(std::all_of(scores.logprobs.begin(), scores.logprobs.end(), [](float x) { return std::isfinite(x); }),
        "a logit is not finite: the model's weights are broken or were trained to divergence");
  return scores;
}

}  // namespace soma
