// The orthogonal factor by five polynomials of X X^T, in Gram form: a group of polynomials is multiplied together, in
// the smaller of the two sizes, and then with X. X X^T is computed again after each group, because every polynomial
// amplifies the rounding errors of small eigenvalues.
#include "model/optimizers/muon.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/interrupt.h"

namespace soma {
namespace {

constexpr int kSteps = 5;

// The size of the group that begins with polynomial `first`. In bfloat16 only the last two form a group: the first ones
// are steep, and singular values grew without bound.
int count_together(int first, bool pairs) {
  if (pairs) return first < 3 ? 1 : 2;
  return first == 0 ? 2 : 3;
}

struct Coefficients {
  double a, b, c;  // X = (a I + b A + c A^2) X, A = X X^T
};

// Amsel et al. 2025 (arXiv 2505.16932), for five steps.
constexpr std::array<Coefficients, kSteps> kPolarExpress{{
    {8.156554524902461, -22.48329292557795, 15.878769915207462},
    {4.042929935166739, -2.808917465908714, 0.5000178451051316},
    {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
    {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
    {2.3465413258596377, -1.7097828382687081, 0.42323551169305323},
}};
constexpr Coefficients kClassic{3.4445, -4.7750, 2.0315};

// The fewest multiply-adds of a thread.
constexpr double kLeastWork = 1 << 19;

// Floats from row to row of a square matrix: an odd number of cache lines, so that rows do not share their sets of L1.
int64_t square_ld(int64_t n) { return (n + 31) / 32 * 32 + 16; }

}  // namespace

int64_t muon_scratch_floats(const Ops& ops, int64_t rows, int64_t cols) {
  const int64_t n = std::min(rows, cols);
  Carver sizes(nullptr);
  for (int i = 0; i < 2; ++i) sizes.take(ops.operands().floats(rows, cols));
  for (int i = 0; i < 4; ++i) sizes.take(n * square_ld(n));
  for (int i = 0; i < 2; ++i) sizes.take(ops.packed_floats(n, n));
  return sizes.used();
}

void MuonConfig::validate() const {
  adamw.validate();
  check(head_blocks >= 0, "head_blocks must be >= 0, got ", head_blocks);
  check(std::isfinite(static_cast<float>(adamw_decay)), "adamw_weight_decay must be finite, got ", adamw_decay);
}

Muon::Muon(Transformer& model, const MuonConfig& config)
    : Optimizer(model, config.adamw),
      options_(config),
      hidden_(parameters_of(model, config.adamw, true)),
      first_(model.device().memory()),
      pass_(model.device().memory(), parameters_of(model, config.adamw, false)) {
  options_.validate();
  first_.reserve(model.arena_size());
  for (const ParameterInfo& info : hidden_) cut(info);
  for (const Piece& p : pieces_) {
    const auto n = static_cast<double>(std::min(p.rows, p.cols)), m = static_cast<double>(std::max(p.rows, p.cols));
    work_ += 3 * n * n * m + 7 * n * n * n;  // for float32; in bfloat16 the factors are 6 and 4
  }
}

void Muon::cut(const ParameterInfo& info) {
  const std::vector<int64_t> one{info.cols};
  const int64_t heads = options_.head_blocks * model_.config().head_size();
  int64_t first = 0;
  for (const int64_t width : info.parts.widths.empty() ? one : info.parts.widths) {
    const int64_t down = info.parts.heads == Heads::kRows && heads > 0 ? heads : info.rows;
    const int64_t along = info.parts.heads == Heads::kColumns && heads > 0 ? heads : width;
    for (int64_t r = 0; r < info.rows; r += down) {
      for (int64_t c = 0; c < width; c += along) {
        pieces_.push_back({info.offset + r * info.cols + first + c, std::min(down, info.rows - r),
                           std::min(along, width - c), info.cols});
      }
    }
    first += width;
  }
  check(first == info.cols, info.name, " is declared in parts of ", first, " columns, and has ", info.cols);
}

std::vector<StateArray> Muon::state() {
  std::vector<StateArray> arrays;
  for (const ParameterInfo& info : hidden_) arrays.push_back({"momentum", &info, first_.data() + info.offset});
  pass_.add_state(&arrays, first_.data());
  return arrays;
}

double Muon::update(const StepOptions& options) {
  const Uninterrupted whole;
  const int64_t threads = model_.device().splits(), count = static_cast<int64_t>(pieces_.size());
  const bool together = threads > 1 && work_ >= kLeastWork * static_cast<double>(threads);
  const bool side_by_side = together && count >= threads;
  int64_t floats = 0;
  for (const Piece& p : pieces_) floats = std::max(floats, muon_scratch_floats(model_.ops(), p.rows, p.cols));
  while (scratch_.size() < static_cast<std::size_t>(side_by_side ? threads : 1)) {
    scratch_.emplace_back(model_.device().memory());
  }
  for (Arena& arena : scratch_) arena.reserve(floats);

  StepOptions rest = options;
  if (options_.adamw_decay >= 0) rest.weight_decay = options_.adamw_decay;
  const auto body = [&] {
    const Clip clip = pass_.run(model_, first_.data(), config_, rest, steps + 1);
    if (!std::isfinite(clip.norm)) return clip.norm;
    const auto one = [&](Ops& ops, int64_t number, int64_t i) {
      update_piece(ops, pieces_[static_cast<std::size_t>(i)], options, clip.scale,
                   scratch_[static_cast<std::size_t>(number)].data());
    };
    if (side_by_side) {
      model_.split_ops().each(count, one);
    } else {
      model_.repeat([&] {
        for (int64_t i = 0; i < count; ++i) one(model_.ops(), 0, i);
      });
    }
    return clip.norm;
  };
  return together ? model_.device().run(body) : body();
}

void Muon::update_piece(Ops& ops, const Piece& piece, const StepOptions& options, float grad_scale, float* scratch) {
  const auto [offset, rows, cols, ld] = piece;
  const Operands kept = ops.operands();
  const Matrix values{model_.values() + offset, rows, cols, ld}, moments{first_.data() + offset, rows, cols, ld};
  const Matrix factor{model_.gradients() + offset, rows, cols, ld};  // in the memory of the gradient
  Carver carver(scratch);
  Matrix x = kept.matrix(carver.take(kept.floats(rows, cols)), rows, cols);
  Matrix next = kept.matrix(carver.take(kept.floats(rows, cols)), rows, cols);
  float* const squares = scratch + carver.used();

  ops.muon_direction(x, factor, moments, static_cast<float>(options.momentum), grad_scale);
  for (int first = 0; first < kSteps;) {
    const int last = first + count_together(first, kept.pairs);
    iterate(ops, last == kSteps ? factor : next, x, first, last, squares);
    std::swap(x, next);
    first = last;
  }
  ops.muon(values, factor,
           {.lr = static_cast<float>(options.lr),
            .scale = static_cast<float>(0.2 * std::sqrt(static_cast<double>(std::max(rows, cols)))),
            .weight_decay = static_cast<float>(options.weight_decay),
            .cautious = config_.cautious});
}

void Muon::iterate(Ops& ops, const Matrix& out, const Matrix& x, int first, int last, float* scratch) const {
  const bool wide = x.rows <= x.cols;
  const ConstMatrix given = x;
  const int64_t n = std::min(x.rows, x.cols), packed = ops.packed_floats(n, n);
  Carver carver(scratch);
  const auto square = [&] { return Matrix{carver.take(n * square_ld(n)), n, n, square_ld(n)}; };
  Matrix gram = square(), polynomial = square(), product = square(), spare = square();
  float *const gram_panels = carver.take(packed), *const panels = carver.take(packed);
  const auto pack = [&](const Matrix& m, float* to) {
    ConstMatrix right = m;
    right.panels = to;
    const Packing packing{m, to};
    ops.pack(&packing, 1);
    return right;
  };

  ops.matmul(gram, wide ? given : given.t(), wide ? given.t() : given, {.symmetric = true});
  for (int k = first; k < last; ++k) {
    const auto [a, b, c] = options_.classic ? kClassic : kPolarExpress[static_cast<std::size_t>(k)];
    const Quadratic quadratic{static_cast<float>(a), static_cast<float>(b), static_cast<float>(c), &gram};
    const bool more = k + 1 < last;
    const ConstMatrix by_gram = pack(gram, gram_panels);
    ops.matmul(polynomial, gram, by_gram, {.symmetric = true, .quadratic = &quadratic});
    const ConstMatrix by_polynomial = more || k > first ? pack(polynomial, panels) : polynomial;
    if (more) {  // polynomials of one matrix commute, so their products are symmetric
      ops.matmul(spare, polynomial, by_gram, {.symmetric = true});
      ops.matmul(gram, spare, by_polynomial, {.symmetric = true});
    }
    if (k == first) {
      std::swap(product, polynomial);
    } else {
      ops.matmul(spare, product, by_polynomial, {.symmetric = true});
      std::swap(product, spare);
    }
  }
  wide ? ops.matmul(out, product, given) : ops.matmul(out, given, product);
}

}  // namespace soma
