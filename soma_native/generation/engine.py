"""The public Engine: texts of many callers grow at once, on a thread of its own. A Handle is a text under way."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from soma_native._checks import instance, integer, number
from soma_native.core import _core
from soma_native.generation.completion import Completion
from soma_native.generation.engine_thread import EngineThread
from soma_native.generation.generator import Generator
from soma_native.generation.prefix import LEAST_PIECE
from soma_native.generation.sampling import Sampling, Settings, is_rounded, kv_cache_of
from soma_native.generation.scheduler import Job, Scheduler
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Engine:
    """Generates many texts at once. Texts join and leave while others are written.

    Each text is the text that `Generator` gives for the same prompt, settings and seed, bit for bit, whatever is
    written beside it. Many at once are written faster than one by one, because each weight is read once for all.

    Prompts wait in a queue, first come, first served. They are read in pieces, so a long prompt does not hold up the
    texts that grow. A prompt that begins like an earlier one, as the next turn of a chat does, takes over the keys and
    values of that one.

    A thread works while there is work. It ends with `close`, with the program, or when engine and handles are
    forgotten. The engine may be used from any thread; a process made by fork needs an engine of its own.

    Args:
        model: the model. With `weights="auto"` its weights should not change while texts are written. They may
            between texts, so that what was read is taken over for 50 ms after the last text alone.
        tok: the tokenizer of its training.
        max_sequences: most texts at once, 1 to 65536. The memory for their keys and values is taken now:
            `Engine.memory_of`, with the same weights and kv_cache, says how much.
        end_token: the special token that ends a text, as for `Generator`.
        weights: "auto", "float32", "bfloat16" or "int8", as for `Generator`.
        kv_cache: "auto", "float32" or "bfloat16", as for `Generator`. It decides the memory of keys and values.
        max_queue: most texts that wait for one of `max_sequences` places.
        prefill_piece: most tokens of prompts that are read before the other texts go on, at least 16.

    Raises:
        ValueError: as `Generator`, or a number is out of range.
        MemoryError: the memory is too small for the weights or the sequences.

    >>> import soma_native as soma
    >>> tok = soma.Tokenizer.train(["the cat sat on the mat"], kind="word")
    >>> config = soma.ModelConfig(
    ...     vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
    >>> model = soma.Model(config, seed=0)
    >>> with soma.Engine(model, tok) as engine:
    ...     handles = [engine.submit("the cat", max_tokens=3, seed=seed) for seed in range(5)]
    ...     texts = ["the cat" + handle.result().text for handle in handles]
    >>> texts == [soma.Generator(model, tok).generate("the cat", max_tokens=3, seed=seed) for seed in range(5)]
    True
    """

    def __init__(
        self,
        model: Model,
        tok: Tokenizer,
        max_sequences: int = 16,
        *,
        end_token: str | None = "auto",
        weights: str = "auto",
        kv_cache: str = "auto",
        max_queue: int = 1024,
        prefill_piece: int = 256,
    ) -> None:
        rows = integer("max_sequences", max_sequences, 1, 1 << 16)
        waiting = integer("max_queue", max_queue, 0)
        piece = integer("prefill_piece", prefill_piece, LEAST_PIECE)
        self._generator = Generator(model, tok, end_token=end_token, weights=weights, kv_cache=kv_cache)
        self.memory_bytes = self.memory_of(model, rows, weights=weights, kv_cache=kv_cache)
        try:
            scheduler = Scheduler(
                self._generator._decoder(rows),
                rows,
                piece=piece,
                rounds=is_rounded(weights),
                live=weights == "auto",
                ends=sorted(self._generator._end_ids),
            )
        except MemoryError:
            raise MemoryError(
                f"{rows} sequences need {self.memory_bytes / 2**20:,.0f} MB for keys, values and logits: take "
                "fewer" + (", or keys and values in bfloat16" if self._generator._kv_cache == "float32" else "")
            ) from None
        self.max_sequences, self.max_queue = rows, waiting
        self._thread = EngineThread(scheduler, rows, waiting)
        weakref.finalize(self, self._thread.stop)

    @staticmethod
    def memory_of(model: Model, max_sequences: int = 16, *, weights: str = "auto", kv_cache: str = "auto") -> int:
        """The bytes that an engine takes for keys, values and logits of its sequences, beside the weights."""
        instance("model", model, Model)
        rows, kept = integer("max_sequences", max_sequences, 1, 1 << 16), kv_cache_of(weights, kv_cache)
        return rows * _core.Decoder.bytes_per_row(model._core, kept)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.running} running, {self.waiting} waiting"
        return f"Engine({state}, max_sequences={self.max_sequences})"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(
        self, prompt: str, *, ids: list[int] | None = None, logprobs: int | None = None, **settings: Unpack[Settings]
    ) -> Handle:
        """Ask for the continuation of a prompt, and return at once.

        Args:
            prompt: the text to continue.
            ids: the tokens that the model reads in its place, such as special tokens of a chat; None for those of the
                text.
            logprobs: how many of the likeliest tokens to give for each place, as for `Generator.complete`; None gives
                no log-probabilities, which is faster.
            **settings: the keywords of `Generator.generate`.

        Raises:
            TypeError, ValueError: as `Generator.generate`.
            EngineFullError: `max_queue` texts wait already. A server answers 429 or 503.
            EngineClosedError: the engine is closed.
            RuntimeError: the engine was made in another process, or the system refuses to start a thread.
        """
        vocab_size = self._generator._model.config.vocab_size
        top = -1 if logprobs is None else integer("logprobs", logprobs, 0, vocab_size)
        sampling = Sampling.of(**settings)
        generator, seed = self._generator, sampling.fresh_seed()
        sequence = generator._sequence(prompt, sampling, ids)
        job = Job(sequence, lambda: generator._sampler(sampling, sequence, seed), top)
        self._thread.submit(job)
        return Handle(self, job)

    def close(self) -> None:
        """End all texts and the thread. Texts that are not complete get an EngineClosedError. May be called again."""
        self._thread.close()

    @property
    def closed(self) -> bool:
        """Whether the engine takes no more texts."""
        return self._thread.closed

    @property
    def running(self) -> int:
        """The texts that have a place."""
        return min(self._thread.unfinished, self.max_sequences)

    @property
    def waiting(self) -> int:
        """The texts that wait for a place."""
        return self._thread.unfinished - self.running


class Handle:
    """A text that an `Engine` writes. Iterating gives its pieces as they come, and `result` the whole.

    `async for piece in handle` does the same in asyncio. A handle that is forgotten cancels its text. All attributes
    may be read at any time, from any thread.
    """

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine = engine  # it lives as long as one of its texts is wanted
        self._job = job

    def __del__(self) -> None:
        if "_job" in self.__dict__:
            self._job.cancelled = True

    def __repr__(self) -> str:
        state = self.finish_reason or ("failed" if self.done else "running")
        return f"Handle({state}, {len(self.tokens)} tokens)"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next piece of the text. After the last one, raises what `result` raises."""
        self._engine._thread.check_process()
        piece = self._job.pieces.get()
        return piece if piece is not None else self._end()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._stream()

    async def _stream(self) -> AsyncIterator[str]:
        import asyncio  # half of the time that the package's import would take

        self._engine._thread.check_process()
        arrived, loop = asyncio.Event(), asyncio.get_running_loop()
        self._job.listener = lambda: loop.call_soon_threadsafe(arrived.set)
        while True:
            arrived.clear()
            try:
                piece = self._job.pieces.get_nowait()
            except queue.Empty:
                await arrived.wait()
                continue
            if piece is None:
                break
            yield piece
        with contextlib.suppress(StopIteration):
            self._end()

    def _end(self) -> str:
        self._job.pieces.put(None)  # the end stays the end
        self.result()
        raise StopIteration

    def result(self, timeout: float | None = None) -> Completion:
        """The whole continuation, once it is complete or cancelled.

        Args:
            timeout: the most seconds to wait; None waits as long as it takes.

        Raises:
            TimeoutError: it takes longer. The text goes on.
            EngineClosedError: the engine was closed before the text was complete; `text` has what there is.
            ValueError: the model's logits are not finite, or `timeout` is not finite.
            RuntimeError: the engine failed; the message says at what.
        """
        self._engine._thread.check_process()
        wait = None if timeout is None else min(number("timeout", timeout), threading.TIMEOUT_MAX)
        if not self._job.ended.wait(wait):
            raise TimeoutError(f"the text is not complete after {timeout} seconds")
        if self._job.error is not None:
            raise self._job.error
        reason = self._job.finish_reason
        assert reason is not None
        return Completion(self.text, self.tokens, reason, self.logprobs, self.top)

    def cancel(self) -> None:
        """End the text where it is. Its result is what was written by then, with the `finish_reason` "cancelled"."""
        self._job.cancelled = True

    @property
    def done(self) -> bool:
        """Whether nothing more will be written."""
        return self._job.ended.is_set()

    @property
    def text(self) -> str:
        """The continuation so far."""
        return "".join(self._job.text)

    @property
    def tokens(self) -> list[int]:
        """The ids of the continuation so far."""
        return list(self._job.sequence.tokens)

    @property
    def logprobs(self) -> list[float]:
        """The log-probability of each token so far, as in `Completion`; empty without `logprobs` of `submit`."""
        return [score for score, _ in self._job.sequence.scores]

    @property
    def top(self) -> list[list[tuple[int, float]]]:
        """The likeliest tokens in the place of each one so far, as in `Completion`."""
        return [top for _, top in self._job.sequence.scores]

    @property
    def finish_reason(self) -> str | None:
        """How a complete text ended, as in `Completion`; else None."""
        return self._job.finish_reason

    @property
    def prompt_tokens(self) -> int:
        """The tokens of the prompt, all of them, also where only the last fit into the context."""
        return len(self._job.sequence.prompt_ids)

    @property
    def reused_tokens(self) -> int:
        """The tokens of the prompt that were taken over from an earlier one."""
        return self._job.reused

    @property
    def first_seconds(self) -> float | None:
        """The seconds from `submit` to the first token, waiting included; None before that."""
        return None if self._job.first is None else self._job.first - self._job.submitted

    @property
    def seconds(self) -> float | None:
        """The seconds from `submit` to the end; None before that."""
        return None if self._job.end is None else self._job.end - self._job.submitted
