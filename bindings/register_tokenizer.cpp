// Python's view of the tokenizer: strings and arrays in, lists and arrays out. soma_native/tokenizer.py is the public
// face; here only types are turned.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/interrupt.h"
#include "gil.h"
#include "registers.h"
#include "texts.h"
#include "tokenizer/bpe.h"
#include "tokenizer/bpe_split.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace py = pybind11;

namespace {

using soma::TokenId;
using IdList = py::typing::List<py::int_>;
using Offsets = py::typing::List<py::typing::Tuple<py::int_, py::int_>>;
using AnyList = py::typing::List<py::object>;

// Errors call them texts[first], texts[first + 1], ...
std::vector<std::string_view> utf8_of_list(const Texts& texts, size_t first = 0) {
  std::vector<std::string_view> views;
  views.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    PyObject* const text = PyList_GET_ITEM(texts.ptr(), static_cast<Py_ssize_t>(i));
    Py_ssize_t size = 0;
    const char* const bytes = PyUnicode_Check(text) ? PyUnicode_AsUTF8AndSize(text, &size) : nullptr;
    if (bytes != nullptr) {
      views.emplace_back(bytes, static_cast<size_t>(size));
    } else {
      PyErr_Clear();
      views.push_back(utf8_of(text, "texts[" + std::to_string(first + i) + "]"));  // which raises
    }
  }
  return views;
}

// A new reference to the int of an id. Those below 2^18 are made once and kept: making and freeing an int for every
// token of a text takes five times as long as finding the token.
PyObject* to_int(TokenId id) {
  constexpr TokenId kKept = 1 << 18;
  static std::vector<PyObject*>& kept = *new std::vector<PyObject*>();  // outlives the interpreter; used under the GIL
  if (id < kept.size() && kept[id] != nullptr) {
    Py_INCREF(kept[id]);
    return kept[id];
  }
  PyObject* const number = PyLong_FromUnsignedLong(id);
  if (number == nullptr) throw py::error_already_set();
  if (id >= kKept) return number;
  if (id >= kept.size()) kept.resize(std::max<size_t>(id + size_t{1}, kept.size() * 2));
  kept[id] = number;
  Py_INCREF(number);
  return number;
}

IdList to_list(const soma::IdVector& ids) {
  IdList list(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), to_int(ids[i]));
  return list;
}

using Allowed = std::vector<TokenId>;

soma::Encoding encode(const soma::Tokenizer& tokenizer, std::string_view text, const Allowed& allowed,
                      bool with_spans) {
  return without_gil([&] { return tokenizer.encode(text, allowed, with_spans, /*alone=*/true); });
}

// An array that owns the ids, without a copy of them.
py::array_t<uint32_t> to_array(soma::IdVector&& from) {
  using Ids = soma::IdVector;
  auto ids = std::make_unique<Ids>(std::move(from));
  const TokenId* const data = ids->data();
  const auto size = static_cast<py::ssize_t>(ids->size());
  const py::capsule owner(ids.get(), [](void* owned) { delete static_cast<Ids*>(owned); });
  ids.release();
  return py::array_t<uint32_t>(size, data, owner);
}

py::array_t<uint32_t> encode_array(const soma::Tokenizer& tokenizer, const py::object& text, const Allowed& allowed) {
  return to_array(encode(tokenizer, utf8_of(text, "text"), allowed, false).ids);
}

py::typing::Tuple<IdList, Offsets> encode_with_offsets(const soma::Tokenizer& tokenizer, const py::object& text,
                                                       const Allowed& allowed) {
  const std::string_view view = utf8_of(text, "text");
  soma::Encoding encoding = encode(tokenizer, view, allowed, true);
  soma::bytes_to_characters(view, encoding.spans);
  Offsets offsets(encoding.spans.size());
  for (size_t i = 0; i < encoding.spans.size(); ++i) {
    offsets[i] = py::make_tuple(encoding.spans[i].begin, encoding.spans[i].end);
  }
  return py::make_tuple(to_list(encoding.ids), offsets);
}

