// Python's view of tokenizer training: counting words and chunks, learning merges. soma_native/tokenizer/train.py calls
// it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#ifdef _WIN32
#include <io.h>
#else
#include <poll.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/interrupt.h"
#include "gil.h"
#include "registers.h"
#include "texts.h"
#include "tokenizer/bpe_train.h"
#include "tokenizer/chunk_counter.h"
#include "tokenizer/token_counter.h"
#include "tokenizer/word_losses.h"

namespace {

using BytesList = py::typing::List<py::bytes>;

template <typename Counter>
void add(Counter& counter, const TextsOrBytes& texts, size_t first) {
  const Utf8OfTexts utf8(texts, first);
  without_gil([&] { counter.add(utf8.views); });
}

// The first `limit` tokens by rank, the number of all tokens, and the total count of the tokens beyond the limit.
py::typing::Tuple<Texts, py::int_, py::int_> ranked(const soma::TokenCounter& counter, size_t limit) {
  const auto all = without_gil([&] { return counter.ranked(); });
  Texts tokens;
  uint64_t left_out = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (i < limit) {
      tokens.append(to_str(all[i].token));
    } else {
      left_out += all[i].count;
    }
  }
  return py::make_tuple(tokens, all.size(), left_out);
}

// Reads from a file descriptor that Python opens and closes. A pipe may have no data yet: the wait polls for Ctrl-C.
size_t read_some(int file, char* to, size_t size) {
  const auto most = static_cast<unsigned>(std::min(size, size_t{1} << 30));
#ifdef _WIN32
  const auto got = _read(file, to, most);
#else
  pollfd waiting{file, POLLIN, 0};
  while (::poll(&waiting, 1, /*milliseconds=*/60) <= 0) soma::check_interrupt();
  ssize_t got;
  while ((got = ::read(file, to, most)) < 0 && errno == EINTR) {
  }
#endif
  if (got < 0) throw std::system_error(errno, std::generic_category());
  return static_cast<size_t>(got);
}

bool add_from(soma::ChunkCounter& counter, soma::TextReader& reader) {
  try {
    return without_gil([&] { return counter.add(reader); });
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
}

std::unique_ptr<soma::BpeTrainer> make_trainer(soma::ChunkCounter& counter, uint64_t min_frequency,
                                               const BytesList& reserved) {
  std::vector<std::string> spellings;
  for (const py::handle spelling : reserved) spellings.emplace_back(py::reinterpret_borrow<py::bytes>(spelling));
  return without_gil([&] {
    auto trainer = std::make_unique<soma::BpeTrainer>(counter.chunks(), min_frequency, std::move(spellings));
    counter = soma::ChunkCounter(counter.pattern());
    return trainer;
  });
}

py::array_t<int64_t> merges(const soma::BpeTrainer& trainer) {
  const auto& pairs = trainer.merges();
  py::array_t<int64_t> array({static_cast<py::ssize_t>(pairs.size()), py::ssize_t{2}});
  int64_t* out = array.mutable_data();
  for (const auto& [left, right] : pairs) {
    *out++ = left;
    *out++ = right;
  }
  return array;
}

BytesList tokens(const soma::BpeTrainer& trainer) {
  BytesList list;
  for (const std::string& token : trainer.tokens()) list.append(py::bytes(token));
  return list;
}

}  // namespace

void register_tokenizer_training(py::module_& m) {
  constexpr const char* kAdd =
      "Add texts (str, or bytes of valid UTF-8); an error calls them texts[first], texts[first + 1], ...";

  py::class_<soma::TokenCounter>(m, "TokenCounter", "Counts the tokens of a corpus, in parallel.")
      .def(py::init([](const std::string& kind) { return soma::TokenCounter(soma::parse_tokenizer_kind(kind)); }),
           py::arg("kind"))
      .def("add", &add<soma::TokenCounter>, py::arg("texts"), py::arg("first"), kAdd)
      .def("total", &soma::TokenCounter::total)
      .def(
          "ranked", &ranked, py::arg("limit"),
          "(the most frequent tokens, number of different tokens, occurrences of those that are not among the former)");

  py::class_<soma::WordLosses>(m, "WordLosses", "Counts what kind word does not keep of texts.")
      .def(py::init())
      .def("add", &add<soma::WordLosses>, py::arg("texts"), py::arg("first"), kAdd)
      .def_readonly("letters", &soma::WordLosses::letters)
      .def_readonly("marks", &soma::WordLosses::marks, "Behind letters: a word ends there")
      .def_readonly("unspaced", &soma::WordLosses::unspaced, "Letters of scripts without spaces between words")
      .def_readonly("broken", &soma::WordLosses::broken, "The beginning of a word with a mark")
      .def_readonly("read", &soma::WordLosses::read, "The words that it becomes")
      .def_readonly("clause", &soma::WordLosses::clause, "The beginning of a stretch without spaces");

  py::class_<soma::TextReader>(m, "TextReader", "A text that is read from a file descriptor, piece by piece.")
      .def(py::init([](int file) {
             return soma::TextReader([file](char* to, size_t size) { return read_some(file, to, size); });
           }),
           py::arg("file"))
      .def_property_readonly("bytes_read", &soma::TextReader::bytes_read);

  py::class_<soma::ChunkCounter>(m, "ChunkCounter", "Counts the chunks of a corpus, in parallel.")
      .def(py::init([](const std::string& pattern) {
             return std::make_unique<soma::ChunkCounter>(soma::parse_bpe_pattern(pattern));
           }),
           py::arg("pattern"))
      .def("add", &add<soma::ChunkCounter>, py::arg("texts"), py::arg("first"), kAdd)
      .def("add_from", &add_from, py::arg("reader"),
           "Add the next few megabytes of a text; whether there may be more. ValueError where it is not UTF-8")
      .def_property_readonly("bytes", &soma::ChunkCounter::bytes, "Of all that was added");

  py::class_<soma::BpeTrainer>(m, "BpeTrainer", "Learns the merges of byte-level BPE.")
      .def(py::init(&make_trainer), py::arg("counter"), py::arg("min_frequency"), py::arg("reserved"),
           "From the chunks of a counter, which is empty afterwards. `reserved`: bytes that no merge may spell")
      .def(
          "merge", [](soma::BpeTrainer& self, size_t most) { return without_gil([&] { return self.merge(most); }); },
          py::arg("most"), "Make up to `most` more merges; how many there were")
      .def("merges", &merges, "int64 (n, 2): the ids that merge i joins to token 256 + i")
      .def("tokens", &tokens, "The bytes of every token, by id");
}
