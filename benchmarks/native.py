"""soma_native as a contender: a training step, decoding token by token, many texts at once, scores of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import Workload, initial_parameters

import soma_native as soma
from soma_native import _core
from soma_native.generation.sampling import kv_cache_of


def build(w: Workload, precision: str, params: dict[str, Any], device: str) -> soma.Model:
    """Our model of a workload, holding the given weights."""
    model = soma.Model(w.config, precision=precision, device=device)
    names = model.parameters().keys()
    assert names == params.keys(), sorted(names ^ params.keys())
    for name in names:
        model.write(name, params[name])
    return model


class NativeTrainer:
    """Our training step, through the public Python interface."""

    def __init__(self, w: Workload, precision: str, lr: float, params: dict[str, Any], device: str) -> None:
        self.model = build(w, precision, params, device)
        self.optimizer = soma.AdamW(self.model, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=1.0)
        self.parameters = self.model.num_parameters
        self.isa = soma.active_isa()

    def batch(self, ids: Any, targets: Any) -> tuple[Any, Any]:
        """A batch as our model takes it: the arrays themselves."""
        return ids, targets

    def step(self, batch: tuple[Any, Any]) -> float:
        """Forward, backward, clip, AdamW; return the loss before the update."""
        loss = self.model.loss_and_grad(*batch)
        self.optimizer.step()
        return loss


class NativeDecoder:
    """Our cached decoding of one sequence, called from Python as soma_native.Generator calls it.

    Modes: live (Generator's weights="auto"), float32, bfloat16, int8.
    """

    def __init__(self, w: Workload, weights: str, device: str) -> None:
        self.model = build(w, "float32", initial_parameters(w), device)
        self.parameters = self.model.num_parameters
        kept = None if weights == "live" else _core.DecodeWeights(self.model._core, weights)
        kv_cache = kv_cache_of("auto" if weights == "live" else weights, "auto")
        self.decoder = _core.Decoder(self.model._core, 1, kept, kv_cache)
        self.row = np.zeros(1, np.int32)
        self.vocab_size = w.config.vocab_size

    def prefill(self, ids: list[int]) -> None:
        """Read a prompt into an empty cache and compute the logits after its last token."""
        self.decoder.prefill(0, np.array(ids, np.int32))

    def decode(self, ids: list[int]) -> None:
        """Feed the given tokens one at a time and compute the logits after each, like tg of llama-bench."""
        tokens = np.array(ids, np.int32)
        self.decoder.prefill(0, tokens[:1])
        for i in range(1, len(tokens)):
            self.decoder.step(self.row, tokens[i : i + 1])

    def sample(self, ids: list[int]) -> None:
        """Choose each next token from the logits with top-k, top-p and repetition penalty, as generate() does."""
        sampler = _core.Sampler(
            vocab_size=self.vocab_size,
            temperature=0.7,
            top_k=50,
            top_p=0.95,
            repetition_penalty=1.15,
            seed=0,
            banned_ids=np.zeros(0, np.int32),
        )
        self.decoder.prefill(0, np.array(ids[:1], np.int32))
        token = np.zeros(1, np.int32)
        logits = self.decoder.logits()[0]
        for _ in range(1, len(ids)):
            token[0] = sampler.sample(logits)
            self.decoder.step(self.row, token)

    def logits(self, ids: list[int]) -> list[float]:
        """The logits after the last of ids. The first half is a prompt, the second half is decoded."""
        half = max(1, len(ids) // 2)
        tokens = np.array(ids, np.int32)
        self.decoder.prefill(0, tokens[:half])
        for i in range(half, len(tokens)):
            self.decoder.step(self.row, tokens[i : i + 1])
        return [float(x) for x in self.decoder.logits()[0]]


class NativeScorer:
    """Our scores of a text, as the public interface gives them: with its tokens, their places and ranks."""

    def __init__(self, folder: str, text: str, precision: str) -> None:
        model, tok = soma.load(folder, precision=precision)
        self.parameters = model.num_parameters
        self.generator = soma.Generator(model, tok)
        self.text = Path(text).read_text(encoding="utf-8")

    def score(self) -> list[float | None]:
        """The log-probability of every token but the first."""
        return self.generator.score(self.text).logprobs[1:]


class NativeEngine:
    """Texts of random prompts, all at once by an engine, or one generate() after the other.

    Args:
        preset: the sizes of the model, whose weights are random.
        peer_block: whether it is of a block that llama.cpp has, if its own is not.
        weights: live (Generator's weights="auto"), float32, bfloat16, int8.
        sequences, prompt, tokens: the number of texts, and the tokens of each prompt and text.
    """

    def __init__(self, preset: str, peer_block: bool, weights: str, sequences: int, prompt: int, tokens: int) -> None:
        config = soma.ModelConfig.preset(preset)
        if peer_block and config.block == "soma":
            config = Workload(preset, config, 0, 0).as_block("gpt2").config
        self.model = soma.Model(config, seed=1)
        self.parameters = self.model.num_parameters
        characters = "".join(chr(0x4E00 + i) for i in range(config.vocab_size - 1))
        self.tok = soma.Tokenizer.train([characters], kind="char", special_tokens=("<|endoftext|>",))
        self.ids = np.random.default_rng(5).integers(1, config.vocab_size, (sequences, prompt)).tolist()
        self.prompts = [self.tok.decode(ids) for ids in self.ids]
        form = "auto" if weights == "live" else weights
        self.generator = soma.Generator(self.model, self.tok, end_token=None, weights=form)
        self.engine = soma.Engine(self.model, self.tok, sequences, end_token=None, weights=form)
        self.tokens = tokens

    def alone(self) -> list[str]:
        """One text after the other."""
        return [
            self.generator.generate(prompt, max_tokens=self.tokens, seed=seed)
            for seed, prompt in enumerate(self.prompts)
        ]

    def together(self) -> list[str]:
        """All texts at once."""
        handles = [
            self.engine.submit(prompt, max_tokens=self.tokens, seed=seed) for seed, prompt in enumerate(self.prompts)
        ]
        return [prompt + handle.result().text for prompt, handle in zip(self.prompts, handles, strict=True)]

    def export(self, path: str, form: str) -> dict[str, Any]:
        """Write the model for llama.cpp, and say what its logits must be after a prompt."""
        soma.export_gguf(path, self.model, self.tok, form)
        logits = self.model.forward(np.array(self.ids[0]))[-1].tolist()
        config = self.model.config
        return {"context": config.max_seq_len, "vocab_size": config.vocab_size, "ids": self.ids[0], "logits": logits}
