"""Options of a ModelConfig that only some blocks have: their defaults, their limits, and errors that name them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import soma_native as soma
from soma_native import _core
from soma_native.errors import ArgumentError
from soma_native.model.config import BLOCKS, OPTIONS

SIZES = {"vocab_size": 31, "d_model": 24, "n_layers": 2, "n_heads": 6, "d_ff": 40, "max_seq_len": 16}
VALUES: dict[str, Any] = {"n_kv_heads": 2, "head_dim": 8, "qk_norm": True, "rope_theta": 500.0, "norm_eps": 1e-5}


def test_every_option_has_an_example_here() -> None:
    assert tuple(VALUES) == OPTIONS
    assert {name for block in BLOCKS for name in _core.block_options(block)} == set(OPTIONS)
    assert set(_core.option_limits()) <= set(OPTIONS)


def test_options_left_out_take_the_defaults_of_the_block(block: str) -> None:
    config = soma.ModelConfig(**SIZES, block=block)
    known = _core.block_options(block)
    for name in OPTIONS:
        assert (getattr(config, name) is None) == (name not in known)
        assert (name in config.to_dict()) == (name in known)
    if known:
        given = (config.n_kv_heads, config.head_dim, config.qk_norm, config.rope_theta, config.norm_eps)
        assert given == (6, 4, False, 10000.0, 1e-6)
    assert soma.ModelConfig.from_dict(config.to_dict()) == config
    assert replace(config, **dict.fromkeys(OPTIONS)) == config


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_the_block_does_not_have_is_named(block: str, name: str) -> None:
    if name in _core.block_options(block):
        assert getattr(soma.ModelConfig(**SIZES, block=block, **{name: VALUES[name]}), name) == VALUES[name]
        return
    with pytest.raises(ArgumentError, match=f"{name} does not exist in block '{block}': leave it out") as error:
        soma.ModelConfig(**SIZES, block=block, **{name: VALUES[name]})
    assert error.value.argument == name
    fields = soma.ModelConfig(**SIZES, block=block).to_dict()
    with pytest.raises(ValueError, match=f"{name} is nothing that block '{block}' has"):
        _core.Config(**fields, **{name: VALUES[name]})


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"n_kv_heads": 0}, ValueError, "n_kv_heads must be from 1 to 65536, got 0"),
        ({"n_kv_heads": 4}, ValueError, "n_kv_heads must divide n_heads, got 4 and 6"),
        ({"n_kv_heads": 12}, ValueError, "n_kv_heads must divide n_heads, got 12 and 6"),
        ({"n_kv_heads": 2.0}, TypeError, "n_kv_heads must be an integer"),
        ({"head_dim": 7}, ValueError, "head_dim must be even"),
        ({"head_dim": 0}, ValueError, "head_dim must be from 1 to 4096, got 0"),
        ({"head_dim": 8192}, ValueError, "head_dim must be from 1 to 4096, got 8192"),
        ({"n_heads": 24}, ValueError, r"head_dim must be even \(d_model / n_heads, unless given\), got 1"),
        ({"n_heads": 5}, ValueError, "d_model must be a multiple of n_heads, got 24 and 5"),
        ({"qk_norm": 1}, TypeError, "qk_norm must be True or False, got 1"),
        ({"rope_theta": 0.5}, ValueError, "rope_theta must be from 1.0 to"),
        ({"rope_theta": float("nan")}, ValueError, "rope_theta must be finite"),
        ({"rope_theta": "1e4"}, TypeError, "rope_theta must be a number"),
        ({"norm_eps": 0}, ValueError, "norm_eps must be from 1e-12 to 1.0, got 0"),
    ],
    ids=str,
)
def test_options_out_of_range_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        soma.ModelConfig(**{**SIZES, "block": "llama", **options})


def test_heads_wider_than_the_stream_need_no_multiple() -> None:
    config = soma.ModelConfig(**{**SIZES, "n_heads": 5}, block="llama", head_dim=10, n_kv_heads=1)
    shapes = _core.parameter_shapes(config.core)
    assert shapes["model.layers.1.self_attn.qkv_proj.weight"] == (24, 70)
    assert shapes["model.layers.1.self_attn.o_proj.weight"] == (50, 24)
    assert soma.Model(config).forward([1, 2, 3]).shape == (3, 31)


def test_norms_of_heads_are_parameters_of_their_own() -> None:
    plain, normed = (soma.ModelConfig(**SIZES, block="llama", qk_norm=on) for on in (False, True))
    assert normed.num_parameters == plain.num_parameters + 2 * 2 * plain.head_dim
    added = _core.parameter_shapes(normed.core).keys() - _core.parameter_shapes(plain.core).keys()
    assert added == {f"model.layers.{i}.self_attn.{x}_norm.weight" for i in range(2) for x in "qk"}


def test_what_a_model_of_the_core_refuses_beside() -> None:
    """The core checks what it gets itself: it has no other guard than its own."""
    fields = soma.ModelConfig(**SIZES, block="llama").to_dict()
    for options, message in (
        ({"n_kv_heads": 4}, "n_heads must be a multiple of n_kv_heads"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"head_dim": 5000}, "head_dim must be from 1 to 4096"),
        ({"rope_theta": -1.0}, "rope_theta must be from"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.Config(**{**fields, **options})
