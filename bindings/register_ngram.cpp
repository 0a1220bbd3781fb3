// Python's view of the character 5-gram. soma_native/analysis/floor.py calls it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <vector>

#include "gil.h"
#include "ngram/kneser_ney.h"
#include "registers.h"
#include "texts.h"

void register_ngram(py::module_& m) {
  py::class_<soma::NgramCounter>(m, "NgramCounter", "Counts the n-grams of characters in documents, in parallel.")
      .def(py::init<>())
      .def(
          "add",
          [](soma::NgramCounter& self, const TextsOrBytes& texts, size_t first) {
            const auto views = views_of(texts, first);
            without_gil([&] { self.add(views); });
          },
          py::arg("texts"), py::arg("first"),
          "Add documents (str, or bytes of valid UTF-8); an error calls them texts[first], texts[first + 1], ...")
      .def_property_readonly("bytes", &soma::NgramCounter::bytes, "Of all that was added");

  py::class_<soma::KneserNey>(m, "KneserNey", "A character 5-gram, interpolated with modified Kneser-Ney smoothing.")
      .def(py::init([](soma::NgramCounter& counter) {
             return without_gil([&] { return std::make_unique<soma::KneserNey>(counter); });
           }),
           py::arg("counter"), "From what was counted; the counter is empty afterwards")
      .def(
          "score",
          [](const soma::KneserNey& self, const TextsOrBytes& texts, size_t first, const std::vector<size_t>& skipped) {
            const auto views = views_of(texts, first);
            const auto score = without_gil([&] { return self.score(views, skipped); });
            return py::make_tuple(score.bits, score.character_bits, score.characters, score.bytes);
          },
          py::arg("texts"), py::arg("first"), py::arg("skipped"),
          "(bits, bits of single characters, characters, bytes) of documents. Of document i, skipped[i] bytes are "
          "context "
          "alone; an empty list skips none")
      .def(
          "bits_of",
          [](const soma::KneserNey& self, const TextsOrBytes& texts) {
            py::typing::List<py::array_t<double>> all;
            for (const auto view : views_of(texts, 0)) {
              const auto bits = without_gil([&] { return self.bits_of(view); });
              all.append(py::array_t<double>(static_cast<py::ssize_t>(bits.size()), bits.data()));
            }
            return all;
          },
          py::arg("texts"), "-log2 of the probability of every character, an array for each document")
      .def_property_readonly("discounts", &soma::KneserNey::discounts, "D1, D2, D3 of each order, from 1 on")
      .def_property_readonly("different_characters", &soma::KneserNey::different_characters);
}
