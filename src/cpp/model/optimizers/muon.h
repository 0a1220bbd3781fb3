// Muon (Jordan et al. 2024): the momentum of a hidden matrix is replaced by its orthogonal factor before the update.
// AdamW updates all other parameters (embeddings, head, gains, biases), with the same learning rate and decay.
#pragma once

#include <vector>

#include "model/optimizers/adamw.h"

namespace soma {

struct MuonConfig {
  AdamWConfig adamw;        // for other parameters; lr, decay, clipping and cautious hold for matrices too
  double adamw_decay = -1;  // decay of other parameters; below 0: the decay of matrices
  bool classic = false;     // one polynomial five times instead of Polar Express
  int64_t head_blocks = 0;  // heads of attention in one matrix; 0: all heads

  // Throws std::invalid_argument naming the option and its limits.
  void validate() const;
};

// Floats that making a matrix orthogonal takes.
int64_t muon_scratch_floats(const Ops& ops, int64_t rows, int64_t cols);

class Muon final : public Optimizer {
 public:
  Muon(Transformer& model, const MuonConfig& config);
  std::vector<StateArray> state() override;

 private:
  // A matrix that is orthogonalised: its offset in the arenas, its sizes, and the floats from row to row.
  struct Piece {
    int64_t offset, rows, cols, ld;
  };
  void cut(const ParameterInfo& info);
  double update(const StepOptions& options) override;
  void update_piece(Ops& ops, const Piece& piece, const StepOptions& options, float grad_scale, float* scratch);
  // out = the product of the polynomials [first, last) of x x^T, times x.
  void iterate(Ops& ops, const Matrix& out, const Matrix& x, int first, int last, float* scratch) const;

  const MuonConfig options_;
  std::vector<ParameterInfo> hidden_;
  std::vector<Piece> pieces_;
  double work_ = 0;  // multiply-adds of a step
  Arena first_;      // momentum of matrices, first moments of other parameters
  AdamWPass pass_;
  std::vector<Arena> scratch_;  // one for each matrix in progress
};

}  // namespace soma
