"""PyTorch as the second oracle: the same models in torch, with its autograd, AdamW and clipping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.noise import NOISE, masks
from helpers.numerics import relative_error
from oracles import reference as ref
from oracles.noise import NONE

torch = pytest.importorskip("torch")
F = torch.nn.functional

pytestmark = pytest.mark.levels("sse")

PROMISED = 1e-5  # norm-wise relative error of a gradient in float32
MODELS = [
    ref.Config(61, 48, 3, 4, 96, 40, "soma", False),
    ref.Config(61, 48, 3, 4, 96, 40, "soma", True),
    ref.Config(61, 48, 3, 4, 96, 40, "gpt2", True),
    ref.Config(61, 48, 3, 4, 96, 40, "gpt2", False),
    ref.Config(61, 48, 3, 4, 96, 40, "llama", False, n_kv_heads=2, qk_norm=True),
    ref.Config(61, 48, 3, 4, 96, 40, "llama", True, n_kv_heads=1, head_dim=20, rope_theta=500.0, norm_eps=1e-5),
    ref.Config(301, 72, 2, 3, 37, 130, "gpt2", True),
    ref.Config(301, 72, 2, 3, 37, 130, "soma", False),
    ref.Config(301, 72, 2, 3, 37, 130, "llama", False, n_kv_heads=1, qk_norm=True),
    ref.Config(61, 48, 3, 4, 96, 40, "gpt2", True, "gelu", scale_attn_by_inverse_layer_idx=True),
    ref.Config(61, 48, 3, 4, 96, 40, "gpt2", True, "relu", scale_attn_weights=False),
]
NAMES = [f"{c.block}-{'tied' if c.tied_head else 'untied'}-V{c.vocab_size}-{c.activation}" for c in MODELS]

GELU = {"gelu_tanh": "tanh", "gelu": "none"}  # torch's words


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """With tiny tensors, the threads of two runtimes would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torch_logits(params: dict[str, Any], config: ref.Config, ids: Any, masks: ref.Masks = NONE) -> Any:
    """Logits (B, T, V), written with torch's own norms, activations and scaled_dot_product_attention."""
    names = ref.MODEL_NAMES[config.block]
    h = F.embedding(ids, params[names["wte"]])

    def factors(mask: ref.Array) -> Any:
        return torch.as_tensor(mask, dtype=h.dtype)

    h = h * factors(masks.tokens)
    if "wpe" in names:
        h = h + params[names["wpe"]][: ids.shape[1]]
    h = h * factors(masks.embedding)
    for layer in range(config.n_layers):
        found = {role: params.get(name.format(layer)) for role, name in ref.LAYER_NAMES[config.block].items()}
        scale = config.head_size**-0.5 if config.scale_attn_weights else 1.0
        scale /= layer + 1 if config.scale_attn_by_inverse_layer_idx else 1
        dropped = factors(masks.attention[layer]), factors(masks.mlp[layer])
        h = TORCH_BLOCKS[config.block](h, found, config, scale, *dropped)
    if "norm_b" in names:
        h = F.layer_norm(h, (config.d_model,), params[names["norm_w"]], params[names["norm_b"]], 1e-5)
    elif "norm_w" in names:
        h = F.rms_norm(h, (config.d_model,), params[names["norm_w"]], config.norm_eps or 1e-6)
    return h @ params[names["wte" if config.tied_head else "head"]].T


def heads_of(x: Any, config: ref.Config) -> list[Any]:
    """q, k and v (B, heads, T, D)."""
    parts = x.split([config.q_dim, config.kv_dim, config.kv_dim], dim=-1)
    return [part.unflatten(-1, (-1, config.head_size)).transpose(1, 2) for part in parts]


def attend(q: Any, k: Any, v: Any, scale: float) -> Any:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=scale)
    return y.transpose(1, 2).flatten(2)


