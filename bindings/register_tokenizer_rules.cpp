// The rules for reading texts, for the Python part of the tokenizer.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gil.h"
#include "registers.h"
#include "texts.h"
#include "tokenizer/bpe_split.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

void register_tokenizer_rules(py::module_& m) {
  m.attr("MAX_TOKEN_IDS") = soma::kMostTokenIds;
  m.def(
      "bpe_patterns",
      [] {
        std::vector<std::string> names;
        for (const soma::NamedBpePattern& known : soma::kBpePatterns) names.emplace_back(known.name);
        return names;
      },
      "The patterns that byte-level BPE cuts text by.");
  m.def(
      "bpe_pattern_rules",
      [](const std::string& pattern) { return soma::bpe_pattern_rules(soma::parse_bpe_pattern(pattern)); },
      py::arg("pattern"), "The words of a pattern's rules; the pattern is a name, or such words");
  m.def(
      "bpe_pattern_name",
      [](const std::string& pattern) { return soma::bpe_pattern_name(soma::parse_bpe_pattern(pattern)); },
      py::arg("pattern"), "The name of a pattern, or its rules where it has none");
  m.def(
      "find_invalid_utf8",
      [](const py::bytes& data) {
        const std::string_view view(PyBytes_AS_STRING(data.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(data.ptr())));
        const size_t at = without_gil([view] { return soma::find_invalid_utf8(view); });
        return at == std::string_view::npos ? int64_t{-1} : static_cast<int64_t>(at);
      },
      py::arg("data"), "Offset of the first byte that is not valid UTF-8, or -1");
  m.def(
      "last_chunk_end",
      [](const py::bytes& data, size_t from) {
        const std::string_view view(PyBytes_AS_STRING(data.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(data.ptr())));
        return soma::last_chunk_end(view, from);
      },
      py::arg("data"), py::arg("from_"),
      "The last place behind `from_` where valid UTF-8 may be cut without changing how any kind of tokenizer splits "
      "it; "
      "0 where there is none");
  m.def(
      "byte_alphabet",
      [] {
        Texts alphabet;
        for (const std::string& character : soma::byte_alphabet()) alphabet.append(to_str(character));
        return alphabet;
      },
      "The characters that stand for the 256 bytes in a vocabulary");
}
