"""Reads the pickle of the reference, and runs nothing of it. No other file of the package may name pickles.

`pickletools` only takes a pickle apart into its operations. They are followed here, over plain values: three classes
are inert holders of attributes, and NumPy's arrays are made of their bytes. Every other name, call or operation is
refused. Memory and time are bounded by the size of the file.
"""

from __future__ import annotations

import logging
import math
import os
import pickletools
import re
import struct
import unicodedata
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soma_native import _checks
from soma_native.core import _core
from soma_native.errors import CheckpointError
from soma_native.files.untrusted import Problem, open_regular, short
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger("soma_native")

_MAX_BYTES = 8 << 30
_MAX_OPERATIONS = 1 << 21  # some 300,000 words; about ten seconds

_CLASSES = {"SOMALGMConfig", "SOMASequenceBlock", "SOMATokenInteraction"}
# Other names that a file may have, and their modules. Each stands for a function of this file, never for itself.
_KNOWN = {
    "_reconstruct": {"numpy.core.multiarray", "numpy._core.multiarray"},
    "scalar": {"numpy.core.multiarray", "numpy._core.multiarray"},
    "_frombuffer": {"numpy.core.numeric", "numpy._core.numeric"},
    "ndarray": {"numpy"},
    "dtype": {"numpy"},
    "encode": {"_codecs"},  # bytes, in the protocols 0 to 2
    "_reconstructor": {"copyreg", "copy_reg"},  # an object of a class, in the protocols 0 and 1
    "object": {"builtins", "__builtin__"},
}
_PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Class(NamedTuple):
    name: str


class _Function(NamedTuple):
    name: str


