"""Token stores of a user's own arrays: what is taken as it is, what is refused, and with which words."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma

DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, ">u2", ">i8"]


def documents(store: soma.TokenStore) -> list[list[int]]:
    return [store.tokens[a:b].tolist() for a, b in zip(store.starts, store.stops, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_any_integer_type_become_documents(dtype: Any) -> None:
    wanted = [[1, 2, 3], [100, 0], [7, 7, 7, 7]]
    store = soma.TokenStore.from_arrays(np.array(ids, dtype) for ids in wanted)
    assert documents(store) == wanted
    assert store.tokens.dtype == np.uint8
    alone = np.array([3, 1, 2], dtype)
    assert np.shares_memory(soma.TokenStore.from_arrays([alone]).tokens, alone)


def test_ids_take_as_few_bytes_as_they_fit_in() -> None:
    sizes = [1, 255, 256, 65535, 65536, 2**31 - 1]
    stores = [soma.TokenStore.from_arrays([[0, 1], [0, most], [2, 3]]) for most in sizes]
    assert [store.tokens.itemsize for store in stores] == [1, 1, 2, 2, 4, 4]
    assert [documents(store) for store in stores] == [[[0, 1], [0, most], [2, 3]] for most in sizes]


def test_one_memory_mapped_document_is_used_in_place(tmp_path: Path) -> None:
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    ids = np.memmap(tmp_path / "ids.bin", np.uint16, "r")
    store = soma.TokenStore.from_arrays([ids], vocab_size=1000, end_id=999)
    assert np.shares_memory(store.tokens, ids)
    assert (store.end_id, store.pairs) == (999, 999)
    train, validation = store.split(0.1)
    assert np.shares_memory(validation.tokens, ids) and train.pairs == 899


def test_the_end_is_added_where_it_is_missing_and_short_documents_are_dropped() -> None:
    store = soma.TokenStore.from_arrays([[], [5], [5, 6], [5, 6, 0], [0]], end_id=0)
    assert documents(store) == [[5, 0], [5, 6, 0], [5, 6, 0]]
    assert (store.dropped_documents, store.dropped_tokens) == (2, 2)
    assert documents(soma.TokenStore.from_arrays([[5]], end_id=300)) == [[5, 300]]
    nothing = soma.TokenStore.from_arrays([[]])
    assert nothing.pairs == 0 and repr(nothing) == "TokenStore(0 documents, 0 tokens, 0 pairs, uint8)"


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ([[1, 2], [1.0, 2.0]], TypeError, r"arrays\[1\] must be a 1-D array of integers, got float64 of shape \(2,\)"),
        ([[1, 2], [True, False]], TypeError, r"arrays\[1\] must be a 1-D array of integers, got bool"),
        ([[1, 2], ["a", "b"]], TypeError, r"arrays\[1\] must be a 1-D array of integers"),
        ([[1, 2], [2**70, 1]], TypeError, r"arrays\[1\] must be a 1-D array of integers, got object"),
        ([[1, 2], [[1], [2, 3]]], TypeError, r"arrays\[1\] must be a 1-D array of integers"),
        ([[1, 2], [[1, 2]]], TypeError, r"arrays\[1\] must be a 1-D array of integers, got int64 of shape \(1, 2\)"),
        (np.arange(5), TypeError, r"arrays\[0\] must be a 1-D array of integers.*one document is \[ids\]"),
        ("abc", TypeError, "arrays must be an iterable of arrays of ids, got str"),
        (7, TypeError, "arrays must be an iterable of arrays of ids, got int"),
        ([[1, 2], [3, 4, -1]], ValueError, r"arrays\[1\] must have ids from 0 to 9, got -1 at position 2"),
        ([[1, 2], [3, 10]], ValueError, r"arrays\[1\] must have ids from 0 to 9, got 10 at position 1"),
        ([np.array([3, 10])], ValueError, "arrays must have ids from 0 to 9; document 0 has the id 10 at position 1"),
        ([np.array([3, -1])], ValueError, "document 0 has the id -1 at position 1"),
    ],
)
def test_what_is_no_ids_is_named_by_document_and_position(arrays: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        soma.TokenStore.from_arrays(arrays, vocab_size=10)


@pytest.mark.parametrize(
    ("store", "error", "message"),
    [
        (([1.0, 2.0], [0], [2]), TypeError, "tokens must be a 1-D array of integers, got float64"),
        (([1, 2], [0.0], [2]), TypeError, "starts must be a 1-D array of integers"),
        (([1, 2, 3], [0], [2, 3]), ValueError, "stops must be one for each of the 1 starts, got 2"),
        (([1, 2, 3], [-1], [3]), ValueError, "starts document 0, from -1 to 3, begins before"),
        (
            ([1, 2, 3, 4], [0, 1], [2, 4]),
            ValueError,
            "starts document 1, from 1 to 4, begins before the end of the one",
        ),
        (([1, 2, 3], [1], [4]), ValueError, "stops document 0, from 1 to 4, ends after the array of 3 tokens"),
        (([1, 2, 3], [0, 2], [2, 3]), ValueError, "stops document 1, from 2 to 3, has fewer than 2 tokens"),
        (([9, 9, 1, -2, 3], [2], [5]), ValueError, "document 0 has the id -2 at position 1"),
        (([9, 2**31], [0], [2]), ValueError, "document 0 has the id 2147483648 at position 1"),
    ],
)
def test_a_store_of_wrong_bounds_is_refused(store: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        soma.TokenStore(*store)


def test_ids_outside_documents_do_not_matter() -> None:
    store = soma.TokenStore([-5, 1, 2, -5, 3, 4, 2**40], [1, 4], [3, 6])
    assert documents(store) == [[1, 2], [3, 4]]
    assert store.fingerprint() == soma.TokenStore.from_arrays([[1, 2], [3, 4]]).fingerprint()


def test_copies_and_pickles_are_the_same_documents(tmp_path: Path) -> None:
    np.arange(50, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    store = soma.TokenStore.from_arrays([np.memmap(tmp_path / "ids.bin", np.uint16, "r")], end_id=49)
    for other in (copy.copy(store), copy.deepcopy(store), pickle.loads(pickle.dumps(store))):
        assert (other.fingerprint(), other.end_id, repr(other)) == (store.fingerprint(), 49, repr(store))


def test_no_arrays_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="arrays has no document: give an array of ids for each"):
        soma.TokenStore.from_arrays([])
    assert soma.TokenStore.from_arrays([[7]]).dropped_documents == 1, "a document that is too short is counted"
