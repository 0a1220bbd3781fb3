"""NumPy oracle of all blocks in float64: shapes, forward, loss and gradients. Each block has a file beside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracles import gpt2, llama, soma
from oracles.config import Config
from oracles.noise import NONE, Masks
from oracles.ops import (
    IGNORE,
    Array,
    Params,
    attention,
    attention_backward,
    bfloat16_products,
    cross_entropy,
    cross_entropy_backward,
    distillation,
    distillation_backward,
    embedding,
    embedding_backward,
    linear,
    linear_backward,
    norm,
    norm_backward,
    product,
    rms_norm,
    rms_norm_backward,
    rotate,
    round_bfloat16,
    silu,
    softmax,
    split_heads,
    swiglu,
    swiglu_backward,
)
from oracles.optimizer import AdamW, clip_scale, quantize_int8

__all__ = [
    "BLOCKS", "IGNORE", "LAYER_NAMES", "MODEL_NAMES", "OTHER_GPT2", "AdamW", "Array", "Config", "Masks", "Params",
    "attention", "attention_backward", "bfloat16_products", "clip_scale", "cross_entropy", "cross_entropy_backward",
    "distillation", "distillation_backward", "embedding", "embedding_backward", "forward", "linear", "linear_backward",
    "loss", "loss_and_grad", "norm", "norm_backward", "parameter_shapes", "product", "quantize_int8",
    "random_parameters", "rms_norm", "rms_norm_backward", "rotate", "round_bfloat16", "silu", "softmax", "split_heads",
    "swiglu", "swiglu_backward",
]  # fmt: skip

OTHER_GPT2 = gpt2.OTHER
BLOCKS: dict[str, Any] = {"soma": soma, "gpt2": gpt2, "llama": llama}
LAYER_NAMES: dict[str, dict[str, str]] = {name: block.LAYER_NAMES for name, block in BLOCKS.items()}
MODEL_NAMES: dict[str, dict[str, str]] = {name: block.MODEL_NAMES for name, block in BLOCKS.items()}


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape of every parameter; weights are stored (in, out), embeddings and head (V, d)."""
    v, d = config.vocab_size, config.d_model
    outside = {"wte": (v, d), "wpe": (config.max_seq_len, d), "head": (v, d), "norm_w": (d,), "norm_b": (d,)}
    names, roles = MODEL_NAMES[config.block], BLOCKS[config.block].roles(config)
    shapes: dict[str, tuple[int, ...]] = {
        name: outside[role] for role, name in names.items() if role != "head" or not config.tied_head
    }
    for layer in range(config.n_layers):
        for role, name in LAYER_NAMES[config.block].items():
            if role in roles:
                shapes[name.format(layer)] = roles[role]
    return shapes


def random_parameters(config: Config, seed: int, std: float = 0.15) -> Params:
    """Float64 parameters that float32 holds exactly. They differ from initial values, so that every term counts."""
    rng = np.random.default_rng(seed)
    params: Params = {}
    for name, shape in parameter_shapes(config).items():
        centre = 1.0 if len(shape) == 1 and name.endswith(".weight") else 0.0  # a norm's gain
        values = centre + std * rng.standard_normal(shape)
        params[name] = values.astype(np.float32).astype(np.float64)
    return params


def _layer(params: Params, config: Config, layer: int) -> dict[str, Array | None]:
    roles = BLOCKS[config.block].roles(config)
    return {role: params[LAYER_NAMES[config.block][role].format(layer)] for role in roles}


def _run(
    params: Params, config: Config, ids: Array, masks: Masks = NONE
) -> tuple[Array, Array, list[dict[str, Array]]]:
    block, names = BLOCKS[config.block], MODEL_NAMES[config.block]
    h = masks.tokens * embedding(ids, params[names["wte"]])
    if "wpe" in names:
        h = h + params[names["wpe"]][: ids.shape[1]]
    h = masks.embedding * h
    saved = []
    for layer in range(config.n_layers):
        h, kept = block.forward(h, _layer(params, config, layer), config, layer, masks)
        saved.append(kept)
    return h, block.final(h, params, config), saved


def _head(params: Params, config: Config) -> Array:
    return params[MODEL_NAMES[config.block]["wte" if config.tied_head else "head"]]


def forward(params: Params, config: Config, ids: Array, masks: Masks = NONE) -> Array:
    """Logits (B, T, V) of ids (B, T)."""
    return product(_run(params, config, ids, masks)[1], _head(params, config).T)


def loss(params: Params, config: Config, ids: Array, targets: Array, normalizer: int = 0, masks: Masks = NONE) -> Any:
    """Mean negative log-likelihood in nats; complex where a parameter is."""
    return cross_entropy(forward(params, config, ids, masks), targets, normalizer)


def loss_and_grad(
    params: Params,
    config: Config,
    ids: Array,
    targets: Array,
    normalizer: int = 0,
    masks: Masks = NONE,
    taught: tuple[Array, float] | None = None,
) -> tuple[float, Params]:
    """(loss, gradient of every parameter). `taught` has the probabilities (B, T, V) of teachers, and their share."""
    block, names = BLOCKS[config.block], MODEL_NAMES[config.block]
    h, final, saved = _run(params, config, ids, masks)
    head = _head(params, config)
    logits = product(final, head.T)
    if taught is None:
        loss, dlogits = cross_entropy(logits, targets, normalizer), cross_entropy_backward(logits, targets, normalizer)
    else:
        q, share = taught
        loss = distillation(logits, q, targets, share, normalizer)
        dlogits = distillation_backward(logits, q, targets, share, normalizer)
    dhead = product(dlogits.reshape(-1, config.vocab_size).T, final.reshape(-1, config.d_model))
    dh, by_role = block.final_backward(product(dlogits, head), h, params, config)
    grads: Params = {names[role]: value for role, value in by_role.items()}
    for layer in reversed(range(config.n_layers)):
        dh, by_role = block.backward(dh, _layer(params, config, layer), saved[layer], config, layer, masks)
        for role in block.roles(config):
            grads[LAYER_NAMES[config.block][role].format(layer)] = by_role[role]
    dh = masks.embedding * dh
    dwte, _ = embedding_backward(masks.tokens * dh, ids, config.vocab_size, config.max_seq_len)
    _, dwpe = embedding_backward(dh, ids, config.vocab_size, config.max_seq_len)
    grads[names["wte"]] = dwte + dhead if config.tied_head else dwte
    if "wpe" in names:
        grads[names["wpe"]] = dwpe
    if not config.tied_head:
        grads[names["head"]] = dhead
    return float(loss), grads
