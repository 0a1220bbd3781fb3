// The tensors of a model, each declared once. visit() serves sizing, carving, initial values, weight decay, names and
// Python views. Values, gradients and both moments have the same layout, each in an arena of its own.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "model/blocks/block_weights.h"
#include "model/config.h"
#include "ops/ops.h"

namespace soma {

// The parts of a hidden matrix that an optimizer updates separately: the columns of each part, side by side. In a part,
// heads of attention may follow each other along rows or along columns.
enum class Heads { kNone, kRows, kColumns };
struct MatrixParts {
  std::vector<int64_t> widths{};  // empty: one part
  Heads heads = Heads::kNone;
};

struct Tensor {
  float* data = nullptr;
  int64_t rows = 0, cols = 0;  // a vector has rows == 1 and is_vector
  bool is_vector = false;
  bool is_hidden = false;  // a matrix between hidden activations: no vector, no table of embeddings, no head
  MatrixParts parts;
  float *panels = nullptr, *panels_transposed = nullptr;  // see ConstMatrix

  int64_t size() const { return rows * cols; }
  operator Matrix() const { return {data, rows, cols}; }
  operator ConstMatrix() const {
    ConstMatrix m{data, rows, cols};
    m.panels = panels;
    m.panels_transposed = panels_transposed;
    return m;
  }
};

enum class Init {
  kNormal,    // N(0, 0.02)
  kResidual,  // N(0, 0.02 / sqrt(2 n_layers)): projections back into the residual stream (Radford et al. 2019)
  kZero,
  kOne,
};

// Declares the tensors of a model or block, one call for each.
class Declare {
 public:
  using Visit = std::function<void(const std::string& name, Tensor& t, Init init)>;
  Declare(std::string prefix, const Visit& visit) : prefix_(std::move(prefix)), visit_(visit) {}

  void matrix(const char* name, Tensor& t, int64_t rows, int64_t cols, Init init = Init::kNormal,
              const MatrixParts& parts = {}) const {
    t.is_hidden = true;
    t.parts = parts;
    declare(name, t, rows, cols, init);
  }
  // A matrix with a row for each token or position: embeddings, and the head.
  void table(const char* name, Tensor& t, int64_t rows, int64_t cols) const {
    declare(name, t, rows, cols, Init::kNormal);
  }
  void vector(const char* name, Tensor& t, int64_t size, Init init) const {
    t.is_vector = true;
    declare(name, t, 1, size, init);
  }

 private:
  void declare(const char* name, Tensor& t, int64_t rows, int64_t cols, Init init) const {
    t.rows = rows;
    t.cols = cols;
    visit_(prefix_ + name, t, init);
  }

  const std::string prefix_;  // begins every name
  const Visit& visit_;
};

using BlockParameters = BlockWeights<Tensor, Tensor>;

struct Parameters {
  Tensor wte, wpe;  // (V, C), (max_seq_len, C)
  std::vector<BlockParameters> blocks;
  Tensor norm_w, norm_b;  // gain of the final norm, and shift if it has one
  Tensor head;            // (V, C); if tied, the memory of wte

  // Carves the tensors out of `base` (null: only shapes). Returns their floats.
  int64_t carve(const ModelConfig& config, float* base);

  // Calls visit(name, tensor, init) for every tensor, in the order of the arena.
  void visit(const ModelConfig& config, const Declare::Visit& visit);
};

struct ParameterInfo {
  std::string name;
  int64_t offset;  // floats from the start of the arena
  int64_t rows, cols;
  bool is_vector, is_hidden;
  MatrixParts parts;
  Init init;
  int64_t size() const { return rows * cols; }
  bool decays() const { return !is_vector; }  // weight decay is for matrices and embeddings only
};

// The tensors as a list.
std::vector<ParameterInfo> describe_parameters(const ModelConfig& config);

int64_t num_parameters(const ModelConfig& config);
// The parameters in the matrices that a token is multiplied with: those of the blocks, and the head.
int64_t multiplied_parameters(const ModelConfig& config);

// Sets initial values, the same bits on every device. Tensor i draws from stream i of the seed.
void initialize_parameters(const ModelConfig& config, Memory& memory, float* arena, uint64_t seed);

}  // namespace soma