py::typing::List<IdList> encode_batch(const soma::Tokenizer& tokenizer, const Texts& texts, const Allowed& allowed) {
  const auto views = utf8_of_list(texts);
  const auto ids = without_gil([&] { return tokenizer.encode_batch(views, allowed); });
  // Thousands of new lists would set off the collector again and again, to no avail: none of them is garbage.
  struct CollectorPause {
    int was_on = PyGC_Disable();
    ~CollectorPause() {
      if (was_on) PyGC_Enable();
    }
  } const pause;
  py::typing::List<IdList> lists(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) lists[i] = to_list(ids[i]);
  return lists;
}

// The ids of all texts in a row, and how many each text has.
py::typing::Tuple<py::array_t<uint32_t>, py::array_t<int64_t>> encode_joined(const soma::Tokenizer& tokenizer,
                                                                             const Texts& texts, size_t first) {
  const auto views = utf8_of_list(texts, first);
  py::array_t<int64_t> lengths(static_cast<py::ssize_t>(views.size()));
  int64_t* const length = lengths.mutable_data();
  auto joined = without_gil([&] {
    auto ids = tokenizer.encode_batch(views, {}, first);
    size_t total = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      length[i] = static_cast<int64_t>(ids[i].size());
      total += ids[i].size();
    }
    if (ids.size() == 1) return std::move(ids[0]);
    soma::IdVector all;
    all.reserve(total);
    for (const auto& some : ids) all.insert(all.end(), some.begin(), some.end());
    return all;
  });
  return py::make_tuple(to_array(std::move(joined)), lengths);
}

bool known(const soma::Tokenizer& tokenizer, int64_t id) {
  return id >= 0 && id < static_cast<int64_t>(tokenizer.vocab_size()) && tokenizer.has(static_cast<TokenId>(id));
}

template <typename Int>
using IdArray = py::array_t<Int, py::array::c_style>;

template <typename Int>
std::string decoded(const soma::Tokenizer& tokenizer, const Int* values, size_t count) {
  return without_gil([&] {
    std::string bytes;
    TokenId block[1024];
    for (size_t start = 0; start < count; start += std::size(block)) {
      const size_t size = std::min(std::size(block), count - start);
      const uint64_t vocab_size = tokenizer.vocab_size();
      bool within = true;
      for (size_t i = 0; i < size; ++i) {
        within = within && static_cast<uint64_t>(values[start + i]) < vocab_size;
        block[i] = static_cast<TokenId>(values[start + i]);
      }
      if (!within || !tokenizer.has_all(block, size)) {
        size_t at = start;
        while (known(tokenizer, static_cast<int64_t>(values[at]))) ++at;
        soma::fail("id ", static_cast<int64_t>(values[at]), " at position ", at,
                   " is not in the vocabulary: ids are 0 to ", vocab_size - 1);
      }
      tokenizer.append_decoded(block, size, bytes);
    }
    return bytes;
  });
}

// The bytes of the ids in a list of int; none where something else is in it.
std::optional<std::string> decoded_list(const soma::Tokenizer& tokenizer, const AnyList& ids) {
  std::vector<int64_t> values(ids.size());
  for (size_t i = 0; i < values.size(); ++i) {
    PyObject* const id = PyList_GET_ITEM(ids.ptr(), static_cast<Py_ssize_t>(i));
    int overflow = 0;
    if (!PyLong_CheckExact(id)) return std::nullopt;
    values[i] = PyLong_AsLongLongAndOverflow(id, &overflow);
    if (overflow != 0) return std::nullopt;
  }
  return decoded(tokenizer, values.data(), values.size());
}

template <typename Int>
py::bytes decode_bytes(const soma::Tokenizer& tokenizer, const IdArray<Int>& array) {
  return py::bytes(decoded(tokenizer, array.data(), static_cast<size_t>(array.size())));
}

