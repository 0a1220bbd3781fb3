"""The public Tokenizer: text to ids and back by words, characters, bytes or byte-level BPE. C++ does the work."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from soma_native import _checks
from soma_native.core import _core
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.files.atomic_folder import FolderView, replace_files
from soma_native.files.text_files import pieces_of, read_utf8
from soma_native.tokenizer.added_tokens import RuledCore
from soma_native.tokenizer.formats.gpt2_folder import is_gpt2_folder, read_gpt2_folder
from soma_native.tokenizer.formats.tiktoken_gpt2 import read_gpt2, read_tiktoken
from soma_native.tokenizer.formats.tokenizer_json import (
    FILE_NAME,
    document_of,
    make_tokenizer,
    read_tokenizer,
    write_tokenizer,
)
from soma_native.tokenizer.train import train_tokenizer
from soma_native.tokenizer.train_bpe import TrainingProgress
from soma_native.tokenizer.word_losses import loss_warning

_log = logging.getLogger("soma_native")


class Tokenizer:
    r"""Encodes text to ids of a vocabulary and decodes it again. Made by `train` or `load`; never changes.

    Four kinds:

    - ``word``: the text is lower-cased character by character (Unicode's mapping without context: "İ" becomes "i" and a
      combining dot, "Σ" always "σ"). Its tokens are the runs of ``[\p{L}\p{N}_]``; all other characters are lost, and
      so are combining marks, such as the vowel signs of Hindi. A warning says so where they are many.
    - ``char``: every character (code point) is a token.
    - ``byte``: every byte of the text's UTF-8 is a token.
    - ``bpe``: byte-level byte-pair encoding. The rules of GPT-2, cl100k, o200k or others split the text into chunks
      (words, numbers, punctuation, whitespace). The bytes of a chunk merge to tokens, the pair of lowest rank first.

    Text encodes to the id of a special token only if `allowed_special` of `encode` names this token.

    Several threads may call the methods at once. The methods do not hold Python's global lock while they compute.

    >>> tok = Tokenizer.train(["The cat sat.", "The dog sat."], kind="word")
    >>> tok.encode("the CAT!")
    [6, 8]
    >>> tok.decode([6, 9, 7])
    'the dog sat'
    >>> tok
    Tokenizer(kind='word', vocab_size=10)
    """

    __slots__ = ("_beside", "_core", "_loss_said", "_settings", "_special", "_table")

    def __init__(self, core: _core.Tokenizer | RuledCore, settings: Mapping[str, Any] | None = None) -> None:
        if not isinstance(core, (_core.Tokenizer, RuledCore)):
            raise TypeError("make a Tokenizer with Tokenizer.train(texts, kind=...) or Tokenizer.load(path)")
        self._core = core
        self._settings = dict(settings or {})  # settings of its file that change no id
        self._beside: dict[str, bytes] = {}  # files beside it in a model's folder, which `save` writes again
        self._special = {core.token(i): i for i in core.special_ids}
        self._loss_said = False  # whether the log has that texts do not suit the kind: once is enough
        self._table: _core.TokenTable | None = None

    @staticmethod
    def train(
        texts: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
        kind: str = "word",
        vocab_size: SupportsIndex | None = None,
        special_tokens: Iterable[str] | None = None,
        *,
        pattern: str | None = None,
        min_frequency: SupportsIndex | None = None,
        progress: TrainingProgress | None = None,
    ) -> Tokenizer:
        r"""Train a vocabulary on texts.

        The result depends on the texts and their order alone, not on the number of threads.

        Args:
            texts: an iterable, which may be a generator, of texts (`str`) and files (any `os.PathLike`); or the path of
                one file, as `os.PathLike` or `str`. A file is UTF-8, and its content is one text. A `str` in an
                iterable is always a text, never the name of a file.
            kind: "word" (the most frequent words; of equally frequent ones those seen first), "char" (all characters,
                by code point), "byte" (the 256 bytes; the texts are only checked) or "bpe". "bpe" has the 256 bytes and
                adds the most frequent pair of neighbouring tokens, again and again; of equally frequent pairs the one
                with the smaller left id, then the smaller right id. It reads files piece by piece, so a file may be
                larger than memory.
            vocab_size: the largest number of ids, special tokens included. Default: 3000 for "word", 8192 for "bpe",
                all characters for "char". A smaller value keeps the most frequent characters of "char". "bpe" warns
                if the texts have too few pairs for this size.
            special_tokens: their texts, in the order of their ids. Their ids are the first of the vocabulary ("byte"
                and "bpe": the last). Default: <PAD> <UNK> <START> <END> <BOS> <EOS> for "word", <UNK> <|endoftext|>
                for "char", none for "byte", <|endoftext|> for "bpe". Text that is not in the vocabulary encodes as
                <UNK>; without <UNK>, `encode` raises. With "bpe" no merge makes the text of a special token.
            pattern: for "bpe", the rule that splits text into chunks; merges stay within a chunk. A name: "gpt2" (the
                default), "cl100k", "o200k", "llama3", "qwen2", "qwen3.5", "nanochat", "starcoder" (which SmolLM has
                too) or "tekken". Or a regular expression as in tiktoken, made of the alternatives of these patterns,
                such as nanochat's with ``\p{N}{1,2}``.
            min_frequency: for "bpe", the lowest count in the texts of a pair that is merged. Default: 1.
            progress: for "bpe", called from time to time as ``progress(stage, done, total)``: first with "counting",
                the bytes counted so far, and None; then with "merging", the merges made and the merges wanted.

        Raises:
            TypeError: `texts` is a `str` that names no file, or has an item that is neither text nor path.
            ValueError: an unknown kind; a `vocab_size` that leaves no room beside the special tokens or is above 2**24;
                special tokens that are empty, repeated or could be ordinary tokens; texts with fewer than two different
                words or characters ("byte" and "bpe": with fewer than two bytes); a text with a lone surrogate; a file
                that is not UTF-8; a folder.
            OSError: a file cannot be read. `FileNotFoundError`: there is no such file.

        >>> tok = Tokenizer.train(["hello world"], kind="char", special_tokens=())
        >>> [tok.id_to_token(i) for i in range(tok.vocab_size)]
        [' ', 'd', 'e', 'h', 'l', 'o', 'r', 'w']
        """
        core, loss_said = train_tokenizer(texts, kind, vocab_size, special_tokens, pattern, min_frequency, progress)
        tok = Tokenizer(core)
        tok._loss_said = loss_said
        return tok

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """Load a `tokenizer.json` that `save` or Hugging Face `tokenizers` wrote.

        It reads the byte-level BPE of GPT-2, RoBERTa, GPT-NeoX, Llama-3, Qwen-2, GPT-4o and similar models. The file
        may normalize to NFC, put a space in front, and have added tokens. Tokens that it marks as special are special.
        `tokenizers` finds them in every text; here ``allowed_special="all"`` does. Added tokens that are not special
        are always found. Settings that change no id of a text are kept and saved again, but not applied: special tokens
        of a template (post_processor), `truncation`, `padding`.

        Args:
            path: the file or its folder. A folder without this file may have GPT-2's `vocab.json` and `merges.txt`.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is damaged, or has a setting that is not supported. The message names it.
        """
        path = _checks.path("path", path)
        view = FolderView(path) if path.is_dir() else None
        file = path if view is None else view.path(FILE_NAME)
        if view is not None and not os.path.lexists(file) and is_gpt2_folder(view):
            return Tokenizer(*read_gpt2_folder(view))
        if not os.path.lexists(file):
            raise FileNotFoundError(f"there is no tokenizer at {file}")
        return Tokenizer(*read_tokenizer(file))

    @staticmethod
    def from_tiktoken(
        path: str | os.PathLike[str], *, pattern: str, special_tokens: Mapping[str, int] | None = None
    ) -> Tokenizer:
        """Make a tokenizer from a rank file of tiktoken. It gives the ids of tiktoken.

        Args:
            path: the file, such as `cl100k_base.tiktoken`: lines of a token in base64 and its rank.
            pattern: the rule that splits text into chunks, which the file does not hold: "gpt2" (also for r50k_base and
                p50k_base), "cl100k" or "o200k"; or a regular expression as in `train`.
            special_tokens: text to id, which the file does not hold either, such as ``{"<|endoftext|>": 100257}``.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is no rank file, has a rank or a token twice, lacks a rank that is not the id of a
                special token, or lacks a single byte. The message names the line.
            ValueError: an unknown pattern; a special token with the id of an ordinary one.
        """
        return Tokenizer(read_tiktoken(path, pattern, special_tokens).make())

    @staticmethod
    def from_gpt2(vocab_json: str | os.PathLike[str], merges_txt: str | os.PathLike[str]) -> Tokenizer:
        """Make a tokenizer from the files of GPT-2's publication. It gives the ids of GPT-2.

        Tokens of several bytes that no merge makes are special, such as ``<|endoftext|>``.

        Args:
            vocab_json: a JSON object of token text, in GPT-2's byte-level alphabet, to id.
            merges_txt: the pairs that merge, one a line, lowest rank first.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the files are damaged or do not belong together. The message names the line.
        """
        return Tokenizer(read_gpt2(vocab_json, merges_txt).make())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a `tokenizer.json` that `load` and Hugging Face `tokenizers.Tokenizer.from_file` read.

        `tokenizers` encodes every text to the same ids. For "word" and "char" its `decode` prints special tokens; ours
        leaves them out.

        Args:
            path: a name that ends in ".json" is the file. Any other name is the folder for `tokenizer.json`, created if
                missing. An existing file is replaced at once or not at all.

        Returns:
            The path of the file.

        Raises:
            CheckpointError: it cannot be written.
        """
        path = _checks.path("path", path)
        file = path if path.suffix == ".json" and not path.is_dir() else path / FILE_NAME
        with replace_files(file.parent) as staging:
            write_tokenizer(staging.path / file.name, document_of(self._core, self._settings))
        return file

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the tokenizer as the content of its file, for worker processes."""
        return _tokenizer_of, (document_of(self._core, self._settings), self._beside)

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of a text. Special tokens are never added.

        Args:
            text: any text; an empty text has no ids.
            allowed_special: the special tokens to find in `text`, a collection of their texts, or "all". The text of
                every other special token is plain text. If two of them start at the same place, the longer one counts.

        Raises:
            ValueError: the text has a lone surrogate; it has a token that is not in a vocabulary without <UNK>; an item
                of `allowed_special` is no special token.

        >>> tok = Tokenizer.train(["one two"], kind="byte", special_tokens=["<eos>"])
        >>> tok.encode("é")
        [195, 169]
        >>> tok.encode("a<eos>", allowed_special={"<eos>"})
        [97, 256]
        """
        return self._core.encode(text, self._allowed(allowed_special))

    def encode_with_offsets(
        self, text: str, allowed_special: Collection[str] = ()
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text as `encode` gives them, and the position of each in the text.

        Returns:
            ids, and as many pairs (begin, end): the token stands for ``text[begin:end]``. Tokens that are bytes of the
            same character have the position of this character.

        >>> tok = Tokenizer.train(["one two"], kind="word", special_tokens=())
        >>> tok.encode_with_offsets(" One, TWO")
        ([0, 1], [(1, 4), (6, 9)])
        """
        ids, offsets = self._core.encode_with_offsets(text, self._allowed(allowed_special))
        return ids, offsets

    def encode_array(self, text: str, allowed_special: Collection[str] = ()) -> NDArray[np.uint32]:
        """The ids of a text as `encode` gives them, as a uint32 array (n,), without a Python list in between.

        >>> Tokenizer.train(["ab"], kind="byte").encode_array("ab")
        array([97, 98], dtype=uint32)
        """
        return self._core.encode_array(text, self._allowed(allowed_special))

    def encode_batch(self, texts: Iterable[str], allowed_special: Collection[str] = ()) -> list[list[int]]:
        """The ids of each text as `encode` gives them. Threads encode the texts in parallel.

        Raises:
            TypeError: `texts` is a `str`.
            ValueError: as `encode`. The message names the first wrong text.

        >>> Tokenizer.train(["ab"], kind="byte").encode_batch(["a", "", "ba"])
        [[97], [], [98, 97]]
        """
        if isinstance(texts, (str, bytes)):
            raise ArgumentTypeError("texts", f"must be a list of str, got a single {type(texts).__name__}: pass [text]")
        if not isinstance(texts, Iterable):
            raise ArgumentTypeError("texts", f"must be a list of str, got {type(texts).__name__}")
        return self._core.encode_batch(list(texts), self._allowed(allowed_special))

    def _encode_joined(
        self, texts: list[str | bytes], first: int, losses: _core.WordLosses | None = None
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of all texts in one array, and the number of ids of each text. Errors number texts from `first`.

        The losses of kind "word" are added to `losses`.
        """
        ids, lengths = self._core.encode_joined(texts, first)
        if losses is not None and self.kind == "word":
            losses.add(texts, first)
        return ids, lengths

    def _encode_pieces(
        self, text: str | Path, index: int, losses: _core.WordLosses | None = None
    ) -> Iterator[NDArray[np.uint32]]:
        """The ids of a long text, or of a file, some at a time; otherwise as `_encode_joined`."""
        try:
            if isinstance(self._core, _core.Tokenizer) or self._core.works_in_pieces:
                for piece in pieces_of(text, index):
                    yield self._encode_joined([piece], index, losses)[0]
                return
        except ValueError:  # is about a piece: that of the whole says where in it
            self._encode_joined([text if isinstance(text, str) else read_utf8(text)], index)
            raise
        yield self._encode_joined([text if isinstance(text, str) else read_utf8(text)], index)[0]

    def _token_table(self) -> _core.TokenTable:
        """The ordinary tokens by their bytes, made at first use."""
        if self._table is None:
            self._table = self._core.token_table()
        return self._table

    def _warn_of_losses(self, losses: _core.WordLosses) -> None:
        """Say once that texts do not suit kind "word", where they do not."""
        warning = None if self._loss_said else loss_warning(losses)
        if warning is not None:
            self._loss_said = True
            _log.warning("%s", warning)

    def decode(self, ids: Iterable[SupportsIndex] | NDArray[Any]) -> str:
        """The text of ids.

        "word": the words, joined by spaces. "char": the characters. Both leave out special tokens.
        "byte" and "bpe": the exact text, with the texts of special tokens. Bytes that are not UTF-8, such as part of a
        character, become U+FFFD, the replacement character.

        Args:
            ids: a list, or an array (n,) of any integer type.

        Raises:
            TypeError: `ids` are not integers.
            ValueError: an id is not in the vocabulary, or `ids` has more than one dimension.

        >>> tok = Tokenizer.train(["ab"], kind="byte")
        >>> tok.decode(tok.encode("né")), tok.decode(tok.encode("né")[:2])
        ('né', 'n�')
        """
        if type(ids) is list and (text := self._core.decode_list(ids)) is not None:
            return text
        return self._core.decode(_id_array(ids))

    def decode_bytes(self, ids: Iterable[SupportsIndex] | NDArray[Any]) -> bytes:
        r"""The bytes of ids: exact for "byte" and "bpe", else the UTF-8 of `decode`. Arguments and errors as `decode`.

        >>> Tokenizer.train(["ab"], kind="byte").decode_bytes([195, 32])
        b'\xc3 '
        """
        if type(ids) is list and (raw := self._core.decode_list_bytes(ids)) is not None:
            return raw
        return self._core.decode_bytes(_id_array(ids))

    def token_to_id(self, token: str) -> int | None:
        """The id of the token with this text, special or not; None if there is no such token.

        For "byte" and "bpe", the text of an ordinary token is its bytes in GPT-2's byte-level alphabet, as in the file.
        """
        return self._core.find(token)

    def id_to_token(self, i: SupportsIndex) -> str:
        """The text of a token, as `token_to_id` takes it.

        Raises:
            TypeError: `i` is no integer.
            ValueError: there is no such id.

        >>> tok = Tokenizer.train(["ab"], kind="byte")
        >>> tok.id_to_token(97), tok.id_to_token(32)
        ('a', 'Ġ')
        """
        i = _checks.integer("i", i)
        if not 0 <= i < self.vocab_size:
            raise ValueError(f"id {i} is not in the vocabulary: ids are 0 to {self.vocab_size - 1}")
        return self._core.token(i)  # raises for an unused id

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included; the highest id + 1 if ids have gaps ("bpe")."""
        return self._core.vocab_size

    @property
    def kind(self) -> str:
        """The kind: "word", "char", "byte" or "bpe"."""
        return self._core.kind

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of the special tokens, in the order of their ids."""
        return tuple(self._special)

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size})"

    def _allowed(self, allowed_special: Collection[str]) -> list[int]:
        if isinstance(allowed_special, str) and allowed_special == "all":
            return list(self._special.values())
        if isinstance(allowed_special, (str, bytes)) or not isinstance(allowed_special, Iterable):
            error = ArgumentError if isinstance(allowed_special, str) else ArgumentTypeError
            raise error("allowed_special", f"must be 'all' or a set of special tokens, got {allowed_special!r:.80}")
        allowed_special = list(allowed_special)
        for token in allowed_special:
            if token not in self._special:
                known = ", ".join(self._special) or "none"
                raise ArgumentError("allowed_special", f"must be special tokens ({known}), got {token!r:.80}")
        return [self._special[token] for token in allowed_special]


