// Proves the core without Python, for machines that only an emulator runs: gradients against differences of the loss,
// the same bits on any number of threads, cached decoding against the full forward, a toy task that must be learned.
// Prints a hash of the initial parameters, which must be the same on every architecture.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/isa.h"
#include "base/parallel.h"
#include "model/decoder.h"
#include "model/optimizer.h"
#include "model/transformer.h"

namespace {

using soma::Transformer;

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (!condition) ++failures;
  std::printf("%s %s\n", condition ? "ok  " : "FAIL", what.c_str());
}

soma::ModelConfig tiny(soma::BlockStyle block) {
  return {/*vocab_size=*/13,
          /*d_model=*/24,
          /*n_layers=*/2,
          /*n_heads=*/3,
          /*d_ff=*/40,
          /*max_seq_len=*/11,
          block,
          /*tied_head=*/block == soma::BlockStyle::kGpt2};
}

// The sequence 0, 3, 6, ... modulo the vocabulary, from another start in each row: easy to learn.
struct Batch {
  int64_t rows = 5, length = 11;
  std::vector<int32_t> ids, targets;
  explicit Batch(int64_t vocab) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < length; ++t) {
        ids.push_back(static_cast<int32_t>((2 * r + 3 * t) % vocab));
        targets.push_back(static_cast<int32_t>((2 * r + 3 * (t + 1)) % vocab));
      }
    }
  }
};

double loss(Transformer& model, const Batch& b) {
  return model.loss(b.ids.data(), b.targets.data(), b.rows, b.length, 0);
}

double loss_and_grad(Transformer& model, const Batch& b) {
  return model.loss_and_grad(b.ids.data(), b.targets.data(), b.rows, b.length, 0);
}

// FNV-1a (Fowler, Noll, Vo) over the bytes of every parameter in the order of the plan.
uint64_t hash_parameters(Transformer& model) {
  uint64_t hash = 14695981039346656037ull;
  for (const soma::ParameterInfo& info : model.parameter_infos()) {
    for (int64_t i = 0; i < info.size(); ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, model.values() + info.offset + i, sizeof(bits));
      for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((bits >> shift) & 255u)) * 1099511628211ull;
    }
  }
  return hash;
}

// A step along the gradient itself: (loss(p + h g) - loss(p - h g)) / 2h is |g|^2 up to O(h^2) and rounding. The best
// of several h, as the two errors pull in opposite directions.
double gradient_error(Transformer& model, const Batch& batch) {
  model.zero_grad();
  loss_and_grad(model, batch);
  const std::vector<float> start(model.values(), model.values() + model.arena_size());
  const std::vector<float> gradient(model.gradients(), model.gradients() + model.arena_size());
  double squares = 0;
  for (const float g : gradient) squares += static_cast<double>(g) * g;
  double best = std::numeric_limits<double>::infinity();
  for (const double h : {3e-2, 1e-2, 3e-3}) {
    double sides[2] = {0, 0};
    for (int side = 0; side < 2; ++side) {
      const float step = static_cast<float>((side == 0 ? h : -h) / std::sqrt(squares));
      for (std::size_t i = 0; i < start.size(); ++i) model.values()[i] = start[i] + step * gradient[i];
      sides[side] = loss(model, batch);
    }
    const double measured = (sides[0] - sides[1]) / (2 * h) * std::sqrt(squares);
    best = std::fmin(best, std::fabs(measured - squares) / squares);
  }
  std::memcpy(model.values(), start.data(), start.size() * sizeof(float));
  model.zero_grad();
  return best;
}

double decoding_error(Transformer& model, const Batch& batch) {
  const int64_t vocab = model.config().vocab_size;
  std::vector<float> logits(static_cast<std::size_t>(batch.length * vocab));
  model.forward(logits.data(), batch.ids.data(), 1, batch.length);
  const soma::DecodeWeights weights(model);
  soma::Decoder decoder(weights, 1);
  decoder.prefill(0, batch.ids.data(), 4);
  double largest = 0, scale = 0;
  for (int64_t t = 3; t < batch.length; ++t) {
    const int32_t row = 0;
    if (t > 3) decoder.step(&row, &batch.ids[static_cast<std::size_t>(t)], 1);
    for (int64_t v = 0; v < vocab; ++v) {
      const double expected = logits[static_cast<std::size_t>(t * vocab + v)];
      largest = std::fmax(largest, std::fabs(decoder.logits()[v] - expected));
      scale = std::fmax(scale, std::fabs(expected));
    }
  }
  return largest / scale;
}

std::vector<double> train(Transformer& model, const Batch& batch, int steps) {
  soma::AdamW optimizer(model, {1e-2, 0.9, 0.95, 1e-8, 0.01, 1.0});
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) {
    losses.push_back(loss_and_grad(model, batch));
    optimizer.step(1e-2);
  }
  return losses;
}

void check_block(const char* name, soma::BlockStyle block) {
  const soma::ModelConfig config = tiny(block);
  const Batch batch(config.vocab_size);
  const std::string prefix = std::string(name) + ": ";

  Transformer model(config, 7, soma::Precision::kFloat32);
  std::printf("initial %s %016llx\n", name, static_cast<unsigned long long>(hash_parameters(model)));
  const double first = loss(model, batch), uniform = std::log(static_cast<double>(config.vocab_size));
  expect(std::fabs(first - uniform) < 0.5, prefix + "an untrained model guesses evenly, loss " + std::to_string(first));
  const double error = gradient_error(model, batch);
  expect(error < 1e-2, prefix + "gradient against differences, relative error " + std::to_string(error));

  soma::set_num_threads(1);
  const std::vector<double> alone = train(model, batch, 60);
  soma::set_num_threads(3);
  Transformer twin(config, 7, soma::Precision::kFloat32);
  expect(train(twin, batch, 60) == alone, prefix + "the same losses with one thread and with three");
  expect(hash_parameters(twin) == hash_parameters(model),
         prefix + "the same parameters with one thread and with three");
  expect(alone.back() < 0.1, prefix + "the toy task is learned, loss " + std::to_string(alone.back()));
  const double drift = decoding_error(model, batch);
  expect(drift < 1e-5, prefix + "cached decoding against the full forward, error " + std::to_string(drift));
}

}  // namespace

int main() {
  for (const soma::Isa isa : soma::available_isas()) {
    soma::set_isa(soma::isa_name(isa));
    std::printf("-- %s\n", soma::isa_name(isa));
    check_block("soma", soma::BlockStyle::kSoma);
    check_block("gpt2", soma::BlockStyle::kGpt2);
  }
  std::printf(failures == 0 ? "selfcheck passed\n" : "selfcheck: %d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
