"""The public Model: parameters as NumPy views, forward, loss and exact gradients. The C++ core computes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from soma_native._checks import choice, instance, integer, number
from soma_native.core import _core
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.model.arrays import Floats, as_given
from soma_native.model.config import PRECISIONS, ModelConfig
from soma_native.model.device import checked_device

# Instruction sets that multiply bfloat16 faster than single precision.
_FAST_BFLOAT16 = ("avx512_bf16", "amx", "neon_bf16")


def resolve_precision(precision: str, device: str = "cpu") -> tuple[str, str]:
    """The precisions of training steps and of evaluation. ``"auto"`` depends on the device; other values give both.

    The environment variable ``SOMA_PRECISION`` replaces the choice of ``"auto"`` for training steps.

    Raises:
        ValueError: `precision` or ``SOMA_PRECISION`` is not one of the allowed values.
    """
    choice("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision, precision
    training = choice("SOMA_PRECISION", os.environ.get("SOMA_PRECISION") or "auto", PRECISIONS)
    if training == "auto":
        fast = device != "cpu" or _core.active_isa() in _FAST_BFLOAT16
        training = "bfloat16" if fast else "float32"
    return training, "float32"


def _as_ids(name: str, value: npt.ArrayLike) -> npt.NDArray[np.int32]:
    try:
        array = np.asarray(value)
    except ValueError:
        raise ArgumentError(name, "must have shape (T,) or (B, T), got rows of different lengths") from None
    if array.dtype.kind not in "iu":
        if array.size == 0:
            raise ArgumentError(name, f"must hold at least one token, got shape {array.shape}")
        raise ArgumentTypeError(name, f"must be integers, got dtype {array.dtype}")
    if array.ndim not in (1, 2):
        raise ArgumentError(name, f"must have shape (T,) or (B, T), got {array.shape}")
    if array.size == 0:
        raise ArgumentError(name, f"must hold at least one token, got shape {array.shape}")
    if array.dtype.itemsize > 2 and array.dtype != np.int32:
        least, most = int(array.min()), int(array.max())
        if least < -(2**31) or most >= 2**31:
            raise ArgumentError(name, f"must fit into 32 bits, got values from {least} to {most}")
    return np.ascontiguousarray(np.atleast_2d(array), dtype=np.int32)


def as_floats(array: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    """An array of real numbers with this shape, as float32.

    Raises:
        ArgumentTypeError, ArgumentError: it holds something else, or has another shape.
    """
    given = np.asarray(array)
    if given.dtype.kind not in "fiub":
        raise ArgumentTypeError("array", f"must hold real numbers, got dtype {given.dtype}")
    if given.shape != tuple(shape):
        raise ArgumentError("array", f"must have shape {tuple(shape)}, got {given.shape}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(given, dtype=np.float32)


def _as_noise(dropout: float, token_mask: float, noise: Sequence[int] | None, first_row: int) -> _core.Noise:
    rates = number("dropout", dropout, least=0, below=1), number("token_mask", token_mask, least=0, below=1)
    if noise is None and any(rates):
        raise ArgumentError("noise", "must name the call where there is dropout or token_mask: (seed, step), say")
    if isinstance(noise, (str, bytes)) or not isinstance(noise, (Sequence, np.ndarray, type(None))):
        raise ArgumentTypeError("noise", f"must be integers such as (seed, step), got {noise!r:.80}")
    numbers = () if noise is None else noise
    return _core.Noise(*rates, [integer(f"noise[{i}]", n, 0, 2**64 - 1) for i, n in enumerate(numbers)], first_row)


def _make_core(config: ModelConfig, **options: Any) -> _core.Model:
    try:
        return _core.Model(config.core, **options)
    except MemoryError as error:
        count = config.num_parameters
        there = "" if options["device"] == "cpu" else f"; {error}"
        raise MemoryError(
            f"for a model of {count:,} parameters: its weights and gradients need {8 * count / 2**30:,.1f} GiB{there}"
        ) from None


class Model:
    """A decoder-only transformer in the C++ core.

    Args:
        config: sizes and block style.
        seed: the seed of the initial values. Matrices and embeddings are normal with mean 0 and standard deviation
            0.02. The two projections into the residual stream of each ``gpt2`` or ``llama`` layer have
            0.02 / sqrt(2 n_layers), as in GPT-2. Norm weights are 1, biases 0. The same seed gives the same bits on
            every machine, instruction set and thread count.
        precision: the precision of matrix products. ``"float32"``, or ``"bfloat16"``: both operands are rounded to the
            nearest bfloat16; sums, weights and everything else stay in single precision. ``"auto"`` uses bfloat16 for
            training steps (:meth:`loss_and_grad`) if the device multiplies it faster, as every GPU does, else float32.
            ``SOMA_PRECISION`` in the environment replaces this choice. For :meth:`forward` and :meth:`loss`, ``"auto"``
            uses float32, so that other programs reproduce their results. The attributes `precision` and
            `evaluation_precision` give the choices.
        device: where the model computes: ``"cpu"``, ``"cuda"``, or ``"cuda:N"`` for GPU number N. No other device ever
            takes its place.

    Raises:
        ValueError: an unknown precision, also in SOMA_PRECISION, a seed that is no integer from 0 to 2**64 - 1, or a
            device that is not there; the message names what to install.
        MemoryError: the memory is too small for the parameters.

    >>> model = Model(ModelConfig.preset("showcase"), seed=1)
    >>> model.num_parameters
    771968
    >>> model.forward([1, 2, 3]).shape
    (3, 576)

    Several threads may call one model: the calls take turns. Two models compute at the same time.
    """

    # Settings in the files of the model's folder beyond weights and sizes, by file; for `save` and `Generator`.
    _settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, config: ModelConfig, seed: int = 0, precision: str = "auto", device: str = "cpu") -> None:
        instance("config", config, ModelConfig)
        seed = integer("seed", seed, 0, 2**64 - 1)
        self._config = config
        device = checked_device(device)
        self._precision, evaluation = resolve_precision(precision, device)
        self._core = _make_core(config, seed=seed, precision=self._precision, device=device)
        self._evaluate_in(evaluation)

    @classmethod
    def _blank(cls, config: ModelConfig, precision: str, device: str = "cpu") -> Model:
        """A model whose parameters are all zero, for a loader that fills them."""
        model = cls.__new__(cls)
        model._config = config
        device = checked_device(device)
        model._precision, evaluation = resolve_precision(precision, device)
        model._core = _make_core(config, seed=0, precision=model._precision, device=device, initialize=False)
        model._evaluate_in(evaluation)
        return model

    def _evaluate_in(self, precision: str) -> None:
        """Set the precision of the products of :meth:`forward` and :meth:`loss`."""
        self._core.set_evaluation_precision(precision)
        self._evaluation_precision = precision

    @property
    def config(self) -> ModelConfig:
        """Sizes and block style."""
        return self._config

    @property
    def device(self) -> str:
        """Where the model is and computes, such as ``"cpu"``."""
        return self._core.device

    @property
    def precision(self) -> str:
        """The precision of matrix products in training steps: ``"float32"`` or ``"bfloat16"``."""
        return self._precision

    @property
    def evaluation_precision(self) -> str:
        """The precision of matrix products in :meth:`forward` and :meth:`loss`: ``"float32"`` or ``"bfloat16"``."""
        return self._evaluation_precision

    @property
    def num_parameters(self) -> int:
        """The number of parameters."""
        return self._core.num_parameters

    def parameters(self) -> dict[str, Floats]:
        """Every parameter by name, as a float32 view without a copy. Writing to a view changes the model.

        Weights of ``x @ w + b`` have shape (in, out). Embeddings of tokens and the head have shape (V, d_model). Biases
        and norm weights have one dimension. The names are those of a saved file, except for two matrices of a ``llama``
        layer: ``self_attn.qkv_proj.weight`` joins q, k and v, and ``mlp.gate_up_proj.weight`` joins gate and up. A
        saved file has the parts.

        On a device other than the CPU these are copies that cannot be written to; :meth:`write` changes a parameter.
        """
        return as_given(self._core.parameters(), "model.write(name, array) sets a parameter")

    def gradients(self) -> dict[str, Floats]:
        """The accumulated gradients, with the names and shapes of :meth:`parameters`; views or copies as well."""
        return as_given(self._core.gradients(), "change a copy(); loss_and_grad and zero_grad set gradients")

    def read(self, name: str) -> Floats:
        """A copy of the parameter of this name, as float32, from any device.

        Raises:
            ValueError: there is no such parameter.
        """
        self._shape(name)
        return self._core.read(name)

    def write(self, name: str, array: npt.ArrayLike) -> None:
        """Set the parameter of this name, on any device.

        Args:
            name: as in :meth:`parameters`.
            array: numbers in the shape of the parameter; they are rounded to float32.

        Raises:
            TypeError: the array does not hold real numbers.
            ValueError: there is no such parameter, or it has another shape. Nothing changed.

        >>> model = Model(ModelConfig.preset("showcase"))
        >>> model.write("lm_head", 2 * model.read("lm_head"))
        """
        self._core.write(name, as_floats(array, self._shape(name)))

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = _core.parameter_shapes(self._config.core)
        if name not in shapes:
            raise ArgumentError(
                "name", f"must be a parameter of the model, such as {next(iter(shapes))!r}, got {name!r}"
            )
        return shapes[name]

    def forward(self, ids: npt.ArrayLike) -> Floats:
        """Logits of every position.

        Args:
            ids: integers, shape (B, T) or (T,), 0 <= id < vocab_size, T <= max_seq_len.

        Returns:
            float32, shape (B, T, V) or (T, V).

        Raises:
            TypeError: ids are not integers.
            ValueError: a wrong shape, no tokens, too many, or an id out of range.
            KeyboardInterrupt: Ctrl-C; nothing changed.
        """
        array = _as_ids("ids", ids)
        logits = self._core.forward(array)
        return logits if np.ndim(ids) == 2 else logits[0]

    def hidden(self, ids: npt.ArrayLike) -> Floats:
        """What the output head reads at every position: the last block's output, after the final norm if there is one.

        Args:
            ids: as in :meth:`forward`.

        Returns:
            float32, shape (B, T, C) or (T, C) with C = d_model. In bfloat16 these are the numbers before the head
            rounds them.

        Raises:
            TypeError, ValueError, KeyboardInterrupt: as :meth:`forward`.
        """
        states = self._core.hidden(_as_ids("ids", ids))
        return states if np.ndim(ids) == 2 else states[0]

    def loss(self, ids: npt.ArrayLike, targets: npt.ArrayLike, normalizer: int | None = None) -> float:
        """Mean negative log-likelihood of the targets, in nats.

        Args:
            ids: as in :meth:`forward`.
            targets: the same shape; the token that follows each position. -100 is ignored.
            normalizer: the divisor of the sum; ``None`` means the number of targets that are not -100.

        Returns:
            The loss; 0.0 if all targets are -100 and a normalizer is given.

        Raises:
            TypeError, ValueError: as :meth:`forward`; also if all targets are -100 and there is no normalizer.
        """
        return self._core.loss(*self._batch(ids, targets), self._normalizer(normalizer))

    def loss_and_grad(
        self,
        ids: npt.ArrayLike,
        targets: npt.ArrayLike,
        normalizer: int | None = None,
        *,
        dropout: float = 0.0,
        token_mask: float = 0.0,
        noise: Sequence[int] | None = None,
        first_window: int = 0,
        teachers: Model | Iterable[Model] = (),
        distill: float = 0.5,
    ) -> float:
        """:meth:`loss`, or the loss with teachers, which also adds its gradient to :meth:`gradients`.

        Gradients accumulate until :meth:`zero_grad` or an optimizer step. For the gradient of one large batch from
        several small ones, pass the number of targets of all batches as ``normalizer`` to each call. The losses then
        add up, and a batch with only -100 as targets adds 0.0.

        Args:
            ids: as in :meth:`loss`.
            targets: as in :meth:`loss`; one that is ignored counts for teachers neither.
            normalizer: as in :meth:`loss`.
            dropout: the probability, at least 0 and below 1, that an element of the embeddings' sum, or of what
                attention or the feed-forward network adds to the residual stream, becomes 0. Other elements are
                divided by 1 - dropout (Srivastava et al. 2014).
            token_mask: the probability, likewise, that an input token counts as no token: its embedding is zeros,
                its position and target stay (word dropout: Gal & Ghahramani 2016, arXiv 1512.05287, but drawn for
                each position). Nothing is scaled.
            noise: the integers that name this call, such as (seed, step, micro-batch). Needed beside `dropout` or
                `token_mask`: other numbers give other masks. The masks are the same for any number of threads,
                instruction set and precision.
            first_window: sequences of a larger batch that precede these, if ids are a part of it, of the same T. The
                masks are then those of the larger batch.
            teachers: other models of the same vocabulary, one or several. The loss of a target is then
                (1 - distill) cross-entropy + distill KL(q || p), where q is the mean of the teachers' probabilities and
                p the model's (Hinton et al. 2015, at temperature 1; Furlanello et al. 2018 for a teacher of the same
                size). Teachers do not change, and see every token. They compute in this model's `precision`.
            distill: the share of the teachers, from 0 (they are not asked) to 1. Without teachers it has no meaning.

        Returns:
            The loss whose gradient was added, in nats.

        Raises:
            TypeError, ValueError: as :meth:`loss`; a teacher has another vocabulary, reads fewer tokens than ids have,
                or is this model. The gradients are unchanged.
            KeyboardInterrupt: Ctrl-C. Gradients may hold a part of this batch: call :meth:`zero_grad` before the next
                call.
        """
        distill = number("distill", distill, least=0, most=1)
        left, right = self._batch(ids, targets)
        taught_by = [t._core for t in as_teachers("teachers", teachers, self, left.shape[1])]
        first_row = integer("first_window", first_window, 0, 2**31) * left.shape[1]
        divisor, drawn = self._normalizer(normalizer), _as_noise(dropout, token_mask, noise, first_row)
        return self._core.loss_and_grad(left, right, divisor, drawn, taught_by, distill)

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self._core.zero_grad()

    def _batch(self, ids: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[Any, Any]:
        left, right = _as_ids("ids", ids), _as_ids("targets", targets)
        if np.shape(ids) != np.shape(targets):
            raise ArgumentError("targets", f"must have the shape of ids, {np.shape(ids)}, got {np.shape(targets)}")
        return left, right

    @staticmethod
    def _normalizer(normalizer: int | None) -> int:
        return 0 if normalizer is None else integer("normalizer", normalizer, 1)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the model with its weights, and with its gradients unless all are zero."""
        gradients = self.gradients()
        if not any(array.any() for array in gradients.values()):
            gradients = {}
        precisions = self._precision, self._evaluation_precision
        kept = {file: dict(settings) for file, settings in self._settings.items()}
        return _model_of, (self._config.to_dict(), *precisions, self.parameters(), gradients, kept, self.device)

    def __repr__(self) -> str:
        c = self._config
        return (
            f"Model(block={c.block!r}, parameters={self.num_parameters:,}, vocab_size={c.vocab_size}, "
            f"d_model={c.d_model}, n_layers={c.n_layers}, precision={self._precision!r}, "
            f"evaluation_precision={self._evaluation_precision!r}, device={self.device!r})"
        )


