// Model: shapes checked, arrays as views of the core's arenas.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "handle.h"
#include "model/blocks/block.h"
#include "model/memory.h"
#include "registers.h"
#include "views.h"

namespace {

using soma::check;

template <typename T>
using Maybe = std::optional<T>;

soma::ModelConfig make_config(int64_t vocab_size, int64_t d_model, int64_t n_layers, int64_t n_heads, int64_t d_ff,
                              int64_t max_seq_len, const std::string& block, bool tied_head,
                              const std::string& activation, bool scale_attn_weights,
                              bool scale_attn_by_inverse_layer_idx, Maybe<int64_t> n_kv_heads, Maybe<int64_t> head_dim,
                              Maybe<bool> qk_norm, Maybe<double> rope_theta, Maybe<double> norm_eps) {
  const soma::ModelConfig config{.vocab_size = vocab_size,
                                 .d_model = d_model,
                                 .n_layers = n_layers,
                                 .n_heads = n_heads,
                                 .d_ff = d_ff,
                                 .max_seq_len = max_seq_len,
                                 .block = &soma::find_block(block),
                                 .tied_head = tied_head,
                                 .activation = soma::find_activation(activation),
                                 .scale_attn_weights = scale_attn_weights,
                                 .scale_attn_by_inverse_layer_idx = scale_attn_by_inverse_layer_idx,
                                 .n_kv_heads = n_kv_heads.value_or(0),
                                 .head_dim = head_dim.value_or(0),
                                 .qk_norm = qk_norm.value_or(false),
                                 .rope_theta = rope_theta.value_or(0),
                                 .eps = norm_eps.value_or(0)};
  config.validate();
  return config;
}

// The options that a block has, with the default of each. None: the default follows from the sizes.
py::typing::Dict<py::str, py::object> block_options(const std::string& name) {
  const soma::BlockTraits& traits = soma::find_block(name).traits;
  py::typing::Dict<py::str, py::object> options;
  const auto option = [&](soma::Option which, const py::object& otherwise) {
    if (traits.has(which)) options[soma::option_name(which)] = otherwise;
  };
  option(soma::Option::kKvHeads, py::none());
  option(soma::Option::kHeadDim, py::none());
  option(soma::Option::kQkNorm, py::bool_(false));
  option(soma::Option::kRopeTheta, py::float_(soma::kRopeTheta));
  option(soma::Option::kNormEps, py::float_(traits.norm_eps));
  return options;
}

struct Batch {
  const int32_t *ids, *targets;
  int64_t rows, length;
};

Batch read_batch(const Ids& ids, const Ids* targets) {
  check(ids.ndim() == 2, "ids must have shape (B, T), got ", ids.ndim(), " dimensions");
  Batch batch{ids.data(), nullptr, ids.shape(0), ids.shape(1)};
  if (targets != nullptr) {
    check(targets->ndim() == 2 && targets->shape(0) == ids.shape(0) && targets->shape(1) == ids.shape(1),
          "targets must have the shape of ids, (", ids.shape(0), ", ", ids.shape(1), ")");
    batch.targets = targets->data();
  }
  return batch;
}

py::array_t<float> forward(ModelHandle& model, const Ids& ids) {
  const Batch batch = read_batch(ids, nullptr);
  py::array_t<float> logits({batch.rows, batch.length, model.transformer.config().vocab_size});
  float* out = logits.mutable_data();
  compute(model, [&] { model.transformer.forward(out, batch.ids, batch.rows, batch.length); });
  return logits;
}

double loss(ModelHandle& model, const Ids& ids, const Ids& targets, int64_t normalizer) {
  const Batch b = read_batch(ids, &targets);
  return compute(model, [&] { return model.transformer.loss(b.ids, b.targets, b.rows, b.length, normalizer); });
}

py::array_t<float> hidden(ModelHandle& model, const Ids& ids) {
  const Batch batch = read_batch(ids, nullptr);
  py::array_t<float> rows({batch.rows, batch.length, model.transformer.config().d_model});
  float* out = rows.mutable_data();
  compute(model, [&] { model.transformer.hidden(out, batch.ids, batch.rows, batch.length); });
  return rows;
}

using Floats = py::array_t<float>;
using Numbers = py::array_t<int32_t>;

py::typing::Tuple<Floats, Numbers, Numbers, Floats> score(ModelHandle& model, const Ids& ids, const Ids& targets,
                                                          int64_t top) {
  const Batch b = read_batch(ids, &targets);
  const soma::TargetScores s =
      compute(model, [&] { return model.transformer.score(b.ids, b.targets, b.rows, b.length, top); });
  const auto count = static_cast<py::ssize_t>(s.ranks.size());
  return py::make_tuple(Floats(count, s.logprobs.data()), Numbers(count, s.ranks.data()),
                        Numbers({count, py::ssize_t{top}}, s.top_ids.data()),
                        Floats({count, py::ssize_t{top}}, s.top_logprobs.data()));
}

double loss_and_grad(ModelHandle& model, const Ids& ids, const Ids& targets, int64_t normalizer,
                     const Maybe<soma::Noise>& noise, const std::vector<ModelHandle*>& teachers, float distill) {
  const Batch b = read_batch(ids, &targets);
  soma::Teaching teaching{.teachers = {}, .share = distill};
  std::vector<ModelHandle*> models{&model};
  for (ModelHandle* teacher : teachers) {
    check(teacher != nullptr, "teachers must be models");
    teaching.teachers.push_back(&teacher->transformer);
    models.push_back(teacher);
  }
  return compute(std::move(models), [&] {
    return model.transformer.loss_and_grad(b.ids, b.targets, b.rows, b.length, normalizer,
                                           noise.value_or(soma::Noise()), teaching);
  });
}

float* arena(ModelHandle& model, bool gradient) {
  if (!gradient) return model.transformer.values();
  return compute(model, [&] { return model.transformer.gradients(); });
}

// The arena as one vector.
soma::ParameterInfo whole(const ModelHandle& model) {
  soma::ParameterInfo info{};
  info.name = "the model";
  info.rows = 1;
  info.cols = model.transformer.arena_size();
  info.is_vector = true;
  return info;
}

}  // namespace