def soma_block(x: Any, p: dict[str, Any], config: ref.Config, scale: float, drop1: Any, drop2: Any) -> Any:
    def norm(x: Any) -> Any:
        return F.layer_norm(x, (config.d_model,), eps=1e-6)

    h = norm(x + drop1 * (attend(*heads_of(x @ p["w_qkv"], config), scale) @ p["w_proj"]))
    return norm(h + drop2 * (F.relu(h @ p["w_fc"] + p["b_fc"]) @ p["w_out"] + p["b_out"]))


def gpt2_block(x: Any, p: dict[str, Any], config: ref.Config, scale: float, drop1: Any, drop2: Any) -> Any:
    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, (config.d_model,), p[f"{name}_w"], p[f"{name}_b"], 1e-5)

    qkv = norm(x, "norm1") @ p["w_qkv"] + p["b_qkv"]
    h = x + drop1 * (attend(*heads_of(qkv, config), scale) @ p["w_proj"] + p["b_proj"])
    hidden = norm(h, "norm2") @ p["w_fc"] + p["b_fc"]
    name = config.activation or "gelu_tanh"
    activated = F.relu(hidden) if name == "relu" else F.gelu(hidden, approximate=GELU[name])
    return h + drop2 * (activated @ p["w_out"] + p["b_out"])


def llama_block(x: Any, p: dict[str, Any], config: ref.Config, scale: float, drop1: Any, drop2: Any) -> Any:
    def norm(x: Any, gain: Any) -> Any:
        return F.rms_norm(x, (x.shape[-1],), gain, config.norm_eps or 1e-6)

    def rotate(x: Any) -> Any:
        """As complex numbers, whose parts are the halves of a head."""
        size = x.shape[-1]
        frequencies = (config.rope_theta or 10000.0) ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequencies
        halves = torch.stack(x.chunk(2, dim=-1), dim=-1).contiguous()
        turned = torch.view_as_complex(halves) * torch.polar(torch.ones_like(angles), angles).to(x.dtype.to_complex())
        return torch.cat(torch.view_as_real(turned).unbind(-1), dim=-1)

    q, k, v = heads_of(norm(x, p["norm1_w"]) @ p["w_qkv"], config)
    if config.qk_norm:
        q, k = norm(q, p["q_norm"]), norm(k, p["k_norm"])
    h = x + drop1 * (attend(rotate(q), rotate(k), v, scale) @ p["w_proj"])
    gate, up = (norm(h, p["norm2_w"]) @ p["w_fc"]).chunk(2, dim=-1)
    return h + drop2 * ((F.silu(gate) * up) @ p["w_out"])


TORCH_BLOCKS = {"soma": soma_block, "gpt2": gpt2_block, "llama": llama_block}


def torch_loss(
    params: dict[str, Any], config: ref.Config, ids: ref.Array, targets: ref.Array, masks: ref.Masks = NONE
) -> Any:
    logits = torch_logits(params, config, torch.from_numpy(ids).long(), masks)
    return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).long().flatten(), ignore_index=ref.IGNORE)


def to_torch(params: ref.Params, dtype: Any) -> dict[str, Any]:
    return {name: torch.tensor(value, dtype=dtype).requires_grad_() for name, value in params.items()}