class _Object:
    """An object of one of the three classes: its attributes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.attributes: dict[Any, Any] | None = None


class _Dtype:
    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype


class _Array:
    """An array; None until its bytes are there."""

    value: NDArray[Any] | None = None

    def fill(self, shape: Any, dtype: Any, order: str, data: Any) -> None:
        if self.value is not None or not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise Problem("has an array that is not made as NumPy makes it")
        if type(shape) is not tuple or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
            raise Problem("has an array of an impossible shape")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise Problem(f"has an array of the shape {list(shape)} and {len(data)} bytes, which do not fit")
        self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


class _Machine:
    """Follows the operations of a pickle."""

    def __init__(self, size: int) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._left = size  # of the bytes that texts may become

    def run(self, data: bytes) -> Any:
        """The value of a pickle."""
        for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
            name = operation.name
            if number >= _MAX_OPERATIONS:
                raise Problem(f"has more than {_MAX_OPERATIONS} operations, the most that are followed")
            if name in _PUSHED:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name == "STOP":
                return self._stack.pop()
            elif (step := getattr(self, f"_{name.lower()}", None)) is not None:
                step() if operation.arg is None else step(argument)
            else:
                raise Problem(f"has the pickle operation {name}, which no SOMA model needs; nothing of it was run")
        raise ValueError("no end")

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _proto(self, version: int) -> None:
        if version > 5:
            raise Problem(f"is a pickle of protocol {version}; 0 to 5 can be read")

    def _frame(self, size: int) -> None:
        """Only tells how to read ahead."""

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _binget = _long_binget = _get

    def _empty_list(self) -> None:
        self._stack.append([])

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _list(self) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def _tuple(self) -> None:
        items = self._pop_mark()
        self._stack.append(tuple(items))

    def _tuple_of(self, count: int) -> None:
        items = [self._stack.pop() for _ in range(count)]
        self._stack.append(tuple(items[::-1]))

    def _tuple1(self) -> None:
        self._tuple_of(1)

    def _tuple2(self) -> None:
        self._tuple_of(2)

    def _tuple3(self) -> None:
        self._tuple_of(3)

    def _dict(self) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._add_items(items)

    def _append(self) -> None:
        self._extend([self._stack.pop()])

    def _appends(self) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise Problem("adds items to what is no list")
        self._stack[-1].extend(items)

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._add_items([key, value])

    def _setitems(self) -> None:
        self._add_items(self._pop_mark())

    def _add_items(self, items: list[Any]) -> None:
        target, keys = self._stack[-1], [_plain(key) for key in items[::2]]
        # The hashes of nested tuples, or of one long number again and again, could take for ever.
        known = all(type(key) is str or (type(key) is int and key.bit_length() < 64) for key in keys)
        if type(target) is not dict or len(items) % 2 or not known:
            raise Problem("has a dict with keys that are neither texts nor whole numbers")
        target.update(zip(keys, items[1::2], strict=True))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_named(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise Problem("has a name that is no text")
        self._stack.append(_named(module, name))

    def _newobj(self) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, _Class) or arguments != ():
            raise Problem("makes an object of no class of a SOMA model")
        self._stack.append(_Object(kind.name))

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        found: Any = None
        match function, arguments:
            case _Function("encode"), (str(text), "latin1" | "latin-1"):
                self._left -= len(text)
                if self._left < 0:
                    raise Problem("makes more bytes than it has")
                found = text.encode("latin-1")
            case _Function("_reconstructor"), (_Class(kind), _Function("object"), None):
                found = _Object(kind)
            case _Function("_reconstruct"), (_Function("ndarray"), (0,), bytes()):
                found = _Array()
            case _Function("dtype"), (str(code), *_) if re.fullmatch("[fiu][248]|[iub]1", code):
                found = _Dtype(np.dtype(code))
            case _Function("dtype"), (str(code), *_):
                raise Problem(f"has an array of type {short(code)}; only numbers can be read")
            case _Function("scalar"), (_Dtype() as dtype, bytes(data)):
                found = _Array()
                found.fill((), dtype, "C", data)
            case _Function("_frombuffer"), (bytes() | bytearray() as data, _Dtype() as dtype, tuple(shape), str(order)):
                found = _Array()
                found.fill(shape, dtype, order, data)
            case _:
                called = function.name if isinstance(function, (_Class, _Function)) else type(function).__name__
                raise Problem(f"calls {called} as no SOMA model does; nothing of it was run")
        self._stack.append(found)

    def _build(self) -> None:
        state = self._stack.pop()
        match self._stack[-1], state:
            case _Object(attributes=None) as thing, dict():
                thing.attributes = state
            case _Array() as array, (int(), shape, dtype, bool(fortran), data):
                array.fill(shape, dtype, "F" if fortran else "C", data)
            case _Dtype() as dtype, (int(), "<" | ">" | "=" | "|" as order, *_):
                dtype.dtype = dtype.dtype.newbyteorder(order)
            case thing, _:
                raise Problem(f"sets the state of a {type(thing).__name__.strip('_').lower()} as no SOMA model does")


def _named(module: str, name: str) -> _Class | _Function:
    """What a name of a pickle stands for. The three classes may be of any module, such as __main__."""
    if name in _CLASSES:
        return _Class(name)
    if module in _KNOWN.get(name, ()):
        return _Function(name)
    raise Problem(f"names {short(f'{module}.{name}')}, which no SOMA model needs; nothing of it was run")


def _plain(value: Any) -> Any:
    """A number of NumPy as Python's."""
    if isinstance(value, _Array) and value.value is not None and value.value.ndim == 0:
        return value.value.item()
    return value


