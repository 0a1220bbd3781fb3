"""The public Generator: continues a prompt token by token with the decoder and the sampler of the core. It adds whole
characters, stop strings, and the end of a text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from soma_native._checks import instance, integer, string, strings
from soma_native.checkpoint.hf_config import end_token, start_token, token_ids
from soma_native.core import _core
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.generation.completion import Completion
from soma_native.generation.healing import half_word, read_prompt
from soma_native.generation.prefix import kept_length
from soma_native.generation.sampling import DEFAULTS, MoreSettings, Sampling, Settings, is_rounded, kv_cache_of
from soma_native.generation.scoring import Scorer
from soma_native.generation.sequence import STEPS, Sequence
from soma_native.generation.text_writer import TextWriter
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger("soma_native")


class Generator(Scorer):
    """Generates text with a model and its tokenizer, and scores texts that are there already.

    A call keeps nothing for the next one. With `weights="auto"` the generator always reads the model's current weights,
    so it can be used during training, in the same thread.

    **Special tokens** are never generated. The exception is the end token, which ends a text. It is the token that
    training put at the end of documents (`TrainConfig.end_of_document`), or the `eos_token_id` of a loaded model's
    folder (in `generation_config.json`, else `config.json`; there may be several). Without these it is `<|endoftext|>`
    if the vocabulary has it.

    **The prompt** is returned exactly as given. The model reads words that are not in the vocabulary as `<UNK>`, and a
    warning on the logger "soma_native" names each once; without `<UNK>` the tokenizer raises. A prompt without tokens,
    such as "" or, for words, "?!", starts from the folder's `bos_token_id`, else from `<|endoftext|>`, `<BOS>` or
    `<START>` if the vocabulary has one, else from a line break, a space, or the first token of the vocabulary.

    **The context** holds `max_seq_len` tokens. The model reads only the last `max_seq_len` tokens of a longer prompt.
    When the context is full, generation continues with the last `max_seq_len // 2` tokens as a new context.

    Args:
        model: the model.
        tok: the tokenizer of its training.
        end_token: the special token that ends a text. "auto" means as above; None means that no token does.
        weights: "auto" reads the model's float32 weights. "float32", "bfloat16" and "int8" pack a copy of the weights
            now, which later changes of the model do not change; a smaller copy is faster. "float32" gives the text of
            "auto", except that the output head sums in another order. "bfloat16" rounds each weight once (relative
            error up to 2**-8). "int8" keeps 8 bits a weight and one scale an output (error up to 1/254 of the output's
            largest weight). With these two, inputs of prompts of 16 tokens or more are rounded to bfloat16 too; this
            doubles the speed on processors that multiply bfloat16. Sums are always float32, and equal on every machine
            up to rounding.
        kv_cache: "float32", or "bfloat16", which rounds keys and values once: half the memory, and faster for many or
            long texts. "auto" is "bfloat16" where `weights` are rounded, else "float32".

    Raises:
        ValueError: the tokenizer has more tokens than the model, `end_token` is not in the vocabulary, or `weights` or
            `kv_cache` is unknown.
        MemoryError: the memory is too small for the copy.
    """

    def __init__(
        self,
        model: Model,
        tok: Tokenizer,
        *,
        end_token: str | None = "auto",
        weights: str = "auto",
        kv_cache: str = "auto",
    ) -> None:
        self._kv_cache = kv_cache_of(weights, kv_cache)
        instance("model", model, Model)
        instance("tok", tok, Tokenizer)
        if tok.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tok.vocab_size} tokens, the model only {model.config.vocab_size}: they do not "
                "belong together"
            )
        if tok.vocab_size < model.config.vocab_size:
            _log.warning(
                "the tokenizer has %d tokens, the model %d: ids without a token are never generated; is it the one "
                "that the model was trained with?", tok.vocab_size, model.config.vocab_size,
            )  # fmt: skip
        self._model = model
        self._tok = tok
        self._end_token = end_token
        self._end_ids = self._find_ends(end_token)
        special = {tok.token_to_id(token) for token in tok.special_tokens}
        banned = {i for i in special if i is not None} | set(range(tok.vocab_size, model.config.vocab_size))
        banned -= self._end_ids
        if len(banned | self._end_ids) >= model.config.vocab_size:
            raise ValueError("the vocabulary has nothing but special tokens: there is nothing to generate")
        self._banned = np.array(sorted(banned), dtype=np.int32)
        self._start_id = self._find_start()
        self._pieces: dict[int, bytes] = {}
        self._warned = set()
        self._weights_form = weights
        self._weights = None if weights == "auto" else _core.DecodeWeights(model._core, weights)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy with model and tokenizer. Packed weights are packed again from the model's."""
        return _generator_of, (self._model, self._tok, self._end_token, self._weights_form, self._kv_cache)

    def __repr__(self) -> str:
        return f"Generator(model={self._model!r}, tok={self._tok!r}, weights={self._weights_form!r})"

    def _find_ends(self, token: str | None) -> frozenset[int]:
        said = token_ids(self._model, "eos_token_id") if token == "auto" else []
        name = end_token(self._tok) if token == "auto" else token
        if said or name is None:
            return frozenset(said)
        found = self._tok.token_to_id(name)
        if found is None:
            raise ArgumentError("end_token", f"must be a token of the vocabulary, got {name!r}")
        return frozenset([found])

    def _find_start(self) -> int:
        """The token before a text without a prompt. The model reads it; the text does not show it."""
        said = [i for i in token_ids(self._model, "bos_token_id") if i < self._tok.vocab_size]
        if said:
            return said[0]
        name = start_token(self._tok)
        found = None if name is None else self._tok.token_to_id(name)
        if found is not None:
            return found
        banned = set(self._banned.tolist())
        for text in ("\n", " "):
            try:
                ids = self._tok.encode(text)
            except ValueError:  # a character vocabulary without it and without <UNK>
                continue
            if len(ids) == 1 and ids[0] not in banned:
                return ids[0]
        return next(i for i in range(self._tok.vocab_size) if i not in banned)

    def generate(
        self,
        prompt: str,
        max_tokens: int = DEFAULTS.max_tokens,
        temperature: float = DEFAULTS.temperature,
        top_k: int | None = DEFAULTS.top_k,
        top_p: float | None = DEFAULTS.top_p,
        repetition_penalty: float | Literal["auto"] | None = DEFAULTS.repetition_penalty,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        *,
        max_new_tokens: int | None = None,
        **more: Unpack[MoreSettings],
    ) -> str:
        """The prompt and its continuation.

        Args:
            prompt: the text to continue. A word tokenizer puts one space between the prompt and the first new word.
            max_tokens: most tokens to add; 0 returns the prompt.
            temperature: divides the logits before the softmax; 0 always takes the most likely token (greedy).
            top_k: draw from the k most likely tokens; 0 or None draws from all.
            top_p: draw from the smallest set of the most likely tokens whose probability reaches this; 1 or None draws
                from all.
            repetition_penalty: for tokens of the prompt and the text so far, divides positive logits and multiplies
                negative ones (Keskar et al. 2019); 1 or None is off.
                "auto" is 1.15 for a word tokenizer, else 1.
            seed: the same seed gives the same text; None draws a new seed from the system.
            stop: one or several texts. The first to appear in the continuation ends it and is left out.
            max_new_tokens: another name for `max_tokens`.
            min_p: of what top_k and top_p leave, draw from the tokens that have at least this share of the probability
                of the most likely one (Nguyen et al. 2024); 0 or None is off.
            no_repeat_ngram_size: no run of so many tokens comes twice in prompt and text; 0 or None is off.
            presence_penalty: subtracted from the logit of each token that was generated already, as OpenAI defines it:
                -2 to 2. Tokens of the prompt alone are not counted. 0 or None is off.
            frequency_penalty: the same, once for each time the token was generated.
            dry_multiplier: DRY ("don't repeat yourself", p-e-w 2024), for prompt and text. A token that would extend a
                repetition of n tokens loses `dry_multiplier * dry_base ** (n - dry_allowed_length)` of its logit. 0 or
                None is off; 0.8 is usual.
            dry_base: see there; at least 1. Default: 1.75.
            dry_allowed_length: the shortest repetition that counts. Default: 2.
            dry_sequence_breakers: texts that no repetition reaches across. A token with one of them in it is never
                penalised. Default: a line break, a colon, a double quote and an asterisk.
            logit_bias: numbers to add to the logits of ids, such as ``{13: -5.0}``; -infinity rules a token out.
                Special tokens stay out.
            heal_prompt: read a prompt that ends inside a token as its author means: " lo" may go on as " lord", and a
                space may begin the token of the next word. A word that is whole is never changed. Default: True.

        The rules work in the order `logit_bias`, `repetition_penalty`, presence and frequency, DRY,
        `no_repeat_ngram_size`, `temperature`, `top_k`, `top_p`, `min_p`. This is the order of `transformers`, and its
        distribution. Where the rules leave no token, they do not count.

        Raises:
            TypeError: an unknown keyword (such as `max_length`; use `max_tokens`), or an argument of the wrong type.
            ValueError: an argument outside its range, an id of `logit_bias` that is not in the vocabulary, or a prompt
                the tokenizer refuses.

        >>> import soma_native as soma
        >>> tok = soma.Tokenizer.train(["the cat sat on the mat"], kind="word")
        >>> config = soma.ModelConfig(
        ...     vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
        >>> gen = soma.Generator(soma.Model(config, seed=0), tok)
        >>> text = gen.generate("The cat", max_tokens=3, seed=1)
        >>> text.startswith("The cat "), len(text.split())
        (True, 5)
        """
        sampling = Sampling.of(
            max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop,
            repetition_penalty=repetition_penalty, max_new_tokens=max_new_tokens, **more,
        )  # fmt: skip
        return string("prompt", prompt) + "".join(piece for _, piece in self._run([prompt], sampling))

    def generate_batch(
        self,
        prompts: Iterable[str],
        max_tokens: int = DEFAULTS.max_tokens,
        temperature: float = DEFAULTS.temperature,
        top_k: int | None = DEFAULTS.top_k,
        top_p: float | None = DEFAULTS.top_p,
        repetition_penalty: float | Literal["auto"] | None = DEFAULTS.repetition_penalty,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        *,
        max_new_tokens: int | None = None,
        **more: Unpack[MoreSettings],
    ) -> list[str]:
        """Each prompt and its continuation, decoded together. Arguments and errors as `generate`.

        Each text is equal to that of `generate` for this prompt with the same seed. Without a seed each text has its
        own.

        >>> import soma_native as soma
        >>> tok = soma.Tokenizer.train(["the cat sat on the mat"], kind="word")
        >>> config = soma.ModelConfig(
        ...     vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
        >>> gen = soma.Generator(soma.Model(config, seed=0), tok)
        >>> texts = gen.generate_batch(["the", "the cat sat"], max_tokens=4, seed=1)
        >>> texts == [gen.generate("the", max_tokens=4, seed=1), gen.generate("the cat sat", max_tokens=4, seed=1)]
        True
        """
        sampling = Sampling.of(
            max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop,
            repetition_penalty=repetition_penalty, max_new_tokens=max_new_tokens, **more,
        )  # fmt: skip
        texts = strings("prompts", prompts, "generate")
        pieces: list[list[str]] = [[text] for text in texts]
        for row, piece in self._run(texts, sampling):
            pieces[row].append(piece)
        return ["".join(row_pieces) for row_pieces in pieces]

    def stream(
        self,
        prompt: str,
        max_tokens: int = DEFAULTS.max_tokens,
        temperature: float = DEFAULTS.temperature,
        top_k: int | None = DEFAULTS.top_k,
        top_p: float | None = DEFAULTS.top_p,
        repetition_penalty: float | Literal["auto"] | None = DEFAULTS.repetition_penalty,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        *,
        max_new_tokens: int | None = None,
        **more: Unpack[MoreSettings],
    ) -> Iterator[str]:
        """The continuation piece by piece. Arguments and errors as `generate`.

        The pieces together are the text that `generate` returns after the prompt. A piece never holds a part of a
        character. Text that may be the beginning of a stop string is held back until it is certain. You may leave the
        loop at any time. Arguments are checked by the call itself, not at the first piece.

        >>> import soma_native as soma
        >>> tok = soma.Tokenizer.train(["the cat sat on the mat"], kind="char")
        >>> config = soma.ModelConfig(
        ...     vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
        >>> gen = soma.Generator(soma.Model(config, seed=0), tok)
        >>> pieces = list(gen.stream("the ", max_tokens=5, seed=1))
        >>> len(pieces), "the " + "".join(pieces) == gen.generate("the ", max_tokens=5, seed=1)
        (5, True)
        """
        sampling = Sampling.of(
            max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop,
            repetition_penalty=repetition_penalty, max_new_tokens=max_new_tokens, **more,
        )  # fmt: skip
        run = self._run([string("prompt", prompt)], sampling, steps=1)
        return (piece for _, piece in run)

    def complete(self, prompt: str, n: int = 1, logprobs: int = 0, **settings: Unpack[Settings]) -> list[Completion]:
        """Continuations of a prompt with their tokens and probabilities. They are decoded together.

        The first is the text that `generate` adds to the prompt. The prompt is read once for all of them.

        Args:
            prompt: the text to continue.
            n: how many continuations.
            logprobs: how many of the likeliest tokens to give for each place (`Completion.top`).
            **settings: the keywords of `generate`. Continuation i has the seed `(seed + i) % 2**64`.

        Raises:
            TypeError, ValueError: as `generate`; `n` is below 1; `logprobs` is not from 0 to the vocabulary's size.

        >>> import soma_native as soma
        >>> tok = soma.Tokenizer.train(["the cat sat on the mat"], kind="word")
        >>> config = soma.ModelConfig(
        ...     vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
        >>> gen = soma.Generator(soma.Model(config, seed=0), tok)
        >>> first, second = gen.complete("the cat", n=2, logprobs=3, max_tokens=4, seed=1)
        >>> "the cat" + first.text == gen.generate("the cat", max_tokens=4, seed=1), first.finish_reason
        (True, 'length')
        >>> "the cat" + second.text == gen.generate("the cat", max_tokens=4, seed=2), len(second.top[0])
        (True, 3)
        """
        n = integer("n", n, 1, 1 << 16)
        logprobs = integer("logprobs", logprobs, 0, self._model.config.vocab_size)
        sampling = Sampling.of(**settings)
        first = self._sequence(prompt, sampling)
        sequences, texts = [first] * (n if sampling.max_tokens == 0 else 1), [""] * n
        if sampling.max_tokens > 0:
            decoder, seed = self._decoder(n), sampling.fresh_seed()
            self._read(decoder, 0, first)
            sequences += [first.again(self._writer(prompt, sampling, first.rest)) for _ in range(1, n)]
            for row in range(1, n):
                decoder.copy_row(0, row, len(first.context))
            samplers = {i: self._sampler(sampling, s, (seed + i) % (1 << 64)) for i, s in enumerate(sequences)}
            for row, piece in self._draw(decoder, sequences, samplers, top=logprobs):
                texts[row] += piece
        return [
            Completion(
                text, s.tokens, s.finish_reason or "length", [p for p, _ in s.scores], [top for _, top in s.scores]
            )
            for text, s in zip(texts, sequences, strict=True)
        ]

    def _run(self, prompts: list[str], sampling: Sampling, steps: int = STEPS) -> Iterator[tuple[int, str]]:
        """Encode the prompts now, and return an iterator of (row, piece)."""
        sequences = [self._sequence(prompt, sampling) for prompt in prompts]
        return self._decode(sequences, sampling, steps)

    def _sequence(self, prompt: str, sampling: Sampling, ids: list[int] | None = None) -> Sequence:
        sampling.check_ids(self._model.config.vocab_size)
        prompt = string("prompt", prompt)
        heals = sampling.heal_prompt and ids is None
        head, rest = half_word(self._tok, prompt) if heals else (prompt, b"")
        window, healing, most = self._model.config.max_seq_len, None, self._tok.vocab_size - 1
        if ids is None:
            ids = self._encode(head)
        elif isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise ArgumentTypeError("ids", f"must be a list of tokens, got {ids!r:.80}")
        else:
            ids = [integer(f"ids[{n}]", i, 0, most) for n, i in enumerate(ids)] or [self._start_id]
        if heals and self._tok.kind == "bpe" and prompt:
            healing = read_prompt(self._tok, prompt, ids, self._start_id, window)
        return Sequence(
            ids,
            self._writer(prompt, sampling, rest),
            self._piece,
            window=window,
            most=sampling.max_tokens,
            ends=self._end_ids,
            healing=healing,
            rest=rest,
        )

    def _decoder(self, rows: int) -> _core.Decoder:
        return _core.Decoder(self._model._core, rows, self._weights, self._kv_cache)

    def _read(self, decoder: _core.Decoder, row: int, sequence: Sequence) -> None:
        """Let an empty row of the decoder read a prompt, its end as the author means it."""
        held: list[int] = []
        while True:
            context = sequence.context
            keep = kept_length(held, context, is_rounded(self._weights_form))
            decoder.extend(np.array([row], np.int32), np.array([keep], np.int32), [np.array(context[keep:], np.int32)])
            if sequence.read(decoder.logits()[row]):
                return
            held = list(context)

    def _decode(self, sequences: list[Sequence], sampling: Sampling, steps: int) -> Iterator[tuple[int, str]]:
        rows = [row for row, sequence in enumerate(sequences) if sequence.finish_reason is None]
        if not rows:
            return
        decoder, samplers = self._decoder(len(sequences)), {}
        for row in rows:
            self._read(decoder, row, sequences[row])
            samplers[row] = self._sampler(sampling, sequences[row], sampling.fresh_seed())
        yield from self._draw(decoder, sequences, samplers, steps)

    def _draw(
        self,
        decoder: _core.Decoder,
        sequences: list[Sequence],
        samplers: dict[int, _core.Sampler],
        steps: int = STEPS,
        top: int = -1,
    ) -> Iterator[tuple[int, str]]:
        """Let the rows of `samplers` grow to their ends: (row, text), at most `steps` tokens of a row at a time."""
        rows, ends = list(samplers), sorted(self._end_ids)
        while rows:
            drawn, left = [samplers[row] for row in rows], [sequences[row].left for row in rows]
            lengths = [decoder.length(row) for row in rows]
            grown = decoder.grow(rows, drawn, left, [top] * len(rows), ends, steps)
            for row, length, (tokens, scores, error) in zip(rows, lengths, grown, strict=True):
                if piece := sequences[row].take(tokens, scores):
                    yield row, piece
                if sequences[row].finish_reason is not None:
                    continue
                if error:
                    raise ValueError(error)
                if decoder.length(row) - length < len(tokens):  # the context was full
                    decoder.prefill(row, np.array(sequences[row].context, dtype=np.int32))
            rows = [row for row in rows if sequences[row].finish_reason is None]

    def _sampler(self, sampling: Sampling, sequence: Sequence, seed: int) -> _core.Sampler:
        sampler = sampling.sampler(self._tok, self._model.config.vocab_size, self._banned, seed)
        sampler.observe(np.array(sequence.prompt_ids, dtype=np.int32))
        if sequence.rest:
            sampler.restrict_next(self._tok._token_table().extending(sequence.rest))
        return sampler

    def _encode(self, prompt: str) -> list[int]:
        ids = self._tok.encode(prompt)
        self._warn_unknown(prompt, ids)
        if ids:
            return ids
        if prompt:
            _log.warning("the prompt %r has no token of the vocabulary", prompt)
        return [self._start_id]

    def _writer(self, prompt: str, sampling: Sampling, rest: bytes) -> TextWriter:
        space = bool(prompt) and not prompt[-1].isspace() and not rest  # before the first word
        return TextWriter(space if self._tok.kind == "word" else None, sampling.stop)

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._tok.decode_bytes([token])
        return piece


def _generator_of(
    model: Model, tok: Tokenizer, end_token: str | None, weights: str, kv_cache: str = "float32"
) -> Generator:
    return Generator(model, tok, end_token=end_token, weights=weights, kv_cache=kv_cache)


_generator_of.__module__ = "soma_native"  # the name in pickles, which stays if this module moves
