"""The plan of a training run: tokenizer, size of the model, settings, and the reasons, from the corpus and the time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from soma_native._checks import number
from soma_native.data.documents import Texts
from soma_native.model.config import ModelConfig
from soma_native.model.device import checked_device
from soma_native.model.model import resolve_precision
from soma_native.planning.candidates import (
    LAW_ERROR,
    MOST_MINUTES,
    Candidate,
    Outlook,
    best,
    bits_per_byte,
    candidate,
    fitting,
    judge,
    memory_of,
    worth,
)  # fmt: skip
from soma_native.planning.corpus import Corpus, survey
from soma_native.planning.lessons import DISTILL, Lessons, taught, worth_lessons
from soma_native.planning.speed import Speed, measure_speed
from soma_native.planning.tokens import characters_per_token
from soma_native.training.config import TrainConfig
from soma_native.training.memory import COMFORTABLE, free_memory, size_text
from soma_native.training.recipes import VAL_FRACTION, regularisation

PLANNED = ("1m", "5m", "10m", "30m", "124m")  # presets that a plan chooses from

_CHARACTERS_UP_TO = 3_000_000  # bytes of a corpus that characters suit
_LARGEST_ALPHABET = 512  # different characters that characters suit
_VOCABULARIES = ((10_000_000, 1024), (50_000_000, 4096), (math.inf, 8192))  # of bpe: most bytes of a corpus, size
_LEAST_PIECE = 1.5  # characters of a token from which bpe pays; Chinese has some 1.1, many of them cut into bytes
_LEAST_BPE = 258  # ids of a bpe vocabulary that merges anything
_TOLD_FROM = 20_000  # bytes of a corpus from which a figure is expected
_POOR = 0.1  # of the richness of English, below which a corpus repeats itself
_WHY_TAUGHT = ", since the time allows more epochs than one model can use"
_TIED_FROM = 1024  # vocabulary from which embedding and head are one


@dataclass(frozen=True)
class Plan:
    """What `train` would do, and why.

    Attributes:
        tokenizer: kind of the tokenizer.
        vocab_size: its largest vocabulary; None means that the text decides.
        preset: the model's preset, or "the given model".
        model: the configuration of the model, with the expected vocabulary.
        training: the settings of the run.
        teachers: number of models that are trained first to teach this one; 0 for none.
        minutes: of the whole run; None where epochs or steps were given.
        tokens_per_second: expected; None where no speed was measured.
        steps, epochs: expected, of the model itself.
        flops: floating-point operations of all steps, those of teachers too.
        bits_per_byte: expected on the validation: a law that was fitted to one text, by what bz2 leaves of this one.
            None where the run has no such figure (words), the model has learned before, or the corpus is below 20 kB.
        memory: bytes that model and training take, as `training_memory` predicts.
        reasons: a sentence for each choice.
    """

    tokenizer: str
    vocab_size: int | None
    preset: str
    model: ModelConfig
    training: TrainConfig
    teachers: int
    minutes: float | None
    tokens_per_second: float | None
    steps: int
    epochs: float
    flops: float
    bits_per_byte: float | None
    memory: int
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {
            **{name: getattr(self, name) for name in (
                "tokenizer", "vocab_size", "preset", "teachers", "minutes", "tokens_per_second", "steps", "epochs",
                "flops", "bits_per_byte", "memory",
            )},
            "model": self.model.to_dict(),
            "training": self.training.to_dict(),
            "reasons": list(self.reasons),
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def plan(texts: Texts, minutes: float | None = MOST_MINUTES, *, device: str = "cpu") -> Plan:
    """Plan a training run, and train nothing. Takes some seconds: the speed of the device is measured.

    Args:
        texts: the documents, as for `Trainer.fit`.
        minutes: of the run; None means what the corpus is worth, at most 10, as in `train`.
        device: where the run computes, whose memory counts, as for `Model`.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `survey`, for minutes that are not above 0, for a device that
            cannot be used, and for too little memory.
    """
    if minutes is not None:
        number("minutes", minutes, above=0)
    checked_device(device)
    return choose(survey(texts), measure_speed(device=device), minutes, free=free_memory(device=device), device=device)


def choose(
    corpus: Corpus,
    speed: Speed | None,
    minutes: float | None = None,
    fixed: Mapping[str, Any] | None = None,
    free: int | None = None,
    device: str = "cpu",
) -> Plan:
    """The plan for a corpus, on a machine of this speed.

    Args:
        corpus: of training and validation together.
        speed: of this machine, with the optimizer of the run; None where `fixed` has epochs or steps.
        minutes: of the run; None means what the corpus is worth, at most 10.
        fixed: what is decided already: "model" (a `ModelConfig`) or "preset", "tokenizer", "vocab_size", "seq_len",
            "precision", "characters" (of a token), and settings of `TrainConfig`.
        free: bytes of memory that are free; None is unknown. A preset that needs more than 80% of it is left out, a
            model or preset that `fixed` asks for where it needs more than all.
        device: where the run computes, whose memory that is.

    Raises:
        ValueError: no model fits into the free memory, or no document has two tokens.
    """
    settings = dict(fixed or {})
    kind, vocab_size = settings.pop("tokenizer", None), settings.pop("vocab_size", None)
    why, measured = "as asked", None
    if kind is None and vocab_size is None:
        kind, why, measured = tokenizer_for(corpus)
    elif kind is None:
        kind = "bpe" if vocab_size >= _LEAST_BPE else tokenizer_for(corpus)[0]
    vocab_size = vocab_size or vocabulary_for(corpus, kind)
    given = settings.pop("characters", None)
    characters = given or measured or characters_per_token(corpus, kind, vocab_size)
    seq_len, preset, model = (settings.pop(name, None) for name in ("seq_len", "preset", "model"))
    precision = settings.pop("precision", "auto")
    precision = resolve_precision(precision, device)[0] if speed is None else speed.precision
    if model is None:
        options = _options(corpus, kind, vocab_size, PLANNED if preset is None else (preset,), seq_len)
    else:
        options = {"the given model": model}
    candidates = {
        name: candidate(corpus, characters, kind != "byte", config, precision, settings, seq_len, device)
        for name, config in options.items()
    }
    fits = fitting(candidates, free, 1.0 if preset or model else COMFORTABLE)

    def judged(minutes: float | None) -> tuple[dict[str, Outlook], str]:
        found = {name: judge(candidates[name], batches, speed, minutes, settings) for name, batches in fits.items()}
        return found, best(candidates, found, by_time=speed is not None)

    worthy = minutes is None and settings.get("epochs") is None and settings.get("steps") is None
    if worthy:
        assert speed is not None
        minutes = worth(candidates, fits, speed, settings)
    outlooks, name = judged(minutes)
    lesson = None
    by_plan = model is None and preset is None and not {"teachers", "teacher_length", "distill"} & settings.keys()
    if speed is not None and minutes is not None and (by_plan or settings.get("teachers")):
        longer = worth_lessons(candidates[name], fits[name], speed, minutes) if worthy else minutes
        if judged(longer)[1] == name:
            minutes, outlooks = longer, judged(longer)[0]
        if found := taught(candidates[name], fits[name], speed, minutes, settings, free, device):
            outlooks[name], lesson = found
    chosen, outlook = candidates[name], outlooks[name]
    training = TrainConfig(**{
        "optimizer": "muon", "schedule": "wsd", "cautious_decay": True, "val_fraction": VAL_FRACTION,
        "batch_size": outlook.batch, "minutes": minutes, "seq_len": None if model is None else seq_len,
        **regularisation(
            outlook.epochs, 0 if lesson else outlook.steps, chosen.config.num_parameters / outlook.epoch.pairs
        ),
        **({"distill": DISTILL} if lesson or settings.get("teachers") else {}),
        **({"teachers": lesson.teachers, "teacher_length": lesson.length} if lesson else {}), **settings,
    })  # fmt: skip
    if lesson is None:  # or none, or as many as were asked for, for a part of the model's steps
        part = training.teacher_length * outlook.epochs
        lesson = Lessons(training.teachers, part, outlook.epochs)
    memory = memory_of(chosen, training.batch_size, precision, settings, training.teachers, device)
    rate = None
    if speed is not None:
        epoch = outlook.epoch
        rate = epoch.pairs / speed.seconds(chosen.config, epoch.steps, epoch.padded, chosen.window) / lesson.slower
    bits = {other: bits_per_byte(outlooks[other].loss, corpus) for other in outlooks}
    told = kind != "word" and model is None and corpus.bytes >= _TOLD_FROM
    size = "" if vocab_size is None else f", {vocab_size:,} tokens{'' if given else ' at most'}"
    why = "which is there" if given else why
    seen = f"{outlook.epochs:,.0f} epochs" if outlook.epochs >= 100 else f"{outlook.epochs:.2g} epochs"
    reasons = (
        f"corpus: {corpus.bytes:,} bytes, {corpus.characters:,} characters ({corpus.alphabet:,} different), "
        f"{corpus.documents:,} document{'s' * (corpus.documents != 1)}" + _repetition(corpus),
        f"tokenizer: {kind}{size}, {why}",
        f"model: {name}, {chosen.config.num_parameters / 1e6:.1f} million parameters"
        + (_expected(name, bits) if told else ""),
        f"time: {'no limit' if minutes is None else _duration(minutes)}"
        f"{_worth(minutes) if worthy and minutes is not None else ''}: "
        f"{'' if settings.get('steps') else 'about '}{_steps(outlook, chosen.window)}, {seen}"
        + ("" if speed is None else f", at {rate:,.0f} tokens/s ({speed})"),
        _memory_reason(candidates, memory, fits, free),
        f"regularisation for {seen}: dropout {training.dropout:g}, masked tokens {training.token_mask:g}, "
        f"weight decay {training.weight_decay:g}, average {'none' if training.ema is None else training.ema}",
        *([f"{lesson}{', as asked' if settings.get('teachers') else _WHY_TAUGHT}"] if training.teachers else []),
    )
    return Plan(
        kind, vocab_size, name, chosen.config, training, training.teachers, minutes, rate, outlook.steps,
        outlook.epochs, lesson.flops(chosen, outlook.epoch.pairs), bits[name] if told else None, memory, reasons,
    )  # fmt: skip


def tokenizer_for(corpus: Corpus) -> tuple[str, str, float]:
    """The kind of tokenizer that suits a corpus, why, and the characters of its tokens."""
    if corpus.bytes < _CHARACTERS_UP_TO and corpus.alphabet <= _LARGEST_ALPHABET:
        return "char", "since the corpus is small and has few different characters", 1.0
    pieces = characters_per_token(corpus, "bpe", vocabulary_for(corpus, "bpe"))
    if corpus.beginning and pieces < _LEAST_PIECE:
        return "char", f"since a token of bpe would hold no more than {pieces:.1f} characters", 1.0
    return "bpe", "by the size of the corpus", pieces


def vocabulary_for(corpus: Corpus, kind: str) -> int | None:
    """The largest vocabulary of a tokenizer of this kind; None means that the text decides."""
    if kind == "word":
        return 8192
    if kind != "bpe":
        return None
    return next(size for most, size in _VOCABULARIES if corpus.bytes <= most)


def _options(
    corpus: Corpus, kind: str, vocab_size: int | None, names: Iterable[str], seq_len: int | None
) -> dict[str, ModelConfig]:
    """The models that could be trained, by preset."""
    expected = vocab_size or (corpus.alphabet + 2 if kind == "char" else 257)
    fields: dict[str, Any] = {"vocab_size": expected} | ({} if seq_len is None else {"max_seq_len": seq_len})
    tied = {"tied_head": True} if expected >= _TIED_FROM else {}
    return {name: ModelConfig.preset(name, **fields, **(tied if name in PLANNED else {})) for name in names}


def _expected(name: str, bits: Mapping[str, float]) -> str:
    """The expected figure, and those of the other models beside it."""
    others = ", ".join(f"{other} {figure:.2f}" for other, figure in bits.items() if other != name)
    said = f"; expected {bits[name]:.2f} bits a byte, give or take {LAW_ERROR:.0%} (by trials with one text)"
    return said + (f"; others {others}" if others else "")


def _repetition(corpus: Corpus) -> str:
    """What to know of a corpus that says the same again and again."""
    if corpus.bytes < _TOLD_FROM or corpus.richness >= _POOR:
        return ""
    return "; it repeats itself, so there is little to learn: give text that says more"


def _worth(minutes: float) -> str:
    """Why it is this time, where none is given."""
    if minutes < MOST_MINUTES:
        return ", which is what this corpus is worth"
    return ", the most unless you give more: this corpus is worth it"


def _duration(minutes: float) -> str:
    return f"{minutes:.3g} minute{'s' * (minutes != 1)}"


def _steps(outlook: Outlook, window: int) -> str:
    """The steps, with their tokens: a mean, where many windows are shorter than `window`."""
    steps, mean, full = outlook.steps, outlook.epoch.pairs / outlook.epoch.steps, outlook.batch * window
    said = f"{steps:,} step{'s' * (steps != 1)} of "
    if mean >= 0.9 * full:
        return f"{said}{outlook.batch} x {window} tokens"
    return f"{said}some {mean:,.0f} tokens (at most {outlook.batch} x {window})"


def _memory_reason(candidates: Mapping[str, Candidate], needed: int, fits: Mapping[str, Any], free: int | None) -> str:
    said = f"memory: needs {size_text(needed)}"
    if free is None:
        return said
    left_out = [
        f"{other} ({size_text(min(each.memory_by.values()))})"
        for other, each in candidates.items()
        if other not in fits
    ]
    return f"{said}, {size_text(free)} are free" + (f"; too large: {', '.join(left_out)}" if left_out else "")