def import_soma_pickle(path: str | os.PathLike[str]) -> tuple[Model, Tokenizer]:
    """Read the model that the reference saved, such as `soma_showcase_slm.pkl`. No code of the file is run.

    The model has the block "soma". Its logits are those of the reference in float64 to 1e-4. Its tokenizer is of kind
    "word" with the words of the file.

    Args:
        path: the pickle, of any protocol, with the classes of any module.

    Returns:
        the model and its tokenizer.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no such pickle, is damaged, holds a model that was never trained, or names anything
            beside the classes of the reference and NumPy's arrays. The message names it.
    """
    path = _checks.path("path", path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path}: there is no such file")
    with open_regular(path, pickles=True) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_BYTES:
            raise CheckpointError(f"has {size} bytes, more than the {_MAX_BYTES} that are read", path=path)
        try:
            data = file.read(size)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror or error}", path=path) from error
    try:
        return _parse(data)
    except Problem as problem:
        raise CheckpointError(str(problem), path=path) from None


def _parse(data: bytes) -> tuple[Model, Tokenizer]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's, about texts of damaged pickles
            saved = _Machine(len(data)).run(data)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, struct.error):
        raise Problem("is no pickle, or one that is damaged or cut short") from None
    if type(saved) is not dict:
        raise Problem("is a pickle, but no SOMA model: a dict is expected")
    _check_trained(saved)
    config, tensors = _tensors(saved, len(data))
    tok = _tokenizer(saved["vocab"], saved.get("id_to_token"), config.vocab_size)
    model = Model._blank(config, "auto")
    parameters = model.parameters()
    for name, (where, parts) in tensors.items():
        with np.errstate(over="ignore"):
            np.concatenate(parts, axis=-1, out=parameters[name], casting="same_kind")
        if not np.isfinite(parameters[name]).all():
            raise Problem(f"holds NaN, infinity or a number too large in {where}")
    return model, tok


def _check_trained(saved: dict[Any, Any]) -> None:
    """Refuse a model without weights or words, which the reference can save before it is trained."""
    for name in ("vocab", "embeddings", "pos_embeddings", "blocks", "output_proj"):
        if name not in saved:
            raise Problem(f"is a pickle, but no SOMA model: it has no {name!r}")
        value = saved[name]
        if value is None or (isinstance(value, (dict, list)) and not value):
            raise Problem(f"holds a model that was never trained: its {name} is {'None' if value is None else 'empty'}")
    if _plain(saved.get("trained", True)) is False:
        _log.warning("the file says that its model was not trained to the end")


_Tensors = dict[str, tuple[str, list[NDArray[Any]]]]  # for each parameter its place in the file, and what it joins


def _tensors(saved: dict[Any, Any], size: int) -> tuple[ModelConfig, _Tensors]:
    """The configuration and the parameters, whose numbers take at most the `size` bytes of the file."""
    blocks = saved["blocks"]
    if type(blocks) is not list:
        raise Problem("has blocks that are no list")
    config = _attributes(saved.get("config"), "SOMALGMConfig", "config")
    vocab, (d_model, n_heads, d_ff, longest) = (
        _shape(saved["embeddings"], "embeddings")[0],
        (_size(config, name, "config") for name in ("d_model", "n_heads", "d_ff", "max_seq_len")),
    )
    if _size(config, "n_layers", "config") != len(blocks):
        raise Problem(f"has {len(blocks)} blocks, where config.n_layers is {config['n_layers']}")
    square = (d_model, d_model)
    tensors: _Tensors = {
        "wte": ("embeddings", [_array(saved, "embeddings", "", (vocab, d_model))]),
        "wpe": ("pos_embeddings", [_array(saved, "pos_embeddings", "", (longest, d_model))]),
    }
    for i, one in enumerate(blocks):
        block = _attributes(one, "SOMASequenceBlock", f"blocks[{i}]")
        here = f"blocks[{i}].token_interaction"
        attention = _attributes(block.get("token_interaction"), "SOMATokenInteraction", here)
        heads, width = (_size(attention, name, here) for name in ("n_heads", "d_k"))
        if heads != n_heads or heads * width != d_model:
            raise Problem(f"has {heads} heads of {width} in {here}, which config ({n_heads} heads) does not fit")
        own, inner = f"h.{i}.", f"blocks[{i}]."
        w_qkv = [_array(attention, name, f"{here}.", square) for name in ("W_q", "W_k", "W_v")]
        added: _Tensors = {own + "attn.w_qkv": (here, w_qkv)}
        added[own + "attn.w_proj"] = (f"{here}.W_o", [_array(attention, "W_o", f"{here}.", square)])
        shapes = {"W1": (d_model, d_ff), "b1": (d_ff,), "W2": (d_ff, d_model), "b2": (d_model,)}
        names = zip(shapes, ("mlp.w_fc", "mlp.b_fc", "mlp.w_proj", "mlp.b_proj"), strict=True)
        added.update((own + to, (inner + name, [_array(block, name, inner, shapes[name])])) for name, to in names)
        size -= sum(part.nbytes for _, parts in added.values() for part in parts)
        if size < 0:  # else a small file could ask for any number of layers
            raise Problem("has fewer bytes than its blocks need: one stands in several places")
        tensors |= added
    tensors["lm_head"] = ("output_proj", [_array(saved, "output_proj", "", (d_model, vocab)).T])
    try:
        return ModelConfig(vocab, d_model, len(blocks), n_heads, d_ff, longest, block="soma"), tensors
    except (ValueError, TypeError) as error:
        raise Problem(f"describes no usable model: {error}") from None