void register_model(py::module_& m) {
  m.def(
      "block_names",
      [] {
        std::vector<std::string> names;
        for (const soma::Block* block : soma::blocks()) names.emplace_back(block->traits.name);
        return names;
      },
      "The architectures there are.");
  m.def(
      "block_ties_head", [](const std::string& block) { return soma::find_block(block).traits.ties_head; },
      py::arg("block"), "Whether the output head is the token embedding where a config does not say.");
  m.def(
      "block_activations",
      [](const std::string& block) {
        std::vector<std::string> names;
        for (const soma::Activation a : soma::find_block(block).traits.activations) {
          names.emplace_back(soma::activation_name(a));
        }
        return names;
      },
      py::arg("block"), "The activations that a block can have, its own first.");
  m.def(
      "block_scales_attention",
      [](const std::string& block) { return soma::find_block(block).traits.scales_attention; }, py::arg("block"),
      "Whether a block takes scale_attn_weights and scale_attn_by_inverse_layer_idx.");
  m.def(
      "model_limits",
      [] {
        py::typing::Dict<py::str, py::typing::Tuple<py::int_, py::int_>> limits;
        for (const soma::SizeLimit& limit : soma::size_limits()) {
          limits[limit.name] = py::make_tuple(limit.low, limit.high);
        }
        return limits;
      },
      "The least and the most that each size of a model may be.");
  m.def(
      "option_limits",
      [] {
        py::typing::Dict<py::str, py::typing::Tuple<py::object, py::object>> limits;
        for (const soma::OptionLimit& limit : soma::option_limits()) {
          const auto as = [&](double value) -> py::object {
            if (limit.whole) return py::int_(static_cast<int64_t>(value));
            return py::float_(value);
          };
          limits[soma::option_name(limit.option)] = py::make_tuple(as(limit.low), as(limit.high));
        }
        return limits;
      },
      "The least and the most value of each option that is a number; the bounds of whole numbers are integers.");
  m.def("block_options", &block_options, py::arg("block"),
        "The options of a config that a block has, with their defaults.");
  const auto none = py::none();
  py::class_<soma::ModelConfig>(m, "Config", "A ModelConfig as the core holds it.")
      .def(py::init(&make_config), py::kw_only(), py::arg("vocab_size"), py::arg("d_model"), py::arg("n_layers"),
           py::arg("n_heads"), py::arg("d_ff"), py::arg("max_seq_len"), py::arg("block"), py::arg("tied_head"),
           py::arg("activation"), py::arg("scale_attn_weights"), py::arg("scale_attn_by_inverse_layer_idx"),
           py::arg("n_kv_heads") = none, py::arg("head_dim") = none, py::arg("qk_norm") = none,
           py::arg("rope_theta") = none, py::arg("norm_eps") = none);
  m.def(
      "parameter_shapes",
      [](const soma::ModelConfig& config) {
        py::typing::Dict<py::str, Shape> shapes;
        for (const soma::ParameterInfo& info : soma::describe_parameters(config)) {
          shapes[py::str(info.name)] = shape_of(info);
        }
        return shapes;
      },
      py::arg("config"), "Shapes of a model's parameters by name, without building it.");
  m.def(
      "parameter_offsets",
      [](const soma::ModelConfig& config) {
        py::typing::Dict<py::str, py::int_> offsets;
        for (const soma::ParameterInfo& info : soma::describe_parameters(config)) {
          offsets[py::str(info.name)] = info.offset;
        }
        return offsets;
      },
      py::arg("config"), "The place of each parameter in Model.flat.");
  m.def("num_parameters", &soma::num_parameters, py::arg("config"),
        "The number of parameters of a model, without building it.");
  m.def("multiplied_parameters", &soma::multiplied_parameters, py::arg("config"),
        "The number of parameters in the matrices that a token is multiplied with.");
  m.def(
      "training_floats",
      [](const soma::ModelConfig& config, const std::string& precision, bool muon, int64_t batch, int64_t length,
         int64_t teachers, const std::string& device) {
        return soma::training_floats(config, soma::find_device(device), parse_precision(precision), muon, batch, length,
                                     teachers);
      },
      py::arg("config"), py::arg("precision"), py::arg("muon"), py::arg("batch"), py::arg("length"),
      py::arg("teachers"), py::arg("device"),
      "The floats that training takes, moments and buffers included, without allocating them.");
  m.def(
      "teacher_floats",
      [](const soma::ModelConfig& config, const std::string& precision, int64_t batch, int64_t length,
         const std::string& device) {
        return soma::teacher_floats(config, soma::find_device(device), parse_precision(precision), batch, length);
      },
      py::arg("config"), py::arg("precision"), py::arg("batch"), py::arg("length"), py::arg("device"),
      "The floats that a teacher takes while another model is trained, without allocating them.");

  py::class_<soma::Noise>(m, "Noise", "Dropout and masked tokens of one micro-batch, which `numbers` name.")
      .def(py::init<double, double, const std::vector<uint64_t>&, int64_t>(), py::arg("dropout") = 0.0,
           py::arg("token_mask") = 0.0, py::arg("numbers") = std::vector<uint64_t>(), py::arg("first_row") = 0);

  py::class_<soma::Progress, std::shared_ptr<soma::Progress>>(m, "Progress", "How far a backward pass is.")
      .def(py::init<>())
      .def("reach", &soma::Progress::reach, py::arg("first"),
           "Says that the gradients from this place of Model.flat on are final.")
      .def("end", &soma::Progress::end, "Says that nothing more comes.")
      .def(
          "wait",
          [](soma::Progress& progress, int64_t first) {
            const GilRelease release;
            return progress.wait(first);
          },
          py::arg("first"), "Returns when the gradients from this place on are final; False if the pass ended before.");

  py::class_<ModelHandle>(m, "Model", "A transformer: parameters, forward, loss, gradients.")
      .def(py::init([](const soma::ModelConfig& config, uint64_t seed, const std::string& precision,
                       const std::string& device, bool initialize) {
             const soma::Precision parsed = parse_precision(precision);
             soma::Device& on = soma::find_device(device);
             return without_gil([&] { return std::make_unique<ModelHandle>(config, seed, parsed, on, initialize); });
           }),
           py::arg("config"), py::kw_only(), py::arg("seed"), py::arg("precision"), py::arg("device") = "cpu",
           py::arg("initialize") = true)
      .def_property_readonly("device", [](const ModelHandle& h) { return h.transformer.device().name(); })
      .def_property_readonly(
          "on_host", [](const ModelHandle& h) { return h.transformer.device().memory().on_host(); },
          "Whether arrays of the model are views of its memory.")
      .def(
          "set_evaluation_precision",
          [](ModelHandle& h, const std::string& precision) {
            const soma::Precision parsed = parse_precision(precision);
            compute(h, [&] { h.transformer.set_evaluation_precision(parsed); });
          },
          py::arg("precision"), "What products without a gradient compute in from now on.")
      .def_property_readonly("num_parameters", [](const ModelHandle& h) { return h.transformer.num_parameters(); })
      .def_property_readonly(
          "held_floats", [](ModelHandle& h) { return compute(h, [&] { return h.transformer.held_floats(); }); },
          "The floats of memory that the model has taken so far.")
      .def("parameters",
           [](const py::object& self) {
             auto& handle = self.cast<ModelHandle&>();
             return views(handle, handle.transformer.values(), self);
           })
      .def("gradients",
           [](const py::object& self) {
             auto& handle = self.cast<ModelHandle&>();
             float* arena = compute(handle, [&] { return handle.transformer.gradients(); });
             return views(handle, arena, self);
           })
      .def(
          "read",
          [](ModelHandle& h, const std::string& name, bool gradient) {
            const soma::ParameterInfo& info = find_parameter(h, name);
            return read_array(h, info, arena(h, gradient) + info.offset);
          },
          py::arg("name"), py::arg("gradient") = false, "A copy of a parameter, or of its gradient.")
      .def(
          "write",
          [](ModelHandle& h, const std::string& name, const FloatArray& array, bool gradient) {
            const soma::ParameterInfo& info = find_parameter(h, name);
            write_array(h, info, arena(h, gradient) + info.offset, array);
          },
          py::arg("name"), py::arg("array"), py::arg("gradient") = false, "Sets a parameter, or its gradient.")
      .def(
          "flat",
          [](const py::object& self, bool gradient) {
            auto& handle = self.cast<ModelHandle&>();
            return view(handle, whole(handle), arena(handle, gradient), self);
          },
          py::arg("gradient") = false, "All parameters or gradients side by side, with zeros between some.")
      .def(
          "write_flat",
          [](ModelHandle& h, const FloatArray& array, bool gradient) {
            write_array(h, whole(h), arena(h, gradient), array);
          },
          py::arg("array"), py::arg("gradient") = false, "Sets all of them.")
      .def(
          "all_finite", [](ModelHandle& h) { return compute(h, [&] { return h.transformer.all_finite(); }); },
          "Whether all parameters are finite; False also if their squares overflow.")
      .def("forward", &forward, py::arg("ids"))
      .def("hidden", &hidden, py::arg("ids"), "What the head reads, (B, T, C).")
      .def(
          "score", &score, py::arg("ids"), py::arg("targets"), py::arg("top") = 0,
          "(log-probabilities (N), ranks (N), ids of the best (N, top), their log-probabilities) of the N targets that "
          "are not -100.")
      .def("loss", &loss, py::arg("ids"), py::arg("targets"), py::arg("normalizer") = 0)
      .def("loss_and_grad", &loss_and_grad, py::arg("ids"), py::arg("targets"), py::arg("normalizer") = 0,
           py::arg("noise") = none, py::arg("teachers") = std::vector<ModelHandle*>(), py::arg("distill") = 0.0f)
      .def(
          "report_to",
          [](ModelHandle& h, Maybe<std::shared_ptr<soma::Progress>> progress) {
            compute(h, [&] { h.transformer.report_to(progress.value_or(nullptr)); });
          },
          py::arg("progress"), "What later passes with gradients report to.")
      .def(
          "profile", [](ModelHandle& h, bool on) { compute(h, [&] { h.transformer.profile(on); }); }, py::arg("on"),
          "Whether the model's operations measure themselves from now on.")
      .def(
          "take_profile", [](ModelHandle& h) { return compute(h, [&] { return h.transformer.take_profile(); }); },
          "What was measured since the last call, an OpRecord for each op and shape.")
      .def("zero_grad", [](ModelHandle& h) { compute(h, [&] { h.transformer.zero_grad(); }); });
}
