// Ids between Python and the core: lists of int and arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace py = pybind11;

using IdList = py::typing::List<py::int_>;
using AnyList = py::typing::List<py::object>;

// A new list of `count` ids.
IdList to_list(const soma::TokenId* ids, size_t count);

// The numbers of a list; nothing if an item is not an int of 64 bits.
std::optional<std::vector<int64_t>> numbers_of(const AnyList& list);

// An array that owns the ids; nothing is copied.
py::array_t<uint32_t> to_array(soma::IdVector&& ids);
