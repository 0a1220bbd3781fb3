// How texts are cut and characters are classified, for tests against other implementations of the same rules.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "registers.h"
#include "texts.h"
#include "tokenizer/bpe_split.h"
#include "tokenizer/unicode.h"

void register_text_rules(py::module_& m) {
  m.def(
      "bpe_chunk_ends",
      [](const std::string& pattern, const py::object& text) {
        std::vector<int64_t> ends;
        int64_t end = 0;
        soma::for_each_chunk(soma::parse_bpe_pattern(pattern), utf8_of(text, "text"), [&](std::string_view chunk) {
          end += static_cast<int64_t>(chunk.size());
          ends.push_back(end);
        });
        return ends;
      },
      py::arg("pattern"), py::arg("text"), "Where the chunks of a text end: offsets into its UTF-8");
  m.def(
      "bpe_cuts",
      [](const std::string& pattern, const py::object& text, size_t target) {
        std::vector<size_t> sizes;
        soma::parse_bpe_pattern(pattern);
        for (const auto piece : soma::cut_at_chunk_ends(utf8_of(text, "text"), target)) sizes.push_back(piece.size());
        return sizes;
      },
      py::arg("pattern"), py::arg("text"), py::arg("target"),
      "Bytes of the pieces of about `target` bytes that a long text is cut into, without changing its chunks");
  m.def(
      "unicode_classes",
      [] {
        py::array_t<uint8_t> classes(soma::kCodePoints);
        uint8_t* const out = classes.mutable_data();
        for (uint32_t c = 0; c < soma::kCodePoints; ++c) out[c] = static_cast<uint8_t>(soma::char_class(c));
        return classes;
      },
      "The CharClass of every code point, as tokenizer/unicode.h numbers them: uint8 (0x110000,)");
  m.def(
      "unicode_versions",
      [] { return std::pair<std::string, std::string>(soma::kUnicodeClassesVersion, soma::kUnicodeLowerVersion); },
      "Unicode version of the classes, and of the lower case");
}