py::str utf8_or_replacement(const std::string& bytes) {
  PyObject* const text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace");
  if (text == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(text);
}

template <typename Int>
py::str decode(const soma::Tokenizer& tokenizer, const IdArray<Int>& array) {
  return utf8_or_replacement(decoded(tokenizer, array.data(), static_cast<size_t>(array.size())));
}

std::unique_ptr<soma::Tokenizer> make(const std::string& kind, const Texts& tokens, const Allowed& special_ids) {
  std::vector<std::string> texts;
  texts.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) texts.emplace_back(utf8_of(tokens[i], "token " + std::to_string(i)));
  return soma::make_tokenizer(soma::parse_tokenizer_kind(kind), texts, special_ids);
}

using Pairs = py::array_t<int64_t, py::array::c_style>;
using Specials = std::vector<std::pair<py::str, int64_t>>;
using TokenList = py::typing::List<py::typing::Optional<py::bytes>>;
using SpecialList = py::typing::List<py::typing::Tuple<py::str, py::int_>>;
using VocabularyParts = py::typing::Tuple<py::str, TokenList, py::typing::Optional<Pairs>, SpecialList, py::bool_>;

std::unique_ptr<soma::Tokenizer> make_bpe(const std::string& pattern, const TokenList& tokens,
                                          const std::optional<Pairs>& merges, const Specials& special_tokens,
                                          bool ignore_merges) {
  constexpr int64_t kMostIds = int64_t{1} << 24;
  const auto checked = [](int64_t id, const char* what) {
    soma::check(id >= 0 && id < kMostIds, "id ", id, " of a ", what, " is not within 0 to ", kMostIds - 1);
    return static_cast<TokenId>(id);
  };
  soma::BpeVocabulary vocabulary;
  vocabulary.pattern = soma::parse_bpe_pattern(pattern);
  vocabulary.ignore_merges = ignore_merges;
  vocabulary.tokens.reserve(tokens.size());
  for (const py::handle token : static_cast<const py::list&>(tokens)) {
    auto& bytes = vocabulary.tokens.emplace_back();
    if (token.is_none()) continue;
    if (!PyBytes_Check(token.ptr())) {
      throw py::type_error("token " + std::to_string(vocabulary.tokens.size() - 1) + " must be bytes or None, got " +
                           Py_TYPE(token.ptr())->tp_name);
    }
    bytes.emplace(PyBytes_AS_STRING(token.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(token.ptr())));
  }
  if (merges) {
    auto& pairs = vocabulary.merges.emplace();
    const auto count = static_cast<size_t>(merges->size() / 2);
    pairs.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      pairs.emplace_back(checked(merges->data()[2 * i], "merge"), checked(merges->data()[2 * i + 1], "merge"));
    }
  }
  for (const auto& [text, id] : special_tokens) {
    vocabulary.special_tokens.emplace_back(utf8_of(text, "special token"), checked(id, "special token"));
  }
  return without_gil([&] { return soma::make_bpe_tokenizer(std::move(vocabulary)); });
}

// (pattern, tokens, merges, special tokens, ignore_merges), as make_bpe takes them.
VocabularyParts bpe_vocabulary(const soma::Tokenizer& tokenizer) {
  const auto vocabulary = without_gil([&] { return soma::bpe_vocabulary(tokenizer); });
  TokenList tokens;
  for (const auto& token : vocabulary.tokens) {
    tokens.append(token ? py::object(py::bytes(*token)) : py::object(py::none()));
  }
  py::object merges = py::none();
  if (vocabulary.merges) {
    Pairs pairs({static_cast<py::ssize_t>(vocabulary.merges->size()), py::ssize_t{2}});
    int64_t* at = pairs.mutable_data();
    for (const auto& [left, right] : *vocabulary.merges) {
      *at++ = left;
      *at++ = right;
    }
    merges = pairs;
  }
  SpecialList special_tokens;
  for (const auto& [text, id] : vocabulary.special_tokens) special_tokens.append(py::make_tuple(to_str(text), id));
  return py::make_tuple(soma::bpe_pattern_name(vocabulary.pattern), tokens, merges, special_tokens,
                        vocabulary.ignore_merges);
}

}  // namespace

