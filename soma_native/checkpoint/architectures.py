"""How each architecture is written in a Hugging Face folder: one entry with its keys, settings and tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from soma_native.model.config import ModelConfig

Part = tuple[str, Callable[[ModelConfig], int]]  # a tensor of a file, and the number of our columns that it fills


class Gguf(NamedTuple):
    """How llama.cpp computes an architecture, which it knows by the model_type.

    Attributes:
        only: for fields of a ModelConfig, the one value that it computes.
        transposed: ends of the names of matrices that it holds as (out, in), and a file of ours as (in, out).
        interleaved: ends of the names of matrices whose rows it rotates as neighbours. Elsewhere a row of the first
            half of a head is rotated with one of the second half.
    """

    only: Mapping[str, object] = MappingProxyType({})
    transposed: tuple[str, ...] = ()
    interleaved: tuple[str, ...] = ()


class Architecture(NamedTuple):
    """One row of the table. A new block adds a row. Nothing else in this package depends on a block's name.

    Attributes:
        block: the name of the block in a ModelConfig.
        class_name: what `transformers` calls the model's class, for `architectures` in config.json.
        sizes: for each field of a ModelConfig its key in config.json. Of several keys the first one found is read, and
            all are written.
        choices: for each other field of a ModelConfig its key, and for each of its values the words of config.json that
            mean it; the first word is written. The first value is the default where there is no such key.
        settings: settings that change the mathematics, each with the values that our block computes; the first is
            written. Dropout is missing on purpose: it is off in everything that a loaded model is used for here.
        written: settings that are only written.
        tied_head: whether the head is the embedding, if config.json does not say.
        d_ff_factor: d_ff / d_model if config.json has no d_ff; None if config.json must have it.
        embedding, head: the names of these tensors.
        prefix: the beginning of the names of all tensors but the head; files of a bare model leave it out.
        no_weights: ends of the names of constant tensors in old files, which are not read.
        fixed: fields of a ModelConfig that follow from the model_type.
        options: for each option of a ModelConfig its key in config.json, which may be missing unless in `needed`.
        needed: options that config.json must have, because their default depends on the version of `transformers`.
        each: for each setting that is a list, the value that all of its entries must have.
        absent: settings that must be null, or not be there.
        rotary: whether config.json has rope_theta, at its top or in rope_parameters.
        parts: for each matrix of ours that files hold as (out, in), by the end of its name: the tensors of a file that
            it joins, side by side.
        gguf: how llama.cpp computes it; None if it does not.
    """

    block: str
    class_name: str
    sizes: dict[str, tuple[str, ...]]
    choices: dict[str, tuple[str, dict[object, tuple[object, ...]]]]
    settings: dict[str, tuple[object, ...]]
    written: dict[str, object]
    tied_head: bool
    d_ff_factor: int | None
    embedding: str
    head: str
    prefix: str = ""
    no_weights: tuple[str, ...] = ()
    fixed: Mapping[str, object] = MappingProxyType({})
    options: Mapping[str, str] = MappingProxyType({})
    needed: tuple[str, ...] = ()
    each: Mapping[str, object] = MappingProxyType({})
    absent: tuple[str, ...] = ()
    rotary: bool = False
    parts: Mapping[str, tuple[Part, ...]] = MappingProxyType({})
    gguf: Gguf | None = None

    def parts_of(self, name: str) -> tuple[Part, ...]:
        """The tensors of a file that our tensor joins, as (out, in); () if the file holds our tensor itself."""
        for end, parts in self.parts.items():
            if name.endswith(end):
                return tuple((name.removesuffix(end) + part, width) for part, width in parts)
        return ()


def _keys(**others: str) -> dict[str, tuple[str, ...]]:
    """The keys of a config.json: the names of a ModelConfig, except `others`."""
    names = ("vocab_size", "max_seq_len", "d_model", "n_layers", "n_heads", "d_ff")
    return {name: tuple(others.get(name, name).split()) for name in names}


def _llama(class_name: str, qk_norm: bool, settings: dict[str, tuple[object, ...]], **others: Any) -> Architecture:
    """The row of a llama block."""

    def q_dim(config: ModelConfig) -> int:
        return config.n_heads * (config.head_dim or 0)

    def kv_dim(config: ModelConfig) -> int:
        return (config.n_kv_heads or 0) * (config.head_dim or 0)

    def d_ff(config: ModelConfig) -> int:
        return config.d_ff

    def d_model(config: ModelConfig) -> int:
        return config.d_model

    attention, mlp = ".self_attn.", ".mlp."
    return Architecture(
        block="llama",
        class_name=class_name,
        sizes=_keys(
            max_seq_len="max_position_embeddings",
            d_model="hidden_size",
            n_layers="num_hidden_layers",
            n_heads="num_attention_heads",
            d_ff="intermediate_size",
        ),
        choices={"activation": ("hidden_act", {"silu": ("silu", "swish")})},
        settings={"attention_bias": (False,), **settings},
        written={"initializer_range": 0.02, "attention_dropout": 0.0},
        tied_head=False,
        d_ff_factor=None,
        embedding="model.embed_tokens.weight",
        head="lm_head.weight",
        prefix="model.",
        no_weights=(".rotary_emb.inv_freq",),
        fixed={"qk_norm": qk_norm},
        options={"n_kv_heads": "num_key_value_heads", "head_dim": "head_dim", "norm_eps": "rms_norm_eps"},
        each={"layer_types": "full_attention"},
        rotary=True,
        parts={
            attention + "qkv_proj.weight": (
                (attention + "q_proj.weight", q_dim),
                (attention + "k_proj.weight", kv_dim),
                (attention + "v_proj.weight", kv_dim),
            ),
            attention + "o_proj.weight": ((attention + "o_proj.weight", d_model),),
            mlp + "gate_up_proj.weight": ((mlp + "gate_proj.weight", d_ff), (mlp + "up_proj.weight", d_ff)),
            mlp + "down_proj.weight": ((mlp + "down_proj.weight", d_model),),
        },
        **others,
    )


ARCHITECTURES: dict[str, Architecture] = {  # by model_type
    "soma": Architecture(
        block="soma",
        class_name="SomaForCausalLM",
        sizes=_keys(),
        choices={},
        settings={},
        written={},
        tied_head=False,
        d_ff_factor=None,
        embedding="wte",
        head="lm_head",
    ),
    "gpt2": Architecture(
        block="gpt2",
        class_name="GPT2LMHeadModel",
        sizes=_keys(
            max_seq_len="n_positions n_ctx", d_model="n_embd", n_layers="n_layer", n_heads="n_head", d_ff="n_inner"
        ),
        choices={
            "activation": (
                "activation_function",
                {
                    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),
                    "gelu": ("gelu", "gelu_python"),
                    "relu": ("relu",),
                },
            ),
            "scale_attn_weights": ("scale_attn_weights", {True: (True,), False: (False,)}),
            "scale_attn_by_inverse_layer_idx": ("scale_attn_by_inverse_layer_idx", {False: (False,), True: (True,)}),
        },
        settings={"layer_norm_epsilon": (1e-5,), "add_cross_attention": (False,)},
        written={"initializer_range": 0.02, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
        tied_head=True,
        d_ff_factor=4,
        embedding="transformer.wte.weight",
        head="lm_head.weight",
        prefix="transformer.",
        no_weights=(".attn.bias", ".attn.masked_bias"),
        gguf=Gguf(
            only={"activation": "gelu_tanh", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
            transposed=(".c_attn.weight", ".c_fc.weight", ".c_proj.weight"),
        ),
    ),
    "llama": _llama(
        "LlamaForCausalLM",
        False,
        {"mlp_bias": (False,)},
        absent=("sliding_window",),
        gguf=Gguf(interleaved=(".q_proj.weight", ".k_proj.weight")),
    ),
    "qwen3": _llama(
        "Qwen3ForCausalLM",
        True,
        {"use_sliding_window": (False,)},
        needed=("n_kv_heads", "head_dim"),
        gguf=Gguf(),
    ),
}


def of_config(config: ModelConfig) -> tuple[str, Architecture]:
    """The model_type and the entry of a model."""
    return next(
        (model_type, entry)
        for model_type, entry in ARCHITECTURES.items()
        if entry.block == config.block and all(getattr(config, name) == value for name, value in entry.fixed.items())
    )