def _attributes(thing: Any, kind: str, where: str) -> dict[Any, Any]:
    if not isinstance(thing, _Object) or thing.kind != kind or thing.attributes is None:
        raise Problem(f"has no {kind} in {where}")
    return thing.attributes


def _size(attributes: dict[Any, Any], name: str, where: str) -> int:
    value = _plain(attributes.get(name))
    if type(value) is not int or not 0 < value < 1 << 31:
        raise Problem(f"has no usable {where}.{name}: a whole number above 0 is expected")
    attributes[name] = value
    return value


def _shape(thing: Any, where: str) -> tuple[int, ...]:
    if not isinstance(thing, _Array) or thing.value is None or thing.value.dtype.kind != "f" or not thing.value.ndim:
        raise Problem(f"has no array of floating-point numbers in {where}")
    return thing.value.shape


def _array(owner: dict[Any, Any], name: str, where: str, shape: tuple[int, ...]) -> NDArray[Any]:
    thing = owner.get(name)
    found = _shape(thing, where + name)
    if found != shape:
        raise Problem(f"has the shape {list(found)} in {where}{name}, where {list(shape)} is expected")
    array: NDArray[Any] = thing.value  # type: ignore[union-attr]  # _shape has looked
    return array


def _tokenizer(vocab: Any, id_to_token: Any, size: int) -> Tokenizer:
    """The tokenizer of the words. What is no word, such as <UNK>, is a special token."""
    ids = {word: _plain(i) for word, i in vocab.items()} if isinstance(vocab, dict) else {}
    tokens = [""] * len(ids)
    for word, i in ids.items():
        if type(word) is not str or not word or type(i) is not int or not 0 <= i < len(ids) or tokens[i]:
            raise Problem(f"has a vocab whose ids are not 0 to {len(ids) - 1}, each with a word of its own")
        tokens[i] = word
    if len(ids) > size:
        raise Problem(f"has {len(ids)} words, more than the {size} rows of its embeddings")
    listed = dict(enumerate(id_to_token)) if isinstance(id_to_token, list) else id_to_token
    if isinstance(listed, dict) and listed and [listed.get(i) for i in range(len(tokens))] != tokens:
        raise Problem("has an id_to_token that disagrees with its vocab")
    try:
        return Tokenizer(_core.Tokenizer("word", tokens, [i for i, word in enumerate(tokens) if not _is_word(word)]))
    except ValueError as error:
        raise Problem(f"has a vocab that cannot be used: {error}") from None


def _is_word(text: str) -> bool:
    return all(letter == "_" or unicodedata.category(letter)[0] in "LN" for letter in text)
