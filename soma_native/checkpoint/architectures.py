"""How each architecture is written in a Hugging Face folder: one entry with its keys, settings and tensor names."""

from __future__ import annotations

from typing import NamedTuple


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


def _keys(**others: str) -> dict[str, tuple[str, ...]]:
    """The keys of a config.json: the names of a ModelConfig, except `others`."""
    names = ("vocab_size", "max_seq_len", "d_model", "n_layers", "n_heads", "d_ff")
    return {name: tuple(others.get(name, name).split()) for name in names}


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
    ),
}


def of_block(block: str) -> tuple[str, Architecture]:
    """The model_type and the entry of a block."""
    return next((model_type, entry) for model_type, entry in ARCHITECTURES.items() if entry.block == block)