void register_tokenizer(py::module_& m) {
  py::class_<soma::Tokenizer>(m, "Tokenizer", "The core of soma_native.Tokenizer; see there.")
      .def(py::init(&make), py::arg("kind"), py::arg("tokens"), py::arg("special_ids"))
      .def_static("bpe", &make_bpe, py::arg("pattern"), py::arg("tokens"), py::arg("merges").none(true),
                  py::arg("special_tokens"), py::arg("ignore_merges"),
                  "Of kind bpe: tokens are bytes or None by id, merges int64 (n, 2) or None, special tokens (text, id)")
      .def("bpe_vocabulary", &bpe_vocabulary, "(pattern, tokens, merges, special_tokens, ignore_merges) of kind bpe")
      .def(
          "encode",
          [](const soma::Tokenizer& self, const py::object& text, const Allowed& allowed) {
            return to_list(encode(self, utf8_of(text, "text"), allowed, false).ids);
          },
          py::arg("text"), py::arg("allowed_special"), "list[int]")
      .def("encode_array", &encode_array, py::arg("text"), py::arg("allowed_special"), "uint32 (n,)")
      .def("encode_with_offsets", &encode_with_offsets, py::arg("text"), py::arg("allowed_special"),
           "(list[int], list[tuple[int, int]]), in characters")
      .def("encode_batch", &encode_batch, py::arg("texts"), py::arg("allowed_special"), "list[list[int]]")
      .def("encode_joined", &encode_joined, py::arg("texts"), py::arg("first"),
           "(uint32 (n,), the ids of all texts in a row; int64 (texts,), how many each has); an error calls the texts "
           "texts[first], texts[first + 1], ...")
      .def("decode_bytes", &decode_bytes<int64_t>, py::arg("ids").noconvert(), "The bytes of ids (n,)")
      .def("decode_bytes", &decode_bytes<uint32_t>, py::arg("ids").noconvert())
      .def("decode", &decode<int64_t>, py::arg("ids").noconvert(), "The text of ids (n,), with U+FFFD for what is none")
      .def("decode", &decode<uint32_t>, py::arg("ids").noconvert())
      .def(
          "decode_list",
          [](const soma::Tokenizer& self, const AnyList& ids) -> std::optional<py::str> {
            const auto bytes = decoded_list(self, ids);
            if (!bytes) return std::nullopt;
            return utf8_or_replacement(*bytes);
          },
          py::arg("ids"), "decode of a list of int; None where something else is in it")
      .def(
          "decode_list_bytes",
          [](const soma::Tokenizer& self, const AnyList& ids) -> std::optional<py::bytes> {
            const auto bytes = decoded_list(self, ids);
            if (!bytes) return std::nullopt;
            return py::bytes(*bytes);
          },
          py::arg("ids"), "decode_bytes of a list of int; None where something else is in it")
      .def_property_readonly("kind", [](const soma::Tokenizer& self) { return soma::tokenizer_kind_name(self.kind()); })
      .def_property_readonly("vocab_size", &soma::Tokenizer::vocab_size)
      .def_property_readonly("special_ids", &soma::Tokenizer::special_ids)
      .def(
          "find",
          [](const soma::Tokenizer& self, const py::object& token) { return self.find(utf8_of(token, "token")); },
          py::arg("token"), "The id of a token, or None")
      .def(
          "token",
          [](const soma::Tokenizer& self, int64_t id) {
            soma::check(known(self, id), "id ", id, " is not in the vocabulary: ids are 0 to ", self.vocab_size() - 1);
            return to_str(self.token(static_cast<TokenId>(id)));
          },
          py::arg("id"), "The text of a token");

  m.def(
      "find_invalid_utf8",
      [](const py::bytes& data) {
        const std::string_view view(PyBytes_AS_STRING(data.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(data.ptr())));
        const size_t at = without_gil([view] { return soma::find_invalid_utf8(view); });
        return at == std::string_view::npos ? int64_t{-1} : static_cast<int64_t>(at);
      },
      py::arg("data"), "Offset of the first byte that is not valid UTF-8, or -1");
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
      "byte_alphabet",
      [] {
        Texts alphabet;
        for (const std::string& character : soma::byte_alphabet()) alphabet.append(to_str(character));
        return alphabet;
      },
      "The characters that stand for the 256 bytes in a vocabulary");
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
