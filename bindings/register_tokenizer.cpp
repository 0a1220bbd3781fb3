// The tokenizer of the core for Python. This file converts types and checks ids; the core does the rest. The public
// class is in soma_native/tokenizer/tokenizer.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "gil.h"
#include "ids.h"
#include "registers.h"
#include "texts.h"
#include "tokenizer/token_table.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer_vocabulary.h"

namespace {

using soma::TokenId;
using Offsets = py::typing::List<py::typing::Tuple<py::int_, py::int_>>;
using Allowed = std::vector<TokenId>;

// UTF-8 of the texts. Errors name them texts[0], texts[1], ...
std::vector<std::string_view> utf8_of_list(const Texts& texts) {
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
      views.push_back(utf8_of(text, "texts[" + std::to_string(i) + "]"));  // raises with this name
    }
  }
  return views;
}

// Pauses the garbage collector. Thousands of new lists would start it again and again, and none of them is garbage.
struct CollectorPause {
  int was_on = PyGC_Disable();
  ~CollectorPause() {
    if (was_on) PyGC_Enable();
  }
};

PyObject* new_int(size_t value) {
  PyObject* const number = PyLong_FromSize_t(value);
  if (number == nullptr) throw py::error_already_set();
  return number;
}

soma::Encoding encode(const soma::Tokenizer& tokenizer, std::string_view text, const Allowed& allowed,
                      bool with_spans) {
  return without_gil([&] { return tokenizer.encode(text, allowed, with_spans, /*alone=*/true); });
}

py::array_t<uint32_t> encode_array(const soma::Tokenizer& tokenizer, const py::object& text, const Allowed& allowed) {
  return to_array(encode(tokenizer, utf8_of(text, "text"), allowed, false).ids);
}

py::typing::Tuple<IdList, Offsets> encode_with_offsets(const soma::Tokenizer& tokenizer, const py::object& text,
                                                       const Allowed& allowed) {
  const std::string_view view = utf8_of(text, "text");
  soma::Encoding encoding = encode(tokenizer, view, allowed, true);
  soma::bytes_to_characters(view, encoding.spans);
  const CollectorPause pause;
  Offsets offsets(encoding.spans.size());
  for (size_t i = 0; i < encoding.spans.size(); ++i) {
    const auto [begin, end] = encoding.spans[i];
    PyObject* const pair = PyTuple_New(2);
    if (pair == nullptr) throw py::error_already_set();
    PyList_SET_ITEM(offsets.ptr(), static_cast<Py_ssize_t>(i), pair);
    PyTuple_SET_ITEM(pair, 0, new_int(begin));
    PyTuple_SET_ITEM(pair, 1, new_int(end));
  }
  return py::make_tuple(to_list(encoding.ids.data(), encoding.ids.size()), offsets);
}

using Parts = std::span<soma::EncodedTexts>;

py::typing::List<IdList> encode_batch(const soma::Tokenizer& tokenizer, const Texts& texts, const Allowed& allowed) {
  const auto views = utf8_of_list(texts);
  std::vector<IdList> rows;  // made while other threads still encode
  rows.reserve(views.size());
  const auto make_rows = [&rows](Parts parts) {
    const GilAgain gil;
    const CollectorPause pause;
    for (const soma::EncodedTexts& part : parts) {
      size_t begin = 0;
      for (const size_t end : part.ends) {
        rows.push_back(to_list(part.ids.data() + begin, end - begin));
        begin = end;
      }
    }
  };
  without_gil([&] { tokenizer.encode_batch(views, allowed, 0, make_rows); });
  const CollectorPause pause;
  py::typing::List<IdList> lists(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    PyList_SET_ITEM(lists.ptr(), static_cast<Py_ssize_t>(i), rows[i].release().ptr());
  }
  return lists;
}

