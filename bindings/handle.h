// How Python holds a model: with a lock, so that two threads calling one model take turns.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/fork.h"
#include "gil.h"
#include "model/transformer.h"
#include "ops/decode.h"

namespace py = pybind11;

using Ids = py::array_t<int32_t, py::array::c_style>;

inline soma::Precision parse_precision(const std::string& name) {
  if (name == "float32") return soma::Precision::kFloat32;
  soma::check(name == "bfloat16", "precision must be 'float32' or 'bfloat16', got '", name, "'");
  return soma::Precision::kBfloat16;
}

struct ModelHandle {
  soma::Transformer transformer;
  std::mutex mutex;
  std::atomic<std::thread::id> owner{};  // the thread that computes, while one does
  int forks = soma::forks();             // the count of forks when this process last made the lock

  ModelHandle(const soma::ModelConfig& config, uint64_t seed, soma::Precision precision, soma::Device& device,
              bool initialize)
      : transformer(config, seed, precision, device, initialize) {}

  // In the child of a fork: makes the lock and the buffers anew if a thread of the parent held them. Needs the GIL.
  void after_fork() {
    if (forks == soma::forks()) return;
    const bool interrupted = soma::this_thread_forked() && owner.load() == std::this_thread::get_id();
    if (!interrupted && !mutex.try_lock()) {
      transformer.leave_memory_of_calls();
      new (&mutex) std::mutex;
      owner.store({});
    } else if (!interrupted) {
      mutex.unlock();
    }
    forks = soma::forks();
  }
};

// Runs f without the GIL, alone on these models. Locks are taken in the order of addresses, so that two calls whose
// models teach each other do not wait for ever.
template <typename F>
auto compute(std::vector<ModelHandle*> models, F&& f) {
  std::sort(models.begin(), models.end(), std::less<>());
  soma::check(std::adjacent_find(models.begin(), models.end()) == models.end(), "a model is given twice in one call");
  for (ModelHandle* model : models) {
    model->after_fork();
    if (model->owner.load() == std::this_thread::get_id()) {
      throw std::runtime_error(
          "this thread is computing with this model already: a signal handler must not call the model that it "
          "interrupted");
    }
  }
  return without_gil([&] {
    struct Turn {
      ModelHandle& model;
      std::lock_guard<std::mutex> lock;
      explicit Turn(ModelHandle& m) : model(m), lock(m.mutex) { model.owner.store(std::this_thread::get_id()); }
      ~Turn() { model.owner.store({}); }
    };
    std::deque<Turn> turns;
    for (ModelHandle* model : models) turns.emplace_back(*model);
    return f();
  });
}

// The same with one model.
template <typename F>
auto compute(ModelHandle& model, F&& f) {
  return compute(std::vector<ModelHandle*>{&model}, std::forward<F>(f));
}

// The format that a caller named.
inline soma::WeightFormat parse_weight_format(const std::string& name) {
  if (name == "float32") return soma::WeightFormat::kFloat32;
  if (name == "bfloat16") return soma::WeightFormat::kBfloat16;
  soma::check(name == "int8", "weights must be 'float32', 'bfloat16' or 'int8', got '", name, "'");
  return soma::WeightFormat::kInt8;
}
inline soma::CacheFormat parse_cache_format(const std::string& name) {
  if (name == "float32") return soma::CacheFormat::kFloat32;
  soma::check(name == "bfloat16", "kv_cache must be 'float32' or 'bfloat16', got '", name, "'");
  return soma::CacheFormat::kBfloat16;
}
