// Lists of ids cost more than finding the ids. So ints are made once and kept, and are read without a call.
#include "ids.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace {

using soma::TokenId;

// The ints of ids below 2^18, each made at first use. Making and freeing an int for every token takes five times as
// long as finding the token. At most 10 MB, which outlive the interpreter. Use it with the GIL.
class KeptInts {
 public:
  // A new reference to the int of an id. Without memory: nullptr, with an exception set.
  PyObject* get(TokenId id) {
    if (id < ints_.size() && ints_[id] != nullptr) {
      Py_INCREF(ints_[id]);
      return ints_[id];
    }
    return make(id);
  }

 private:
  static constexpr TokenId kMost = 1 << 18;

  PyObject* make(TokenId id) {
    PyObject* const number = PyLong_FromUnsignedLong(id);
    if (number == nullptr || id >= kMost) return number;
    if (id >= ints_.size()) ints_.resize(std::min<size_t>(std::max<size_t>(id + size_t{1}, ints_.size() * 2), kMost));
    ints_[id] = number;
    Py_INCREF(number);
    return number;
  }

  std::vector<PyObject*> ints_;
};
KeptInts& kept_ints = *new KeptInts();

// Reads an int of one digit; returns false for any other int.
bool read_small(PyObject* number, int64_t& value) {
#if PY_VERSION_HEX >= 0x030C0000
  const auto* const compact = reinterpret_cast<const PyLongObject*>(number);
  if (!PyUnstable_Long_IsCompact(compact)) return false;
  value = PyUnstable_Long_CompactValue(compact);
  return true;
#else
  if (static_cast<size_t>(Py_SIZE(number)) > 1) return false;  // negative ones too
  const auto* const one = reinterpret_cast<const PyLongObject*>(number);
  value = Py_SIZE(number) == 0 ? 0 : static_cast<int64_t>(one->ob_digit[0]);
  return true;
#endif
}

}  // namespace

IdList to_list(const TokenId* ids, size_t count) {
  IdList list(count);
  KeptInts& ints = kept_ints;
  for (size_t i = 0; i < count; ++i) {
    PyObject* const number = ints.get(ids[i]);
    if (number == nullptr) throw py::error_already_set();
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), number);
  }
  return list;
}

std::optional<std::vector<int64_t>> numbers_of(const AnyList& list) {
  std::vector<int64_t> numbers(list.size());
  for (size_t i = 0; i < numbers.size(); ++i) {
    PyObject* const number = PyList_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i));
    if (!PyLong_CheckExact(number)) return std::nullopt;
    if (read_small(number, numbers[i])) continue;
    int overflow = 0;
    numbers[i] = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (overflow != 0) return std::nullopt;
  }
  return numbers;
}

py::array_t<uint32_t> to_array(soma::IdVector&& from) {
  using Ids = soma::IdVector;
  auto ids = std::make_unique<Ids>(std::move(from));
  const TokenId* const data = ids->data();
  const auto size = static_cast<py::ssize_t>(ids->size());
  const py::capsule owner(ids.get(), [](void* owned) { delete static_cast<Ids*>(owned); });
  ids.release();
  return py::array_t<uint32_t>(size, data, owner);
}