def _tokenizer_of(document: dict[str, Any], beside: Mapping[str, bytes] = MappingProxyType({})) -> Tokenizer:
    tok = Tokenizer(*make_tokenizer(document))
    tok._beside = dict(beside)
    return tok


_tokenizer_of.__module__ = "soma_native"  # the name in pickles, which stays if this module moves


def _id_array(ids: Iterable[SupportsIndex] | NDArray[Any]) -> NDArray[np.int64] | NDArray[np.uint32]:
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise ArgumentTypeError("ids", f"must be a list or an array of integers, got {type(ids).__name__}")
    try:
        array = ids if isinstance(ids, np.ndarray) else np.asarray(list(ids) or np.empty(0, np.int64))
    except ValueError:  # lists of different lengths in a list
        raise ArgumentTypeError("ids", "must be integers, got lists") from None
    if array.ndim != 1:
        raise ArgumentError("ids", f"must have one dimension, got an array of shape {array.shape}")
    if array.dtype.kind not in "iu":
        if array.dtype == object and all(isinstance(i, int) for i in array):
            raise ArgumentError("ids", "are beyond 64 bits: not in the vocabulary")
        raise ArgumentTypeError("ids", f"must be integers, got {array.dtype}")
    if array.dtype == np.uint32:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint64:
        array = np.minimum(array, np.uint64(2**63 - 1))
    return np.ascontiguousarray(array, dtype=np.int64)
