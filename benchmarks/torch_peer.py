"""PyTorch as people train with it: a GPT-2 written the usual way, and the soma block to check ours.

It uses scaled_dot_product_attention(is_causal=True), fused AdamW with two groups and clip_grad_norm_. It runs eager or
with torch.compile, in float32 or with bfloat16 autocast.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from common import Workload
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module):
    """One transformer block: pre-norm with GELU for gpt2, post-norm with ReLU for soma."""

    def __init__(self, w: Workload) -> None:
        super().__init__()
        d, biased = w.config.d_model, w.config.block == "gpt2"
        self.heads, self.post = w.config.n_heads, w.config.block == "soma"
        self.ln_1 = nn.LayerNorm(d, eps=1e-5 if biased else 1e-6, elementwise_affine=biased)
        self.c_attn = nn.Linear(d, 3 * d, bias=biased)
        self.c_proj = nn.Linear(d, d, bias=biased)
        self.ln_2 = nn.LayerNorm(d, eps=1e-5 if biased else 1e-6, elementwise_affine=biased)
        self.c_fc = nn.Linear(d, w.config.d_ff)
        self.c_out = nn.Linear(w.config.d_ff, d)

    def attend(self, x: Tensor) -> Tensor:
        """Causal self-attention of (B, T, d)."""
        rows, length, d = x.shape
        q, k, v = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(d, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(rows, length, d))

    def mlp(self, x: Tensor) -> Tensor:
        """The feed-forward part."""
        hidden = self.c_fc(x)
        return self.c_out(F.relu(hidden) if self.post else F.gelu(hidden, approximate="tanh"))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        if self.post:
            x = self.ln_1(x + self.attend(x))
            return self.ln_2(x + self.mlp(x))
        x = x + self.attend(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class LlamaLayer(nn.Module):
    """One llama block: RMSNorm, rotary positions, SwiGLU, shared heads of keys, norms of heads where asked for."""

    def __init__(self, w: Workload) -> None:
        super().__init__()
        config = w.config
        self.size, self.q, self.kv = config.head_dim, config.n_heads, config.n_kv_heads
        d, f, eps = config.d_model, config.d_ff, config.norm_eps
        self.norm1, self.norm2 = nn.RMSNorm(d, eps=eps), nn.RMSNorm(d, eps=eps)
        self.q_norm = nn.RMSNorm(self.size, eps=eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.size, eps=eps) if config.qk_norm else nn.Identity()
        self.qkv = nn.Linear(d, (self.q + 2 * self.kv) * self.size, bias=False)
        self.o = nn.Linear(self.q * self.size, d, bias=False)
        self.gate_up, self.down = nn.Linear(d, 2 * f, bias=False), nn.Linear(f, d, bias=False)
        frequencies = config.rope_theta ** (-torch.arange(0, self.size, 2, dtype=torch.float64) / self.size)
        angles = torch.outer(torch.arange(w.seq_len, dtype=torch.float64), frequencies)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        """Heads (B, H, T, D) with their halves turned."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (-1, self.size)).transpose(1, 2)
        q, k, v = heads.split([self.q, self.kv, self.kv], dim=1)
        q, k = self.rotate(self.q_norm(q)), self.rotate(self.k_norm(k))
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True, enable_gqa=self.q != self.kv)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


LLAMA_NAMES = {  # ours -> here, of a layer
    "input_layernorm": "norm1", "post_attention_layernorm": "norm2", "self_attn.qkv_proj": "qkv",
    "self_attn.o_proj": "o", "self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm", "mlp.gate_up_proj": "gate_up",
    "mlp.down_proj": "down",
}  # fmt: skip


