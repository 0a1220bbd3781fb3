// DecodeWeights, Decoder and Sampler.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "handle.h"
#include "model/decode_weights.h"
#include "model/decoder.h"
#include "model/growth.h"
#include "model/sampler.h"
#include "model/token_score.h"
#include "registers.h"

namespace {

using soma::check;
using Logits = py::array_t<float, py::array::c_style>;
using Score = std::pair<double, std::vector<std::pair<int32_t, double>>>;  // of a token, and of the likeliest ones

struct DecodeWeightsHandle {
  ModelHandle& model;
  std::unique_ptr<soma::DecodeWeights> weights;

  DecodeWeightsHandle(ModelHandle& handle, const std::string& format) : model(handle) {
    const soma::WeightFormat parsed = parse_weight_format(format);
    compute(model, [&] { weights = std::make_unique<soma::DecodeWeights>(handle.transformer, parsed); });
  }
};

struct DecoderHandle {
  ModelHandle& model;
  std::unique_ptr<soma::DecodeWeights> live;  // made here if the caller gave none
  soma::Decoder decoder;

  DecoderHandle(ModelHandle& handle, int64_t rows, const DecodeWeightsHandle* given, soma::CacheFormat cache)
      : model(handle),
        live(given == nullptr ? std::make_unique<soma::DecodeWeights>(handle.transformer) : nullptr),
        decoder(given == nullptr ? *live : *given->weights, rows, cache) {
    check(given == nullptr || &given->model == &handle, "weights must be made of the model that they are given with");
  }

  void prefill(int64_t row, const Ids& ids) {
    check(ids.ndim() == 1, "ids must have one dimension, got ", ids.ndim());
    const int32_t* data = ids.data();
    const int64_t length = ids.shape(0);
    compute(model, [&] { decoder.prefill(row, data, length); });
  }

  void extend(const Ids& rows, const Ids& keep, const std::vector<Ids>& ids) {
    check(rows.ndim() == 1 && keep.ndim() == 1 && rows.shape(0) == keep.shape(0) &&
              rows.size() == static_cast<py::ssize_t>(ids.size()),
          "rows, keep and ids must be of the same length");
    std::vector<soma::PromptPiece> pieces;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      check(ids[i].ndim() == 1, "ids must have one dimension each, got ", ids[i].ndim());
      pieces.push_back({rows.data()[i], keep.data()[i], ids[i].data(), ids[i].shape(0)});
    }
    compute(model, [&] { decoder.extend(pieces.data(), static_cast<int64_t>(pieces.size())); });
  }

  void copy_row(int64_t from, int64_t to, int64_t length) {
    compute(model, [&] { decoder.copy_row(from, to, length); });
  }

  // For each row: tokens, scores, error.
  std::vector<std::tuple<std::vector<int32_t>, std::vector<Score>, std::string>> grow(
      const std::vector<int64_t>& rows, const std::vector<soma::Sampler*>& samplers, const std::vector<int64_t>& left,
      const std::vector<int64_t>& tops, const std::vector<int32_t>& ends, int64_t steps) {
    check(rows.size() == samplers.size() && rows.size() == left.size() && rows.size() == tops.size(),
          "rows, samplers, left and tops must be of the same length");
    std::vector<soma::Growth> growths;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      check(decoder.length(rows[i]) > 0, "row ", rows[i], " is empty: prefill it first");
      check(left[i] >= 1, "left must be at least 1, got ", left[i]);
      check(samplers[i] != nullptr && samplers[i]->vocab_size() == decoder.vocab_size(),
            "samplers must be of the model's vocabulary");
      growths.push_back({rows[i], samplers[i], left[i], tops[i]});
    }
    compute(model, [&] { soma::grow(decoder, growths, ends, steps); });
    std::vector<std::tuple<std::vector<int32_t>, std::vector<Score>, std::string>> result;
    for (soma::Growth& g : growths) {
      std::vector<Score> scores;
      for (soma::TokenScore& score : g.scores) scores.emplace_back(score.log_probability, std::move(score.top));
      result.emplace_back(std::move(g.tokens), std::move(scores), std::move(g.error));
    }
    return result;
  }

  void step(const Ids& rows, const Ids& ids) {
    check(rows.ndim() == 1 && ids.ndim() == 1 && rows.shape(0) == ids.shape(0),
          "rows and ids must be one-dimensional and of the same length");
    const int32_t *row_data = rows.data(), *id_data = ids.data();
    const int64_t count = rows.shape(0);
    compute(model, [&] { decoder.step(row_data, id_data, count); });
  }
};

std::vector<int32_t> list_of(const std::optional<Ids>& ids) {
  return ids ? std::vector<int32_t>(ids->data(), ids->data() + ids->size()) : std::vector<int32_t>();
}

void check_size(const soma::Sampler& sampler, const Logits& logits) {
  check(logits.size() == sampler.vocab_size(), "logits must hold vocab_size = ", sampler.vocab_size(), " numbers, got ",
        logits.size());
}

}  // namespace