// The ids of all texts, one text after the other, and the number of ids of each text.
py::typing::Tuple<py::array_t<uint32_t>, py::array_t<int64_t>> encode_joined(const soma::Tokenizer& tokenizer,
                                                                             const TextsOrBytes& texts, size_t first) {
  const Utf8OfTexts utf8(texts, first);
  const auto& views = utf8.views;
  py::array_t<int64_t> lengths(static_cast<py::ssize_t>(views.size()));
  int64_t* length = lengths.mutable_data();
  soma::IdVector all;
  if (views.size() > 1) {  // no text has more ids than bytes; what is not written to takes no memory
    size_t bytes = 0;
    for (const std::string_view view : views) bytes += view.size();
    all.reserve(bytes);
  }
  const auto join = [&](Parts parts) {
    for (soma::EncodedTexts& part : parts) {
      size_t begin = 0;
      for (const size_t end : part.ends) {
        *length++ = static_cast<int64_t>(end - begin);
        begin = end;
      }
      if (views.size() == 1) {
        all = std::move(part.ids);
      } else {
        all.insert(all.end(), part.ids.begin(), part.ids.end());
      }
    }
  };
  without_gil([&] { tokenizer.encode_batch(views, {}, first, join); });
  return py::make_tuple(to_array(std::move(all)), lengths);
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

// The bytes of the ids in a list of int; std::nullopt if an item is not an int of 64 bits.
std::optional<std::string> decoded_list(const soma::Tokenizer& tokenizer, const AnyList& ids) {
  const auto numbers = numbers_of(ids);
  if (!numbers) return std::nullopt;
  return decoded(tokenizer, numbers->data(), numbers->size());
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

py::array_t<int32_t> to_array(std::span<const int32_t> ids) {
  return py::array_t<int32_t>(static_cast<py::ssize_t>(ids.size()), ids.data());
}

}  // namespace

void register_tokenizer(py::module_& m) {
  py::class_<soma::TokenTable>(m, "TokenTable", "The ordinary tokens of a vocabulary in the order of their bytes.")
      .def(
          "extending",
          [](const soma::TokenTable& self, const py::bytes& bytes) {
            return to_array(self.extending(std::string_view(bytes)));
          },
          py::arg("bytes"), "The ids of the tokens that begin with these bytes and are longer: int32 (n,)")
      .def(
          "containing",
          [](const soma::TokenTable& self, const py::bytes& bytes) {
            return to_array(self.containing(std::string_view(bytes)));
          },
          py::arg("bytes"), "The ids of the tokens that have these bytes in them: int32 (n,)")
      .def(
          "inside_words", [](const soma::TokenTable& self) { return to_array(self.inside_words()); },
          "The ids of the tokens that go on with a word: int32 (n,)");

  py::class_<soma::Tokenizer>(m, "Tokenizer", "The core of soma_native.Tokenizer; see there.")
      .def(py::init(&make_tokenizer), py::arg("kind"), py::arg("tokens"), py::arg("special_ids"))
      .def_static("bpe", &make_bpe, py::arg("pattern"), py::arg("tokens"), py::arg("merges").none(true),
                  py::arg("special_tokens"), py::arg("ignore_merges"),
                  "Makes one of kind bpe. tokens: bytes or None for each id; merges: int64 (n, 2) or None; "
                  "special_tokens: (text, id)")
      .def("bpe_vocabulary", &bpe_vocabulary, "The arguments of bpe that make this tokenizer")
      .def(
          "encode",
          [](const soma::Tokenizer& self, const py::object& text, const Allowed& allowed) {
            const auto ids = encode(self, utf8_of(text, "text"), allowed, false).ids;
            return to_list(ids.data(), ids.size());
          },
          py::arg("text"), py::arg("allowed_special"), "list[int]")
      .def("encode_array", &encode_array, py::arg("text"), py::arg("allowed_special"), "uint32 (n,)")
      .def("encode_with_offsets", &encode_with_offsets, py::arg("text"), py::arg("allowed_special"),
           "The ids, and (begin, end) of each id in characters")
      .def("encode_batch", &encode_batch, py::arg("texts"), py::arg("allowed_special"), "list[list[int]]")
      .def("encode_joined", &encode_joined, py::arg("texts"), py::arg("first"),
           "The ids of all texts (str, or bytes of valid UTF-8), one text after another, and the number of ids of each "
           "text. Errors call the texts texts[first], texts[first + 1], ...")
      .def("decode_bytes", &decode_bytes<int64_t>, py::arg("ids").noconvert(), "The bytes of ids (n,)")
      .def("decode_bytes", &decode_bytes<uint32_t>, py::arg("ids").noconvert())
      .def("decode", &decode<int64_t>, py::arg("ids").noconvert(), "The text of ids (n,); U+FFFD for invalid UTF-8")
      .def("decode", &decode<uint32_t>, py::arg("ids").noconvert())
      .def(
          "decode_list",
          [](const soma::Tokenizer& self, const AnyList& ids) -> std::optional<py::str> {
            const auto bytes = decoded_list(self, ids);
            if (!bytes) return std::nullopt;
            return utf8_or_replacement(*bytes);
          },
          py::arg("ids"), "decode of a list of int; None if an item is no int")
      .def(
          "decode_list_bytes",
          [](const soma::Tokenizer& self, const AnyList& ids) -> std::optional<py::bytes> {
            const auto bytes = decoded_list(self, ids);
            if (!bytes) return std::nullopt;
            return py::bytes(*bytes);
          },
          py::arg("ids"), "decode_bytes of a list of int; None if an item is no int")
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
          py::arg("id"), "The text of a token")
      .def(
          "token_table",
          [](const soma::Tokenizer& self) { return without_gil([&] { return soma::TokenTable(self); }); },
          "A new table of the ordinary tokens");
}
