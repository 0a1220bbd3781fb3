"""`transformers` as a contender: GPT2LMHeadModel scores a text in the same windows.

It reads batches of windows and applies its head to scored tokens alone, as its users can. float32 or bfloat16 weights,
eager or with torch.compile.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

import soma_native as soma

BATCH = 4096  # tokens of a forward pass


class TransformersScorer:
    """Modes: fp32-eager, fp32-compile, bf16-eager, bf16-compile. The text is encoded before the clock starts."""

    def __init__(self, folder: str, text: str, mode: str, threads: int) -> None:
        precision, _, how = mode.partition("-")
        torch.set_num_threads(threads)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = GPT2LMHeadModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.states = torch.compile(self.model.transformer) if how == "compile" else self.model.transformer
        ids = soma.Tokenizer.load(folder).encode_array(Path(text).read_text(encoding="utf-8"))
        tokens = torch.from_numpy(ids.astype("int64"))
        longest = self.model.config.n_positions
        windows, done = [], 0
        for begin in range(0, len(tokens) - 1, longest // 2):
            end = min(begin + longest, len(tokens) - 1)
            windows.append((tokens[begin:end], tokens[begin + 1 : end + 1], end - done))
            done = end
            if end == len(tokens) - 1:
                break
        last = windows.pop()
        size = max(1, BATCH // longest)
        chunks = [windows[at : at + size] for at in range(0, len(windows), size)] + [[last]]
        self.batches = []
        for chunk in chunks:
            rows, targets = (torch.stack([window[i] for window in chunk]) for i in (0, 1))
            before = rows.shape[1] - torch.tensor([window[2] for window in chunk])
            fresh = torch.arange(rows.shape[1]) >= before[:, None]
            self.batches.append((rows, fresh, targets[fresh]))

    @torch.inference_mode()
    def score(self) -> list[float]:
        """The log-probability of every token but the first."""
        found = []
        for rows, fresh, targets in self.batches:
            states = self.states(input_ids=rows, use_cache=False).last_hidden_state[fresh]
            found.append(-F.cross_entropy(self.model.lm_head(states).float(), targets, reduction="none"))
        return torch.cat(found).tolist()
