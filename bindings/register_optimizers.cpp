// Optimizers and averages of weights: a step without the GIL, what is saved of them as views.
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/check.h"
#include "model/optimizers/average.h"
#include "model/optimizers/muon.h"
#include "registers.h"
#include "views.h"

namespace {

struct OptimizerHandle {
  ModelHandle& model;
  std::unique_ptr<soma::Optimizer> optimizer;

  OptimizerHandle(ModelHandle& m, std::unique_ptr<soma::Optimizer> o) : model(m), optimizer(std::move(o)) {}

  double step(double lr, double weight_decay, double momentum) {
    try {
      return compute(model, [&] { return optimizer->step({lr, weight_decay, momentum}); });
    } catch (const soma::NonFiniteGradient& error) {
      const std::string message = "the gradient is not finite (its norm is " + std::to_string(error.norm) +
                                  "): nothing was updated. Lower the learning rate, or look for NaN in the parameters";
      PyErr_SetString(PyExc_FloatingPointError, message.c_str());
      throw py::error_already_set();
    }
  }

  // One kind of array, by parameter.
  static Views state(const py::object& self, const std::string& kind) {
    Views dict;
    auto& handle = self.cast<OptimizerHandle&>();
    for (const soma::StateArray& array : handle.optimizer->state()) {
      if (kind == array.kind) {
        dict[py::str(array.parameter->name)] = view(handle.model, *array.parameter, array.data, self);
      }
    }
    return dict;
  }

  void write(const std::string& kind, const std::string& name, const FloatArray& values) {
    for (const soma::StateArray& array : optimizer->state()) {
      if (kind == array.kind && name == array.parameter->name) {
        return write_array(model, *array.parameter, array.data, values);
      }
    }
    soma::fail("this optimizer has no ", kind, " of '", name, "'");
  }
};

struct AverageHandle {
  ModelHandle& model;
  soma::WeightAverage average;

  explicit AverageHandle(ModelHandle& handle)
      : model(handle), average(compute(handle, [&] { return soma::WeightAverage(handle.transformer); })) {}
};

using Owned = std::optional<std::map<std::string, std::pair<int64_t, int64_t>>>;

// What AdamW takes; Muon takes it too, for everything but matrices.
soma::AdamWConfig adamw_config(double lr, double beta1, double beta2, double eps, double weight_decay,
                               double max_grad_norm, bool cautious, Owned owned) {
  return {lr, beta1, beta2, eps, weight_decay, max_grad_norm, cautious, std::move(owned)};
}

template <typename Optimizer, typename Config>
std::unique_ptr<OptimizerHandle> make_optimizer(ModelHandle& model, const Config& config) {
  return std::make_unique<OptimizerHandle>(
      model, compute(model, [&] { return std::make_unique<Optimizer>(model.transformer, config); }));
}

}  // namespace

void register_optimizers(py::module_& m) {
  py::class_<OptimizerHandle>(m, "Optimizer", "What updates a model's parameters.")
      .def("step", &OptimizerHandle::step, py::arg("lr"), py::arg("weight_decay"), py::arg("momentum") = 0.0)
      .def("state", &OptimizerHandle::state, py::arg("kind"),
           "Its arrays of one kind (first_moment, second_moment, momentum), by parameter.")
      .def("write", &OptimizerHandle::write, py::arg("kind"), py::arg("name"), py::arg("array"), "Sets one of them.")
      .def_property(
          "step_count", [](const OptimizerHandle& h) { return h.optimizer->steps; },
          [](OptimizerHandle& h, int64_t steps) {
            soma::check(steps >= 0, "step_count must be >= 0, got ", steps);
            h.optimizer->steps = steps;
          });
  m.def(
      "adamw",
      [](ModelHandle& model, double lr, double beta1, double beta2, double eps, double weight_decay,
         double max_grad_norm, bool cautious, Owned owned) {
        return make_optimizer<soma::AdamW>(
            model, adamw_config(lr, beta1, beta2, eps, weight_decay, max_grad_norm, cautious, std::move(owned)));
      },
      py::keep_alive<0, 1>(), py::arg("model"), py::kw_only(), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
      py::arg("eps"), py::arg("weight_decay"), py::arg("max_grad_norm"), py::arg("cautious"), py::arg("owned"),
      "AdamW over a model's parameters.");
  m.def(
      "muon",
      [](ModelHandle& model, double lr, double beta1, double beta2, double eps, double weight_decay,
         double max_grad_norm, bool cautious, Owned owned, double adamw_weight_decay, bool classic,
         int64_t head_blocks) {
        return make_optimizer<soma::Muon>(
            model, soma::MuonConfig{
                       adamw_config(lr, beta1, beta2, eps, weight_decay, max_grad_norm, cautious, std::move(owned)),
                       adamw_weight_decay, classic, head_blocks});
      },
      py::keep_alive<0, 1>(), py::arg("model"), py::kw_only(), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
      py::arg("eps"), py::arg("weight_decay"), py::arg("max_grad_norm"), py::arg("cautious"), py::arg("owned"),
      py::arg("adamw_weight_decay"), py::arg("classic"), py::arg("head_blocks"),
      "Muon over a model's hidden matrices, AdamW over its other parameters.");

  py::class_<AverageHandle>(m, "WeightAverage", "A running average of a model's parameters.")
      .def(py::init<ModelHandle&>(), py::keep_alive<1, 2>(), py::arg("model"))
      .def(
          "update", [](AverageHandle& h, double rate) { compute(h.model, [&] { h.average.update(rate); }); },
          py::arg("rate"), "average += rate (parameters - average); where rate is 1, a copy.")
      .def(
          "apply", [](AverageHandle& h, bool on) { compute(h.model, [&] { h.average.apply(on); }); }, py::arg("on"),
          "Whether the parameters and the average have changed places from now on.")
      .def_property_readonly("is_applied", [](const AverageHandle& h) { return h.average.applied(); })
      .def("values",
           [](const py::object& self) {
             auto& handle = self.cast<AverageHandle&>();
             return views(handle.model, handle.average.values(), self);
           })
      .def(
          "write",
          [](AverageHandle& h, const std::string& name, const FloatArray& array) {
            const soma::ParameterInfo& info = find_parameter(h.model, name);
            write_array(h.model, info, h.average.values() + info.offset, array);
          },
          py::arg("name"), py::arg("array"), "Sets the average of a parameter.");
}
