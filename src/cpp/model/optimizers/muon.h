// Muon (Jordan et al. 2024): the momentum of a hidden matrix is replaced by its orthogonal factor before the update.
// Everything else (embeddings, head, gains, biases) is AdamW's, with the same learning rate and decay.
#pragma once

#include <vector>

#include "model/optimizers/adamw.h"

namespace soma {

struct MuonConfig {
  AdamWConfig adamw;        // of everything else; lr, decay, clipping and caution are those of matrices too
  double adamw_decay = -1;  // decay of everything else; below 0: as of matrices
  bool classic = false;     // one polynomial five times instead of Polar Express
  int64_t head_blocks = 0;  // heads of attention that are one matrix; 0: all are

  // Throws std::invalid_argument naming the option and its limits.
  void validate() const;
};

class Muon final : public Optimizer {
 public:
  Muon(Transformer& model, const MuonConfig& config);
  std::vector<StateArray> state() override;

 private:
  // A matrix that is orthogonalised: where it begins in the arenas, and floats from row to row.
  struct Piece {
    int64_t offset, rows, cols, ld;
  };
  void cut(const ParameterInfo& info);
  void update(const StepOptions& options, float grad_scale) override;
  void update_piece(Ops& ops, const Piece& piece, const StepOptions& options, float grad_scale, float* scratch);
  // out = the product of polynomials first..last - 1 of x x^T, times x.
  void iterate(Ops& ops, const Matrix& out, const Matrix& x, int first, int last, float* scratch) const;
  int64_t scratch_floats(Ops& ops, const Piece& piece) const;

  const MuonConfig options_;
  std::vector<const ParameterInfo*> hidden_;
  std::vector<Piece> pieces_;
  double work_ = 0;  // multiply-adds of a step
  Arena first_;      // momentum of matrices, first moments of everything else
  AdamWPass pass_;
  std::vector<Arena> scratch_;  // of each matrix that is under way
};

}  // namespace soma
