"""The steps of a Hugging Face `tokenizer.json` before byte-pair encoding: find added tokens, normalize the text between
them to NFC, put a space in front. `RuledCore` does these steps around a tokenizer of the core.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from soma_native.core import _core


class AddedToken(NamedTuple):
    """A text that is one token wherever it stands. The names are those of Hugging Face's files.

    Attributes:
        content: its text.
        id: its id.
        special: whether it is found only if `allowed_special` names it.
        lstrip, rstrip: whether it includes the white space before it, after it.
        normalized: whether it is searched for in the normalized text, after the tokens without this flag.
    """

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class TextRules(NamedTuple):
    """The rules of a file beyond splitting and merging.

    Attributes:
        added: the added tokens.
        nfc: whether text is normalized to NFC.
        prefix_space: whether text that does not begin with a space gets one.
        sections: the file's own normalizer, pre_tokenizer, post_processor and decoder, kept for saving.
        unknown: the file's settings for bytes that are no tokens, kept for saving.
    """

    added: tuple[AddedToken, ...] = ()
    nfc: bool = False
    prefix_space: bool = False
    sections: dict[str, object] | None = None
    unknown: dict[str, object] | None = None

    @property
    def are_trivial(self) -> bool:
        """Whether the core alone can follow the rules: special tokens only, found in one pass over the text."""
        return (
            not (self.nfc or self.prefix_space or any(t.lstrip or t.rstrip or not t.special for t in self.added))
            and len({t.normalized for t in self.added}) < 2
        )


# `tokenizers` normalizes by the tables of Unicode 9. Later characters that normalization would move, compose or
# decompose are inert to it, so text is cut at them. The NFC of older characters is the same in all later versions.
_INERT = re.compile(
    "([\u05c8\u05c9\u07fd\u0897-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b\u0d3c\u0eba\u1715\u1abf-\u1af0\u1df6-\u1dfa\ua82c"
    "\U000105c9\U000105d2\U000105da\U000105e4\U00010d24-\U00010d27\U00010d69-\U00010d6d\U00010eab\U00010eac"
    "\U00010ecb-\U00010ecf\U00010ef0-\U00010efb\U00010efd-\U00010eff\U00010f46-\U00010f50\U00010f82-\U00010f85\U00011070"
    "\U0001133b\U00011382-\U00011385\U0001138b\U0001138e\U00011390\U00011391\U000113b8\U000113bb\U000113c2\U000113c5"
    "\U000113c7-\U000113c9\U000113ce-\U000113d0\U0001145e\U00011839\U0001183a\U00011930\U00011935\U00011938\U0001193d"
    "\U0001193e\U00011943\U000119e0\U00011a34\U00011a47\U00011a99\U00011d42\U00011d44\U00011d45\U00011d97\U00011f41"
    "\U00011f42\U0001611e-\U00016129\U0001612f\U00016d63\U00016d67-\U00016d6a\U00016ff0\U00016ff1\U0001d127\U0001d128"
    "\U0001d250-\U0001d252\U0001d25b\U0001d25c\U0001d25f\U0001d280\U0001d281\U0001e08f\U0001e130-\U0001e136\U0001e2ae"
    "\U0001e2ec-\U0001e2ef\U0001e4ec-\U0001e4ef\U0001e5ee\U0001e5ef\U0001e6e3\U0001e6e6\U0001e6ee\U0001e6ef\U0001e6f5])"
)
# Unicode's White_Space. Python's \s has more characters.
_SPACES = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000").union(map(chr, range(0x2000, 0x200B)))
_SPACE_RUN = re.compile(f"[{''.join(_SPACES)}]*")


def to_nfc(text: str) -> str:
    """The text in NFC as `tokenizers` computes it, with any version of Unicode in Python."""
    if unicodedata.is_normalized("NFC", text):
        return text
    return "".join(unicodedata.normalize("NFC", _in_order(piece)) for piece in _INERT.split(text))


def _in_order(text: str) -> str:
    """The text with runs of combining marks sorted. `normalize` would take quadratic time to sort long ones."""
    if len(text) < 64:
        return text
    marks = unicodedata.combining
    runs = itertools.groupby(text, key=lambda character: marks(character) > 0)
    return "".join("".join(sorted(run, key=marks) if combining else run) for combining, run in runs)


class _Piece(NamedTuple):
    """A stretch of a text: an added token if it has an `id`, else text for the core to encode.

    `begins` and `ends` are the places of each character of `text` in the original text; None if not needed.
    """

    text: str
    begins: NDArray[np.int64] | None = None
    ends: NDArray[np.int64] | None = None
    id: int | None = None

    def part(self, start: int, stop: int, id: int | None = None) -> _Piece:
        """The characters [start, stop) of this piece."""
        if self.begins is None or self.ends is None:
            return _Piece(self.text[start:stop], id=id)
        return _Piece(self.text[start:stop], self.begins[start:stop], self.ends[start:stop], id)


class _Finder:
    """Finds added tokens in a text from left to right; at each place the longest."""

    def __init__(self, tokens: dict[str, AddedToken]) -> None:
        self._tokens = tokens
        self._pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))

    def pieces(self, piece: _Piece) -> Iterator[_Piece]:
        """The piece cut into tokens and the text between them; no empty pieces."""
        text, at = piece.text, 0
        for match in self._pattern.finditer(text) if self._tokens else ():
            token = self._tokens[match[0]]
            start, stop = match.span()
            while token.lstrip and start > at and text[start - 1] in _SPACES:
                start -= 1
            if token.rstrip:
                stop = _SPACE_RUN.match(text, stop).end()  # type: ignore[union-attr]  # it also matches an empty run
            if at < start:
                yield piece.part(at, start)
            yield piece.part(start, stop, token.id)
            at = stop
        if at < len(text):
            yield piece.part(at, len(text)) if at else piece


class RuledCore:
    """A tokenizer of the core that also follows the rules of a file. It has the methods of the core's tokenizer.

    If the core alone can follow the rules, the methods are the core's own.
    """

    def __init__(self, core: _core.Tokenizer, rules: TextRules) -> None:
        self.core = core
        self.rules = rules
        self.kind, self.vocab_size = core.kind, core.vocab_size
        self.special_ids = sorted(t.id for t in rules.added if t.special)
        self._finders = lru_cache(8)(self._make_finders)
        if rules.are_trivial and self.special_ids == list(core.special_ids):
            for name in ("encode", "encode_array", "encode_batch", "encode_joined", "encode_with_offsets"):
                setattr(self, name, getattr(core, name))

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as decoding, is the core's."""
        return getattr(self.core, name)

    def encode(self, text: str, allowed_special: Sequence[int]) -> list[int]:
        """As `_core.Tokenizer.encode`."""
        return cast("list[int]", self.encode_array(text, allowed_special).tolist())

    def encode_array(self, text: str, allowed_special: Sequence[int]) -> NDArray[np.uint32]:
        """As `_core.Tokenizer.encode_array`."""
        with _complaints_from(self.core.encode_array, text, self._found(allowed_special)):
            return self._joined([text], allowed_special)[0]

    def encode_batch(self, texts: list[str], allowed_special: Sequence[int]) -> list[list[int]]:
        """As `_core.Tokenizer.encode_batch`."""
        with _complaints_from(self.core.encode_batch, texts, self._found(allowed_special)):
            ids, lengths = self._joined(texts, allowed_special)
        return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if texts else []

    @property
    def works_in_pieces(self) -> bool:
        """Whether a text encodes as its pieces do, where these are cut at the end of a chunk."""
        return not self.rules.prefix_space and all(t.special for t in self.rules.added)

    def encode_joined(self, texts: list[str | bytes], first: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """As `_core.Tokenizer.encode_joined`."""
        with _complaints_from(self.core.encode_joined, texts, first):
            return self._joined([text if isinstance(text, str) else text.decode() for text in texts], ())

    def encode_with_offsets(self, text: str, allowed_special: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """As `_core.Tokenizer.encode_with_offsets`. A normalized character has the place of all its sources."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        with _complaints_from(self.core.encode_with_offsets, text, self._found(allowed_special)):
            places = np.arange(len(text) + 1)
            for piece in self._pieces(_Piece(text, places[:-1], places[1:]), allowed_special):
                assert piece.begins is not None and piece.ends is not None
                if piece.id is not None:
                    ids.append(piece.id)
                    offsets.append((int(piece.begins[0]), int(piece.ends[-1])))
                    continue
                found, spans = self.core.encode_with_offsets(piece.text, [])
                begins, ends = np.array(spans).T
                ids += found
                offsets += zip(piece.begins[begins].tolist(), piece.ends[ends - 1].tolist(), strict=True)
        return ids, offsets

    def _joined(self, texts: list[str], allowed_special: Sequence[int]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of all texts, as `encode_joined` returns them."""
        pieces: list[_Piece] = []
        owners: list[int] = []
        for i, text in enumerate(texts):
            pieces += self._pieces(_Piece(text), allowed_special)
            owners += [i] * (len(pieces) - len(owners))
        ids, lengths = self.core.encode_joined(["" if piece.id is not None else piece.text for piece in pieces], 0)
        added = [i for i, piece in enumerate(pieces) if piece.id is not None]
        if added:
            ids = np.insert(ids, np.cumsum(lengths)[added], np.array([pieces[i].id for i in added], np.uint32))
            lengths[added] = 1
        return ids, np.bincount(owners, lengths, len(texts)).astype(np.int64)

    def _pieces(self, whole: _Piece, allowed_special: Sequence[int]) -> Iterator[_Piece]:
        """The added tokens of a text, and the stretches between them, ready for the core to encode."""
        before, after = self._finders(frozenset(allowed_special))
        for raw in before.pieces(whole):
            if raw.id is not None:
                yield raw
                continue
            for piece in after.pieces(_normalized(raw) if self.rules.nfc else raw):
                prefixed = self.rules.prefix_space and piece.id is None and not piece.text.startswith(" ")
                yield _with_space(piece) if prefixed else piece

    def _found(self, allowed: Sequence[int]) -> list[int]:
        """The core's special tokens that are searched for in a text."""
        always = {t.id for t in self.rules.added if not t.special}
        return [i for i in self.core.special_ids if i in always or i in allowed]

    def _make_finders(self, allowed: frozenset[int]) -> tuple[_Finder, _Finder]:
        """The finder for the original text, and the finder for the normalized text between its tokens."""
        active = [t for t in self.rules.added if not t.special or t.id in allowed]
        clean = to_nfc if self.rules.nfc else str
        return (
            _Finder({t.content: t for t in active if not t.normalized}),
            _Finder({clean(t.content): t for t in active if t.normalized}),
        )


@contextlib.contextmanager
def _complaints_from(call: Callable[..., object], *arguments: object) -> Iterator[None]:
    """If the block raises, raise the core's error for the whole text: the block sees only pieces of it."""
    try:
        yield
    except (AttributeError, TypeError, ValueError):
        call(*arguments)
        raise


def _with_space(piece: _Piece) -> _Piece:
    """The piece with a space in front; the space has the place of the first character."""
    if piece.begins is None or piece.ends is None:
        return _Piece(" " + piece.text)
    return _Piece(" " + piece.text, np.r_[piece.begins[:1], piece.begins], np.r_[piece.ends[:1], piece.ends])


def _normalized(piece: _Piece) -> _Piece:
    clean = to_nfc(piece.text)
    if clean == piece.text:
        return piece
    if piece.begins is None or piece.ends is None:
        return _Piece(clean)
    begins: list[int] = []
    ends: list[int] = []
    at = 0
    for cluster in _clusters(piece.text):
        size = len(to_nfc(cluster))
        begins += [int(piece.begins[at])] * size
        at += len(cluster)
        ends += [int(piece.ends[at - 1])] * size
    return _Piece(clean, np.array(begins), np.array(ends))


def _clusters(text: str) -> Iterator[str]:
    """The text cut into the shortest stretches that normalize independently of each other."""
    for i, stretch in enumerate(_INERT.split(text)):
        start = 0
        for at in range(1, 0 if i % 2 else len(stretch)):
            if not _joins(stretch, start, at):
                yield stretch[start:at]
                start = at
        if stretch:
            yield stretch[start:]


def _joins(text: str, start: int, at: int) -> bool:
    """Whether normalization may move the character at `at` into text[start:at], or compose it with the end of that."""
    character = text[at]
    if character < "\u0300":
        return False
    if unicodedata.combining(unicodedata.normalize("NFD", character)[0]):
        return True
    if unicodedata.combining(unicodedata.normalize("NFD", text[at - 1])[-1]):
        return False  # marks in between block composition; so few characters are normalized below
    before = text[start:at]
    normalize = unicodedata.normalize
    return normalize("NFC", before + character) != normalize("NFC", before) + normalize("NFC", character)