class Transformer(nn.Module):
    """The whole model; forward gives the loss, as training needs it."""

    def __init__(self, w: Workload) -> None:
        super().__init__()
        self.wte = nn.Embedding(w.config.vocab_size, w.config.d_model)
        rotary = w.config.block == "llama"
        self.wpe = None if rotary else nn.Embedding(w.config.max_seq_len, w.config.d_model)
        self.layers = nn.ModuleList(LlamaLayer(w) if rotary else Layer(w) for _ in range(w.config.n_layers))
        self.ln_f: nn.Module = nn.LayerNorm(w.config.d_model, eps=1e-5) if w.config.block == "gpt2" else nn.Identity()
        if rotary:
            self.ln_f = nn.RMSNorm(w.config.d_model, eps=w.config.norm_eps)
        self.lm_head = nn.Linear(w.config.d_model, w.config.vocab_size, bias=False)
        if w.config.tied_head:
            self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood of targets (B, T)."""
        x = self.wte(ids)
        if self.wpe is not None:
            x = x + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def load(model: Transformer, w: Workload, params: dict[str, Any]) -> None:
    """Copy weights that have the names of soma_native and the shape (in, out)."""
    parts = {"ln_1": "ln_1", "ln_2": "ln_2", "attn.c_attn": "c_attn", "attn.c_proj": "c_proj"}
    parts |= {"mlp.c_fc": "c_fc", "mlp.c_proj": "c_out"}
    ours = {"attn.c_attn.weight": "attn.w_qkv", "attn.c_proj.weight": "attn.w_proj", "mlp.c_fc.weight": "mlp.w_fc"}
    ours |= {"mlp.c_fc.bias": "mlp.b_fc", "mlp.c_proj.weight": "mlp.w_proj", "mlp.c_proj.bias": "mlp.b_proj"}
    target = dict(model.named_parameters())
    names = {"wte.weight": "wte", "wpe.weight": "wpe", "lm_head.weight": "lm_head"}
    if w.config.block == "gpt2":
        names = {"wte.weight": "transformer.wte.weight", "wpe.weight": "transformer.wpe.weight"}
        names |= {"lm_head.weight": "lm_head.weight"}
        names |= {f"ln_f.{kind}": f"transformer.ln_f.{kind}" for kind in ("weight", "bias")}
    if w.config.block == "llama":
        names = {"wte.weight": "model.embed_tokens.weight", "ln_f.weight": "model.norm.weight"}
        names |= {"lm_head.weight": "lm_head.weight"}
        for i in range(w.config.n_layers):
            names |= {
                f"layers.{i}.{here}.weight": f"model.layers.{i}.{own}.weight" for own, here in LLAMA_NAMES.items()
            }
        parts = {}
    for i in range(w.config.n_layers):
        for theirs, here in parts.items():
            for kind in ("weight", "bias"):
                name = f"{theirs}.{kind}"
                source = f"transformer.h.{i}.{name}" if w.config.block == "gpt2" else f"h.{i}.{ours.get(name)}"
                names[f"layers.{i}.{here}.{kind}"] = source
    with torch.no_grad():
        for name, tensor in target.items():
            value = torch.from_numpy(params[names[name]])
            tensor.copy_(value.T if name.startswith("layers.") and value.ndim == 2 else value)


class TorchTrainer:
    """A training step of PyTorch in one of its modes: fp32-eager, fp32-compile, bf16-eager, bf16-compile."""

    def __init__(
        self, w: Workload, mode: str, threads: int, lr: float, params: dict[str, Any], device: str = "cpu"
    ) -> None:
        precision, _, how = mode.partition("-")
        torch.set_num_threads(threads)
        self.model = Transformer(w)
        load(self.model, w, params)
        self.model.to(device)
        self.device = torch.device(device)
        self.weights = list(self.model.parameters())
        groups = [
            {"params": [p for p in self.weights if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in self.weights if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self.loss = torch.compile(self.model) if how == "compile" else self.model
        self.autocast = precision == "bf16"
        self.parameters = sum(p.numel() for p in self.weights)

    def batch(self, ids: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """A batch as tensors of the type that PyTorch needs, made before the clock starts."""
        return torch.from_numpy(ids).long().to(self.device), torch.from_numpy(targets).long().to(self.device)

    def step(self, batch: tuple[Tensor, Tensor]) -> float:
        """Forward, backward, clip, AdamW; return the loss before the update."""
        cast: Any = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with cast:
            loss = self.loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.item())
