// Vocabularies between Python and the core.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "texts.h"
#include "tokenizer/tokenizer.h"

using Pairs = py::array_t<int64_t, py::array::c_style>;
using Specials = std::vector<std::pair<py::str, int64_t>>;
using TokenList = py::typing::List<py::typing::Optional<py::bytes>>;
using SpecialList = py::typing::List<py::typing::Tuple<py::str, py::int_>>;
using VocabularyParts = py::typing::Tuple<py::str, TokenList, py::typing::Optional<Pairs>, SpecialList, py::bool_>;

// A tokenizer of any kind but bpe, from the texts of its tokens by id.
std::unique_ptr<soma::Tokenizer> make_tokenizer(const std::string& kind, const Texts& tokens,
                                                const std::vector<soma::TokenId>& special_ids);

std::unique_ptr<soma::Tokenizer> make_bpe(const std::string& pattern, const TokenList& tokens,
                                          const std::optional<Pairs>& merges, const Specials& special_tokens,
                                          bool ignore_merges);

// (pattern, tokens, merges, special tokens, ignore_merges), as make_bpe takes them.
VocabularyParts bpe_vocabulary(const soma::Tokenizer& tokenizer);