void register_generation(py::module_& m) {
  py::class_<DecodeWeightsHandle>(m, "DecodeWeights",
                                  "A copy of a model's weights for generation, in 'float32', 'bfloat16' or 'int8'.")
      .def(py::init<ModelHandle&, const std::string&>(), py::keep_alive<1, 2>(), py::arg("model"), py::arg("format"))
      .def_property_readonly("bytes_per_token",
                             [](const DecodeWeightsHandle& h) { return h.weights->bytes_per_token(); });

  py::class_<DecoderHandle> decoder(m, "Decoder", "Generation with cached keys and values, one row a sequence.");
  decoder
      .def(py::init([](ModelHandle& model, int64_t batch_size, std::optional<DecodeWeightsHandle*> weights,
                       const std::string& kv_cache) {
             return std::make_unique<DecoderHandle>(model, batch_size, weights.value_or(nullptr),
                                                    parse_cache_format(kv_cache));
           }),
           py::keep_alive<1, 2>(), py::keep_alive<1, 4>(), py::arg("model"), py::arg("batch_size"),
           py::arg("weights") = py::none(), py::arg("kv_cache") = "float32")
      .def_static(
          "bytes_per_row",
          [](const ModelHandle& h, const std::string& kv_cache) {
            return soma::Decoder::bytes_per_row(h.transformer.config(), parse_cache_format(kv_cache));
          },
          py::arg("model"), py::arg("kv_cache") = "float32", "Bytes of keys, values and logits of a row.")
      .def("prefill", &DecoderHandle::prefill, py::arg("row"), py::arg("ids"))
      .def("extend", &DecoderHandle::extend, py::arg("rows"), py::arg("keep"), py::arg("ids"),
           "Reads pieces of prompts: each row keeps its first `keep` tokens, and its ids follow.")
      .def("step", &DecoderHandle::step, py::arg("rows"), py::arg("ids"))
      .def("copy_row", &DecoderHandle::copy_row, py::arg("from_row"), py::arg("to_row"), py::arg("length"))
      .def("logits",
           [](const py::object& self) {
             auto& handle = self.cast<DecoderHandle&>();
             const py::ssize_t rows = handle.decoder.rows(), vocab = handle.decoder.vocab_size();
             return py::array_t<float>({rows, vocab}, handle.decoder.logits(), self);
           })
      .def("length", [](const DecoderHandle& h, int64_t row) { return h.decoder.length(row); }, py::arg("row"));

  py::class_<soma::Sampler>(m, "Sampler", "Draws the next token from logits. A rule that is not given is off.")
      .def(py::init([](int64_t vocab_size, double temperature, int64_t top_k, double top_p, double repetition_penalty,
                       uint64_t seed, const Ids& banned_ids, double min_p, double presence_penalty,
                       double frequency_penalty, int64_t no_repeat_ngram_size, double dry_multiplier, double dry_base,
                       int64_t dry_allowed_length, const std::optional<Ids>& dry_breakers,
                       std::vector<std::vector<int32_t>> dry_breaker_sequences,
                       std::vector<std::pair<int32_t, float>> logit_bias) {
             return std::make_unique<soma::Sampler>(soma::SamplerConfig{
                 .vocab_size = vocab_size,
                 .logit_bias = std::move(logit_bias),
                 .repetition_penalty = repetition_penalty,
                 .presence_penalty = presence_penalty,
                 .frequency_penalty = frequency_penalty,
                 .dry_multiplier = dry_multiplier,
                 .dry_base = dry_base,
                 .dry_allowed_length = dry_allowed_length,
                 .dry_breakers = list_of(dry_breakers),
                 .dry_breaker_sequences = std::move(dry_breaker_sequences),
                 .no_repeat_ngram_size = no_repeat_ngram_size,
                 .temperature = temperature,
                 .top_k = top_k,
                 .top_p = top_p,
                 .min_p = min_p,
                 .seed = seed,
                 .banned_ids = list_of(banned_ids),
             });
           }),
           py::kw_only(), py::arg("vocab_size"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
           py::arg("repetition_penalty"), py::arg("seed"), py::arg("banned_ids"), py::arg("min_p") = 0.0,
           py::arg("presence_penalty") = 0.0, py::arg("frequency_penalty") = 0.0, py::arg("no_repeat_ngram_size") = 0,
           py::arg("dry_multiplier") = 0.0, py::arg("dry_base") = 1.75, py::arg("dry_allowed_length") = 2,
           py::arg("dry_breakers") = py::none(), py::arg("dry_breaker_sequences") = py::tuple(),
           py::arg("logit_bias") = py::tuple())
      .def(
          "observe", [](soma::Sampler& s, const Ids& ids) { s.observe(ids.data(), ids.size()); }, py::arg("ids"))
      .def(
          "restrict_next", [](soma::Sampler& s, const Ids& ids) { s.restrict_next(list_of(ids)); }, py::arg("ids"),
          "The next draw takes one of these ids")
      .def(
          "sample",
          [](soma::Sampler& s, const Logits& logits) {
            check_size(s, logits);
            return s.sample(logits.data());
          },
          py::arg("logits"))
      .def(
          "probabilities",
          [](soma::Sampler& s, const Logits& logits) {
            check_size(s, logits);
            py::array_t<double> result(logits.size());
            s.probabilities(result.mutable_data(), logits.data());
            return result;
          },
          py::arg("logits"), "What sample draws from: float64 (vocab_size,)");

  m.def(
      "score_token",
      [](const Logits& logits, int32_t id, int64_t top) {
        auto score = soma::score_token({logits.data(), static_cast<std::size_t>(logits.size())}, id, top);
        return std::pair(score.log_probability, std::move(score.top));
      },
      py::arg("logits"), py::arg("id"), py::arg("top"),
      "The log-probability of an id, and the `top` most likely ids with theirs");

  // After the class of its samplers, which the stub names.
  decoder.def("grow", &DecoderHandle::grow, py::arg("rows"), py::arg("samplers"), py::arg("left"), py::arg("tops"),
              py::arg("ends"), py::arg("steps"),
              "Draws and appends at most `steps` tokens a row: (tokens, scores, error) of each. A token of `ends`, the "
              "last of `left` and one that does not fit are not appended. A row whose `tops` is -1 has no scores.");
}
