// Adds up the plans of all arenas. Those of ops, which depend on how a job is cut, are estimated.
#include "model/memory.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "base/parallel.h"
#include "model/activations.h"
#include "model/optimizers/muon.h"
#include "model/parameters.h"

namespace soma {
namespace {

constexpr int64_t kPacked = int64_t{4} << 20;    // most floats that an op packs
constexpr int64_t kOfThread = int64_t{1} << 18;  // in the ops of a thread: blocks of operands, scores of attention

// In ops of the processor.
int64_t packed_floats(const ModelConfig& config, const Ops& ops, int64_t rows) {
  int64_t packed = 0;
  for (const ParameterInfo& info : describe_parameters(config)) {
    if (!info.is_vector) packed = std::max(packed, ops.packed_floats(std::max(rows, info.rows), info.cols));
  }
  return std::min(packed, kPacked) + call_threads() * kOfThread;
}

// Of a device with memory of its own: all weights, packed first, and the gradients of attention in an op's scratch.
int64_t device_floats(const ModelConfig& config, const Ops& ops, int64_t rows, bool for_backward) {
  int64_t packed = ops.packed_floats(config.d_model, config.vocab_size);
  for (const ParameterInfo& info : describe_parameters(config)) {
    if (info.is_hidden) packed += ops.packed_floats(info.rows, info.cols);
  }
  return packed * (for_backward ? 2 : 1) + rows * (config.qkv_dim() + config.q_dim());
}

int64_t buffer_floats(const ModelConfig& config, Device& device, const Ops& ops, int64_t batch, int64_t length,
                      bool for_backward) {
  const int64_t rows = batch * length;
  return Activations{}.carve(config, ops.operands(), batch, length, for_backward, /*drops=*/true, nullptr) +
         (device.memory().on_host() ? packed_floats(config, ops, rows)
                                    : device_floats(config, ops, rows, for_backward));
}

}  // namespace

int64_t training_floats(const ModelConfig& config, Device& device, Precision precision, bool muon, int64_t batch,
                        int64_t length, int64_t teachers) {
  const std::unique_ptr<Ops> ops = device.make_ops(precision);
  int64_t second_moments = 0, scratch = 0, pieces = 0;
  for (const ParameterInfo& info : describe_parameters(config)) {
    if (!muon || !info.is_hidden) {
      second_moments += info.size();
      continue;
    }
    const std::vector<int64_t> whole{info.cols};
    for (const int64_t cols : info.parts.widths.empty() ? whole : info.parts.widths) {
      scratch = std::max(scratch, muon_scratch_floats(*ops, info.rows, cols));
      ++pieces;
    }
  }
  const int64_t at_once = pieces >= device.splits() ? device.splits() : 1;
  return 3 * Parameters{}.carve(config, nullptr) + second_moments + at_once * scratch +
         buffer_floats(config, device, *ops, batch, length, true) +
         HeadBuffers{}.carve(config, *ops, batch * length, true, teachers, nullptr);
}

int64_t teacher_floats(const ModelConfig& config, Device& device, Precision precision, int64_t batch, int64_t length) {
  const std::unique_ptr<Ops> ops = device.make_ops(precision);
  return Parameters{}.carve(config, nullptr) + buffer_floats(config, device, *ops, batch, length, false);
}

}  // namespace soma