def batch(config: ref.Config, rows: int, length: int, seed: int) -> tuple[ref.Array, ref.Array]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, (rows, length + 1)).astype(np.int32)
    targets = ids[:, 1:].copy()
    targets[0, length // 3] = ref.IGNORE
    return np.ascontiguousarray(ids[:, :-1]), targets


def native(config: ref.Config, params: ref.Params) -> soma.Model:
    model = soma.Model(soma.ModelConfig(**config.to_dict()), precision="float32")
    for name in model.parameters():
        model.write(name, params[name])
    return model


@pytest.mark.levels()
@pytest.mark.parametrize("config", MODELS, ids=NAMES)
def test_the_two_oracles_agree(config: ref.Config) -> None:
    """In float64 the NumPy reference and torch's autograd differ by rounding alone."""
    params = ref.random_parameters(config, seed=1)
    ids, targets = batch(config, 3, config.max_seq_len, seed=2)
    tensors = to_torch(params, torch.float64)
    loss = torch_loss(tensors, config, ids, targets)
    loss.backward()
    want, grads = ref.loss_and_grad(params, config, ids, targets)
    assert loss.item() == pytest.approx(want, rel=1e-12)
    for name, tensor in tensors.items():
        assert relative_error(grads[name], tensor.grad.numpy()) < 1e-10, name


@pytest.mark.parametrize("config", MODELS, ids=NAMES)
@pytest.mark.parametrize("std", [0.02, 0.2])
def test_logits_and_every_gradient(config: ref.Config, std: float) -> None:
    params = ref.random_parameters(config, seed=5, std=std)
    ids, targets = batch(config, 3, config.max_seq_len, seed=6)
    tensors = to_torch(params, torch.float32)
    loss = torch_loss(tensors, config, ids, targets)
    loss.backward()
    model = native(config, params)
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss.item(), rel=PROMISED)
    with torch.no_grad():
        logits = torch_logits(tensors, config, torch.from_numpy(ids).long())
    assert relative_error(model.forward(ids), logits.numpy()) < PROMISED
    errors = {name: relative_error(grad, tensors[name].grad.numpy()) for name, grad in model.gradients().items()}
    assert max(errors.values()) < PROMISED, errors


@pytest.mark.parametrize("config", MODELS, ids=NAMES)
def test_every_gradient_with_noise(config: ref.Config) -> None:
    """Dropout and masked tokens, with the masks of the core."""
    params = ref.random_parameters(config, seed=5, std=0.1)
    ids, targets = batch(config, 3, config.max_seq_len, seed=6)
    tensors = to_torch(params, torch.float32)
    loss = torch_loss(tensors, config, ids, targets, masks(config, *ids.shape, **NOISE))
    loss.backward()
    model = native(config, params)
    assert model.loss_and_grad(ids, targets, **NOISE) == pytest.approx(loss.item(), rel=PROMISED)
    errors = {name: relative_error(grad, tensors[name].grad.numpy()) for name, grad in model.gradients().items()}
    assert max(errors.values()) < PROMISED, errors


@pytest.mark.parametrize("config", MODELS[:6], ids=NAMES[:6])
def test_ten_optimizer_steps(config: ref.Config) -> None:
    """torch.optim.AdamW with two groups and clip_grad_norm_, at a rate where the loss falls and clipping bites."""
    lr, betas, eps, decay, max_norm = 3e-3, (0.9, 0.95), 1e-8, 0.1, 0.5
    params = ref.random_parameters(config, seed=7, std=0.1)
    tensors = to_torch(params, torch.float32)
    groups = [
        {"params": [t for t in tensors.values() if t.ndim >= 2], "weight_decay": decay},
        {"params": [t for t in tensors.values() if t.ndim < 2], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)
    model = native(config, params)
    ours = soma.AdamW(model, lr=lr, betas=betas, eps=eps, weight_decay=decay, max_grad_norm=max_norm)
    oracle = ref.AdamW(lr=lr, betas=betas, eps=eps, weight_decay=decay, max_grad_norm=max_norm)
    ids, targets = batch(config, 4, config.max_seq_len, seed=8)
    losses, clipped = [], 0
    for step in range(10):
        rate = lr * (1 + step) / 10
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.zero_grad()
        loss = torch_loss(tensors, config, ids, targets)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(list(tensors.values()), max_norm))
        theirs.step()
        clipped += norm > max_norm
        losses.append(loss.item())

        assert model.loss_and_grad(ids, targets) == pytest.approx(loss.item(), rel=1e-4), step
        assert ours.step(lr=rate) == pytest.approx(norm, rel=1e-3), step
        exact, grads = ref.loss_and_grad(params, config, ids, targets)
        assert exact == pytest.approx(loss.item(), rel=1e-4), step
        oracle.step(params, grads, lr=rate)
    assert losses[-1] < losses[0] - 0.1
    assert clipped > 0
    assert ours.step_count == 10
    for name, value in model.parameters().items():
        assert relative_error(value, params[name]) < 1e-3, name
