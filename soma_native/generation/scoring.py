"""How likely texts are to a model, token by token, and what the model makes of a text as one vector."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soma_native._checks import integer, string, strings
from soma_native.data.windows import IGNORE_INDEX, gather
from soma_native.errors import ArgumentError
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger("soma_native")

# Parameters of a small model, which computes fastest with each thread's sequences in its caches; tokens of a forward
# pass of such a model and of others.
_SMALL, _FEW, _MANY = 1 << 21, 1 << 10, 1 << 12
_MOST_WARNED = 10_000  # words
_MOST_SHOWN = 80  # characters of a word


@dataclass(frozen=True, repr=False)
class Scores:
    """How likely a text is to a model. Lists have an entry for each token of the text.

    Nothing predicts the first token, so its log-probability and rank are None.

    Attributes:
        text: the text.
        tokens: the ids of its tokens.
        offsets: the place of each token: it stands for ``text[begin:end]``. Tokens that are bytes of the same
            character have the place of this character.
        logprobs: the natural logarithm of the probability of each token after those before it.
        ranks: 1 for the likeliest token of the vocabulary, 2 for the next. Of equal ones the smaller id comes first.
        top: the likeliest tokens at each place as (id, log-probability), the likeliest first; empty for the first
            token, and where none were asked for.
        bytes: the UTF-8 bytes of all tokens but the first. None where bytes do not compare: the tokenizer is of kind
            "word", which loses case and punctuation, or a token is <UNK>.
    """

    text: str
    tokens: list[int]
    offsets: list[tuple[int, int]]
    logprobs: list[float | None]
    ranks: list[int | None]
    top: list[list[tuple[int, float]]]
    bytes: int | None

    def __repr__(self) -> str:
        return f"Scores({len(self.tokens):,} tokens, total={self.total:.4f}, perplexity={self.perplexity:.4g})"

    @property
    def total(self) -> float:
        """The log-probability of the text after its first token, in nats: the sum of `logprobs`."""
        return math.fsum(logprob for logprob in self.logprobs if logprob is not None)

    @property
    def loss(self) -> float:
        """The mean negative log-probability of a token, in nats."""
        return -self.total / (len(self.tokens) - 1)

    @property
    def perplexity(self) -> float:
        """The exponential of `loss`, which it is of e^700 at most."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """The negative log-probability in bits, for each of `bytes`; None where bytes do not compare."""
        return None if not self.bytes else -self.total / math.log(2) / self.bytes


@dataclass(frozen=True)
class _Windows:
    """Windows over `counts` places of each of several sequences, which stand one behind the other in an array.

    The next window of a sequence begins `stride` later. The last `fresh` places of a window are in none before it.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    fresh: NDArray[np.int64]

    @classmethod
    def over(cls, counts: Sequence[int], begins: Sequence[int], longest: int, stride: int) -> _Windows:
        parts = []
        for count, begin in zip(counts, begins, strict=True):
            starts = np.arange(1 - -max(0, count - longest) // stride, dtype=np.int64) * stride
            ends = np.minimum(starts + longest, count)
            parts.append((starts + begin, ends - starts, np.diff(ends, prepend=0)))
        return cls(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def batches(self, model: Model) -> Iterator[NDArray[np.int64]]:
        """The numbers of the windows of each forward pass, windows of similar length together."""
        order, at = np.argsort(-self.lengths, kind="stable"), 0
        tokens = _FEW if model.num_parameters <= _SMALL else _MANY
        while at < len(order):
            batch = order[at : at + max(1, tokens // int(self.lengths[order[at]]))]
            yield batch
            at += len(batch)

    def is_fresh(self, batch: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
        """Which places of a batch, (B, width), are in no window before."""
        columns, lengths = np.arange(width), self.lengths[batch][:, None]
        inside: NDArray[np.bool_] = (columns < lengths) & (columns >= lengths - self.fresh[batch][:, None])
        return inside


def unknown_said(words: Sequence[str]) -> str:
    """What is said of words that are not in the vocabulary; the first ten are named."""
    named = [word if word.isprintable() and not word.isspace() else repr(word) for word in words[:10]]
    more = f" and {len(words) - 10} more" if len(words) > 10 else ""
    return f"not in the vocabulary, read as <UNK>: {', '.join(named)}{more}"


class Scorer:
    """What a generator does with texts that are there already: `score` and `embed`."""

    _model: Model
    _tok: Tokenizer
    _warned: set[str]  # words that were logged

    def score(self, text: str, top: int = 0, stride: int | None = None) -> Scores:
        """How likely a text is, token by token.

        The model reads windows of `max_seq_len` tokens, and the next window begins `stride` tokens later. So each token
        but the first of the text is predicted from at least ``max_seq_len - stride`` tokens, or from all before it.
        That is the strided perplexity of `transformers` (its guide "Perplexity of fixed-length models"). Products have
        the precision of `Model.forward`, whatever `weights` the generator has. Logits exist for some tokens at a time.

        Args:
            text: a text of at least two tokens.
            top: how many of the likeliest tokens to name at each place, at most the size of the vocabulary.
            stride: from 1 to `max_seq_len`; None is half of it. A smaller one gives more context and takes longer.
                ``max_seq_len`` gives windows that share no pair, as `soma-native evaluate` has them.

        Raises:
            TypeError: the text is no `str`, or a number is no integer.
            ValueError: the text has fewer than two tokens or a token that is not in a vocabulary without <UNK>, an
                argument is out of range, or the model's weights give logits that are not finite.
            KeyboardInterrupt: Ctrl-C.

        >>> import soma_native as soma
        >>> tok = soma.Tokenizer.train(["the cat sat"], kind="char")
        >>> config = soma.ModelConfig(
        ...     vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
        >>> scores = soma.Generator(soma.Model(config, seed=0), tok).score("the cat", top=2)
        >>> len(scores.logprobs), scores.logprobs[0], len(scores.top[1])
        (7, None, 2)
        """
        return self._scores(["text"], [string("text", text)], top, stride)[0]

    def score_batch(self, texts: Iterable[str], top: int = 0, stride: int | None = None) -> list[Scores]:
        """The scores of several texts, which share forward passes. Arguments and errors as `score`."""
        found = strings("texts", texts, "score")
        return self._scores([f"texts[{i}]" for i in range(len(found))], found, top, stride)

    def embed(self, text: str, stride: int | None = None) -> NDArray[np.float32]:
        """A vector for a text: the mean of `Model.hidden` over its tokens.

        A long text is read in windows, as in `score`; each token counts once, with the longest context it has.

        Returns:
            float32, shape (C,). Its length is not normalised.

        Raises:
            TypeError, ValueError, KeyboardInterrupt: as `score`; the text needs one token.
        """
        vector: NDArray[np.float32] = self._vectors(self._encode_some(["text"], [string("text", text)]), stride)[0]
        return vector

    def embed_batch(self, texts: Iterable[str], stride: int | None = None) -> NDArray[np.float32]:
        """The vectors of several texts, which share forward passes: float32, shape (texts, C). Errors as `embed`."""
        found = strings("texts", texts, "embed")
        return self._vectors(self._encode_some([f"texts[{i}]" for i in range(len(found))], found), stride)

    def _encode_some(self, names: list[str], texts: list[str]) -> list[NDArray[np.uint32]]:
        encoded = [self._tok.encode_array(text) for text in texts]
        for name, text, ids in zip(names, texts, encoded, strict=True):
            if len(ids) == 0:
                raise ArgumentError(name, f"has no token of the vocabulary: {text!r:.80}")
        return encoded

    def _vectors(self, encoded: list[NDArray[np.uint32]], stride: int | None = None) -> NDArray[np.float32]:
        stride, width = self._stride(stride), self._model.config.d_model
        if not encoded:
            return np.zeros((0, width), np.float32)
        counts = np.array([len(ids) for ids in encoded])
        begins, tokens = np.cumsum(counts) - counts, np.concatenate(encoded)
        windows = _Windows.over(counts.tolist(), begins.tolist(), self._model.config.max_seq_len, stride)
        of_text = np.searchsorted(begins, windows.starts, side="right") - 1
        totals = np.zeros((len(encoded), width))
        for batch in windows.batches(self._model):
            rows, _ = gather(tokens, windows.starts[batch], windows.lengths[batch])
            hidden, fresh = self._model.hidden(rows), windows.is_fresh(batch, rows.shape[1])
            for row, text_at in enumerate(of_text[batch]):
                totals[text_at] += hidden[row, fresh[row]].sum(axis=0, dtype=np.float64)
        vectors: NDArray[np.float32] = (totals / counts[:, None]).astype(np.float32)
        return vectors

    def _scores(self, names: list[str], texts: list[str], top: int, stride: int | None) -> list[Scores]:
        top = integer("top", top, 0, self._model.config.vocab_size)
        stride = self._stride(stride)
        encoded = [self._encode_for_scores(name, text) for name, text in zip(names, texts, strict=True)]
        if not encoded:
            return []
        tokens = np.concatenate([np.array(ids, np.int32) for ids, _ in encoded])
        ends = np.cumsum([len(ids) for ids, _ in encoded])
        begins = [0, *ends[:-1].tolist()]
        logprobs, ranks = np.zeros(len(tokens)), np.zeros(len(tokens), np.int64)
        best_ids, best = np.zeros((len(tokens), top), np.int64), np.zeros((len(tokens), top))
        pairs = [len(ids) - 1 for ids, _ in encoded]
        windows = _Windows.over(pairs, begins, self._model.config.max_seq_len, stride)
        for batch in windows.batches(self._model):
            ids, targets = gather(tokens, windows.starts[batch], windows.lengths[batch])
            fresh = windows.is_fresh(batch, ids.shape[1])
            targets[~fresh] = IGNORE_INDEX
            at = (windows.starts[batch][:, None] + np.arange(1, ids.shape[1] + 1))[fresh]  # of the targets
            logprobs[at], ranks[at], best_ids[at], best[at] = self._model._core.score(ids, targets, top)
        found = []
        for text, (ids_of_text, offsets), begin in zip(texts, encoded, begins, strict=True):
            after = slice(begin + 1, begin + len(ids_of_text))
            of_each = zip(best_ids[after].tolist(), best[after].tolist(), strict=True)
            found.append(
                Scores(
                    text=text,
                    tokens=ids_of_text,
                    offsets=offsets,
                    logprobs=[None, *logprobs[after].tolist()],
                    ranks=[None, *ranks[after].tolist()],
                    top=[[], *(list(zip(*each, strict=True)) for each in of_each)],
                    bytes=self._bytes(ids_of_text),
                )
            )
        return found

    def _stride(self, stride: int | None) -> int:
        longest = self._model.config.max_seq_len
        return max(1, longest // 2) if stride is None else integer("stride", stride, 1, longest)

    def _encode_for_scores(self, name: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = self._tok.encode_with_offsets(text)
        if len(ids) < 2:
            has = "only one token" if ids else "no token of the vocabulary"
            raise ArgumentError(name, f"has {has}: a score needs two or more, got {text!r:.80}")
        self._warn_unknown(text, ids)
        return ids, offsets

    def _warn_unknown(self, text: str, ids: list[int]) -> None:
        """Log the words, or characters, of a text that are not in the vocabulary, each once."""
        if self._unknown_id() not in ids:
            return
        found = [word for word in self._unknown_words(text) if word not in self._warned]
        if len(self._warned) > _MOST_WARNED:
            self._warned.clear()
        self._warned.update(found)
        if found:
            _log.warning(unknown_said(found))

    def _unknown_words(self, text: str, special: Collection[str] = ()) -> list[str]:
        """The words, or characters, of a text that are not in the vocabulary."""
        unknown, pairs = self._unknown_id(), zip(*self._tok.encode_with_offsets(text, special), strict=True)
        return [
            *dict.fromkeys(text[begin : min(end, begin + _MOST_SHOWN)] for i, (begin, end) in pairs if i == unknown)
        ]

    def _unknown_id(self) -> int | None:
        return self._tok.token_to_id("<UNK>") if "<UNK>" in self._tok.special_tokens else None

    def _bytes(self, ids: list[int]) -> int | None:
        if self._tok.kind == "word" or self._unknown_id() in ids:
            return None
        return len(self._tok.decode_bytes(ids[1:]))
