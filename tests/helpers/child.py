"""Runs code in a fresh interpreter: code that changes its process for good, or may end it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# For every child: a small model and batch, and a digest of the parameters.
PRELUDE = """
import hashlib, os, sys
import numpy as np
import soma_native as soma

def batch(rows=4, columns=16, vocab=48, seed=0):
    ids = np.random.default_rng(seed).integers(0, vocab, (rows, columns + 1)).astype(np.int32)
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])

def small_model(seed=0):
    config = soma.ModelConfig(vocab_size=48, d_model=32, n_layers=2, n_heads=4, d_ff=64, max_seq_len=16)
    return soma.Model(config, seed=seed)

def train(model, steps=3):
    optimizer = soma.AdamW(model, lr=1e-2)
    losses = []
    for step in range(steps):
        losses.append(model.loss_and_grad(*batch(seed=step)))
        optimizer.step()
    return losses

def digest(model):
    state = hashlib.sha256()
    for name, value in sorted(model.parameters().items()):
        state.update(name.encode() + value.tobytes())
    return state.hexdigest()
"""


def run_child(
    code: str, cwd: Path, timeout: float = 120, arguments: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, away from the source tree, without the thread settings of this process.

    It computes on the instruction set and in the precision of the run, unless `environment` says otherwise.
    """
    foreign = ("SOMA_NUM_THREADS", "OMP_", "GOMP_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *arguments],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def output_of(code: str, cwd: Path, timeout: float = 120, **environment: str) -> str:
    done = run_child(code, cwd, timeout, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_script(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, with this environment and more."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
