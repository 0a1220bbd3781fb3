"""The plan of a training run: tokenizer, size of the model, settings, and the reasons, from the corpus and the time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soma_native._checks import number
from soma_native.core import _core
from soma_native.data.documents import Texts
from soma_native.model.config import ModelConfig
from soma_native.model.flops import flops_per_token
from soma_native.model.model import resolve_precision
from soma_native.planning.corpus import Corpus, survey
from soma_native.planning.speed import Speed, measure_speed
from soma_native.training.config import TrainConfig
from soma_native.training.memory import COMFORTABLE, free_memory, size_text, training_memory
from soma_native.training.recipes import VAL_FRACTION, regularisation

PLANNED = ("1m", "5m", "10m", "30m", "124m")  # presets that a plan chooses from
MOST_MINUTES = 10.0  # where no time is given
_START = 3.0  # seconds that the start takes
_TRAINING = 0.93  # share of the time that steps get beside the start; validation and saving take the rest

# Predicted loss in nats a character, fitted to trials with English text (docs/LOG.md):
# floor + size / parameters^a + data / tokens^b, tokens that are repeated counting less.
_FLOOR, _SIZE, _SIZE_POWER, _DATA, _DATA_POWER = 1.12, 8.52, 0.3, 20.4, 0.3
_REPEATED = 15.0  # epochs after which a repetition is worth e times less (Muennighoff et al., arXiv 2305.16264)

_BATCHES = (32, 16, 8)  # windows in a step: small ones learn more from a token, large ones take less time a token
_STEPS = 4000  # least steps of a larger batch

_CHARACTERS_UP_TO = 3_000_000  # bytes of a corpus that characters suit
_LARGEST_ALPHABET = 512  # different characters that characters suit
_VOCABULARIES = ((10_000_000, 1024), (50_000_000, 4096), (math.inf, 8192))  # of bpe: most bytes of a corpus, size
_LEAST_BPE = 258  # ids of a bpe vocabulary that merges anything
_MOST_A_TOKEN = 20  # parameters of a model for a fresh token of the corpus
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
        minutes: of the whole run; None where epochs or steps were given.
        tokens_per_second: expected; None where no speed was measured.
        steps, epochs: expected.
        flops: floating-point operations of all steps.
        memory: bytes that model and training take, as `training_memory` predicts.
        reasons: a sentence for each choice.
    """

    tokenizer: str
    vocab_size: int | None
    preset: str
    model: ModelConfig
    training: TrainConfig
    minutes: float | None
    tokens_per_second: float | None
    steps: int
    epochs: float
    flops: float
    memory: int
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {
            **{name: getattr(self, name) for name in (
                "tokenizer", "vocab_size", "preset", "minutes", "tokens_per_second", "steps", "epochs", "flops",
                "memory",
            )},
            "model": self.model.to_dict(),
            "training": self.training.to_dict(),
            "reasons": list(self.reasons),
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def plan(texts: Texts, minutes: float | None = MOST_MINUTES) -> Plan:
    """Plan a training run, and train nothing. Takes some seconds: the speed of this machine is measured.

    Args:
        texts: the documents, as for `Trainer.fit`.
        minutes: of the run; None means what the corpus is worth, at most 10, as in `train`.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `survey`, for minutes that are not above 0, and for
            too little memory.
    """
    if minutes is not None:
        number("minutes", minutes, above=0)
    return choose(survey(texts), measure_speed(), minutes, free=free_memory())


def choose(
    corpus: Corpus,
    speed: Speed | None,
    minutes: float | None = None,
    fixed: Mapping[str, Any] | None = None,
    free: int | None = None,
) -> Plan:
    """The plan for a corpus, on a machine of this speed.

    Args:
        corpus: of training and validation together.
        speed: of this machine; None where `fixed` has epochs or steps.
        minutes: of the run; None means what the corpus is worth, at most 10.
        fixed: what is decided already: "model" (a `ModelConfig`) or "preset", "tokenizer", "vocab_size", "seq_len", and
            settings of `TrainConfig`.
        free: bytes of memory that are free; None is unknown. A preset that needs more than 80% of it is left out, a
            model or preset that `fixed` asks for where it needs more than all.

    Raises:
        ValueError: no model fits into the free memory.
    """
    settings = dict(fixed or {})
    kind, vocab_size = settings.pop("tokenizer", None), settings.pop("vocab_size", None)
    asked = bool(kind or vocab_size)
    kind = kind or ("bpe" if vocab_size and vocab_size >= _LEAST_BPE else tokenizer_for(corpus))
    vocab_size = vocab_size or vocabulary_for(corpus, kind)
    seq_len, preset, model = (settings.pop(name, None) for name in ("seq_len", "preset", "model"))
    if model is None:
        options = _options(corpus, kind, vocab_size, PLANNED if preset is None else (preset,), seq_len)
    else:
        options = {"the given model": model}
    precision = resolve_precision("auto")[0] if speed is None else speed.precision

    def memory_of(config: ModelConfig, batch: int, optimizer: str = settings.get("optimizer", "muon")) -> int:
        return training_memory(config, batch, _window(config, seq_len), precision, optimizer, True)

    batches = (settings["batch_size"],) if "batch_size" in settings else _BATCHES
    needs = {name: {batch: memory_of(config, batch) for batch in batches} for name, config in options.items()}
    fitting = _fitting(needs, free, 1.0 if preset or model else COMFORTABLE)
    options = {name: options[name] for name in fitting}
    length: dict[str, Any] = {
        name: settings[name] for name in ("epochs", "steps", "batch_size", "val_fraction") if name in settings
    }
    length["window"] = seq_len
    worth = minutes is None and not {"epochs", "steps"} & length.keys()
    if worth:
        assert speed is not None
        minutes = _worth(corpus, options, speed)
    judged = {name: _judge(corpus, config, speed, minutes, length) for name, config in options.items()}
    name = _best(judged, options, speed)
    loss, tokens, epochs = judged[name]
    config = options[name]
    window = _window(config, seq_len)
    batch = settings.get("batch_size") or (
        _BATCHES[-1] if length.get("steps") else _batch(tokens, window, fitting[name])
    )
    steps = settings.get("steps") or max(1, round(tokens / (batch * window)))
    training = TrainConfig(**{
        "optimizer": "muon", "schedule": "wsd", "cautious_decay": True, "val_fraction": VAL_FRACTION,
        "batch_size": batch, "minutes": minutes, "seq_len": None if model is None else seq_len,
        **regularisation(epochs, steps), **settings,
    })  # fmt: skip
    others = ", ".join(f"{other} {judged[other][0]:.2f}" for other in judged if other != name)
    rate = None if speed is None else speed.tokens_per_second(config)
    lasts = "no limit" if minutes is None else f"{minutes:.3g} minute{'s' * (minutes != 1)}"
    seen = f"{epochs:,.0f} epochs" if epochs >= 100 else f"{epochs:.2g} epochs"
    reasons = (
        f"corpus: {corpus.bytes:,} bytes, {corpus.characters:,} characters ({corpus.alphabet:,} different), "
        f"{corpus.documents:,} document{'s' * (corpus.documents != 1)}",
        f"tokenizer: {_why_tokenizer(kind, vocab_size, asked)}",
        f"model: {name}, {config.num_parameters / 1e6:.1f} million parameters"
        + (f"; expected loss {loss:.2f} nats a character, with {others}" if others else ""),
        f"time: {lasts}{', which is what this corpus is worth' if worth else ''}: "
        f"{'' if settings.get('steps') else 'about '}{steps:,} step{'s' * (steps != 1)} of {batch} x {window} tokens, "
        f"{seen}" + ("" if speed is None else f", at {rate:,.0f} tokens/s ({speed})"),
        _memory_reason(needs, name, training.batch_size, fitting, free),
        f"regularisation for {seen}: dropout {training.dropout:g}, masked tokens {training.token_mask:g}, "
        f"weight decay {training.weight_decay:g}, average {'none' if training.ema is None else training.ema}",
    )
    flops, memory = flops_per_token(config, window) * tokens, needs[name][training.batch_size]
    return Plan(kind, vocab_size, name, config, training, minutes, rate, steps, epochs, flops, memory, reasons)


def tokenizer_for(corpus: Corpus) -> str:
    """The kind of tokenizer that suits a corpus."""
    return "char" if corpus.bytes < _CHARACTERS_UP_TO and corpus.alphabet <= _LARGEST_ALPHABET else "bpe"


def vocabulary_for(corpus: Corpus, kind: str) -> int | None:
    """The largest vocabulary of a tokenizer of this kind; None means that the text decides."""
    if kind == "word":
        return 8192
    if kind != "bpe":
        return None
    return next(size for most, size in _VOCABULARIES if corpus.bytes <= most)


def predicted_loss(parameters: float, tokens: float, fresh: float) -> float:
    """Expected validation loss in nats a character of a model trained on `tokens` of which `fresh` differ."""
    repeated = max(0.0, tokens / fresh - 1.0)
    worth = min(tokens, fresh) * (1 + _REPEATED * (1 - math.exp(-repeated / _REPEATED)))
    return _FLOOR + _SIZE / math.pow(parameters, _SIZE_POWER) + _DATA / math.pow(worth, _DATA_POWER)


def _options(
    corpus: Corpus, kind: str, vocab_size: int | None, names: Iterable[str], seq_len: int | None
) -> dict[str, ModelConfig]:
    """The models that could be trained, by preset."""
    expected = vocab_size or (corpus.alphabet + 2 if kind == "char" else 257)
    fields: dict[str, Any] = {"vocab_size": expected} | ({} if seq_len is None else {"max_seq_len": seq_len})
    if expected >= _TIED_FROM:
        fields["tied_head"] = True
    return {name: ModelConfig.preset(name, **fields) for name in names}


def _best(
    judged: Mapping[str, tuple[float, float, float]], options: Mapping[str, ModelConfig], speed: Speed | None
) -> str:
    """The option of the least expected loss, and the smallest where the corpus is too small for any.

    Where time is no matter, a model has no more parameters than the run has tokens.
    """
    fitting = []
    for name, (_, tokens, epochs) in judged.items():
        most = tokens if speed is None else _MOST_A_TOKEN * tokens / epochs
        if options[name].num_parameters <= most:
            fitting.append(name)
    if not fitting:
        return min(options, key=lambda name: options[name].num_parameters)
    return fitting[-1] if speed is None else min(fitting, key=lambda name: judged[name][0])


def _window(config: ModelConfig, seq_len: int | None) -> int:
    """Tokens of a window, where `seq_len` is asked for."""
    return min(seq_len or config.max_seq_len, config.max_seq_len)


def _judge(
    corpus: Corpus, config: ModelConfig, speed: Speed | None, minutes: float | None, given: Mapping[str, Any]
) -> tuple[float, float, float]:
    """Expected loss, tokens to train on, and epochs."""
    characters = corpus.characters * (1 - given.get("val_fraction", VAL_FRACTION))
    fresh = characters / _characters_per_token(corpus, config)
    if given.get("epochs") is not None:
        tokens = float(given["epochs"]) * fresh
    elif given.get("steps") is not None:
        tokens = float(given["steps"]) * (given.get("batch_size") or _BATCHES[-1])
        tokens *= _window(config, given["window"])
    else:
        assert speed is not None and minutes is not None
        seconds = 60 * minutes
        tokens = speed.tokens_per_second(config) * max(_TRAINING * seconds - _START, seconds / 3)
    per_character = characters / fresh
    loss = predicted_loss(_core.multiplied_parameters(config.core), tokens * per_character, fresh * per_character)
    return loss, tokens, tokens / fresh


def _why_tokenizer(kind: str, vocab_size: int | None, asked: bool) -> str:
    size = "" if vocab_size is None else f", {vocab_size:,} tokens at most"
    if asked:
        return f"{kind}{size}, as asked"
    if kind == "char":
        return "char, since the corpus is small and has few different characters"
    return f"{kind}{size}, by the size of the corpus"


def _worth(corpus: Corpus, options: Mapping[str, ModelConfig], speed: Speed) -> float:
    """The least time whose expected loss is within 1% of that of the longest."""

    def best(minutes: float) -> float:
        return min(_judge(corpus, config, speed, minutes, {})[0] for config in options.values())

    goal = 1.01 * best(MOST_MINUTES)
    times = (MOST_MINUTES * 0.9**power for power in range(40, -1, -1))
    return round(next(minutes for minutes in times if best(minutes) <= goal), 1)


def _fitting(needs: Mapping[str, Mapping[int, int]], free: int | None, share: float) -> dict[str, list[int]]:
    """The batches of each option that take at most this share of the free memory; options without one are left out."""
    fitting = {
        name: [batch for batch, memory in by_batch.items() if free is None or memory <= share * free]
        for name, by_batch in needs.items()
    }
    if not any(fitting.values()):
        least, name, batch = min((min(by.values()), name, min(by, key=by.__getitem__)) for name, by in needs.items())
        raise ValueError(
            f"training needs at least {size_text(least)} of memory (model {name}, batches of {batch}), and "
            f"{size_text(free or 0)} are free: close other programs, or give a lower seq_len or a smaller model"
        )
    return {name: batches for name, batches in fitting.items() if batches}


def _memory_reason(
    needs: Mapping[str, Mapping[int, int]], name: str, batch: int, fitting: Mapping[str, Any], free: int | None
) -> str:
    said = f"memory: needs {size_text(needs[name][batch])}"
    if free is None:
        return said
    left_out = [f"{other} ({size_text(min(by.values()))})" for other, by in needs.items() if other not in fitting]
    return f"{said}, {size_text(free)} are free" + (f"; too large: {', '.join(left_out)}" if left_out else "")


def _batch(tokens: float, seq_len: int, batches: Sequence[int]) -> int:
    """Windows in a step: the largest number that leaves enough steps."""
    return next((size for size in batches if tokens >= _STEPS * size * seq_len), batches[-1])


def _characters_per_token(corpus: Corpus, config: ModelConfig) -> float:
    """Expected, from the number of tokens: about the logarithm of the vocabulary beside that of the alphabet."""
    extra = config.vocab_size / max(corpus.alphabet, 257)
    return 1.0 if extra <= 1.05 else 1.0 + 0.75 * math.log2(extra)