def as_teachers(argument: str, value: Model | Iterable[Model], student: Model, length: int) -> tuple[Model, ...]:
    """The models of the argument `value`, which can all teach `student` on sequences of `length` tokens.

    Raises:
        ArgumentTypeError: something in it is no Model.
        ArgumentError: a teacher does not fit the student. The message names it.
    """
    if not isinstance(value, Model) and not isinstance(value, Iterable):
        raise ArgumentTypeError(argument, f"must be a soma_native.Model or several, got {type(value).__name__}")
    alone = isinstance(value, Model)
    found: list[Model] = []
    for teacher in (value,) if isinstance(value, Model) else value:
        name = argument if alone else f"{argument}[{len(found)}]"
        instance(name, teacher, Model)
        if teacher is student:
            raise ArgumentError(name, "is the model that is trained: give a copy of it, copy.deepcopy(model)")
        if any(teacher is other for other in found):
            raise ArgumentError(name, "was given before: give each teacher once")
        has, wants = teacher.config.vocab_size, student.config.vocab_size
        if has != wants:
            raise ArgumentError(
                name, f"has a vocabulary of {has}, the model of {wants}: give a teacher that has the model's tokenizer"
            )
        most = teacher.config.max_seq_len
        if most < length:
            raise ArgumentError(
                name,
                f"reads {most} tokens at most, and sequences have {length}: give seq_len={most} or another teacher",
            )
        found.append(teacher)
    return tuple(found)


def _model_of(
    config: dict[str, Any],
    precision: str,
    evaluation: str,
    parameters: dict[str, Floats],
    gradients: dict[str, Floats],
    settings: dict[str, dict[str, Any]],
    device: str = "cpu",  # not in pickles of older versions
) -> Model:
    model = Model._blank(ModelConfig(**config), precision, device)
    model._evaluate_in(evaluation)
    model._settings = settings
    for is_gradient, arrays in ((False, parameters), (True, gradients)):
        for name, array in arrays.items():
            model._core.write(name, array, is_gradient)
    return model


_model_of.__module__ = "soma_native"  # the name in pickles, which stays if this module moves
