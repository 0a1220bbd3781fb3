"""Token healing on a trained model: what the text goes on with, in nats, after prompts that end inside a token.

    python benchmarks/quality_healing.py MODEL_FOLDER UNSEEN_TEXT --prompts 200

A prompt ends within a token of the text: behind a space that begins it, or behind some of its letters. The true rest of
the word has a cost: the sum over its tokens, the first of them drawn as the generator draws it. Beside it stands the
cost of the whole word after the prompt without that end. Healing promises at most 0.3 nats more; without it, the model
reads tokens that training never showed there. "a word that goes on" ends in a whole word, which stays as it is.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from pathlib import Path

import numpy as np
from common import print_table

import soma_native as soma
from soma_native.generation.sampling import Sampling

CONTEXT = 150  # characters before the word


def spelled(pieces: dict[bytes, int], rest: bytes, logits: np.ndarray) -> list[int]:
    """Bytes as the longest tokens that fit, one after the other. The first must be one that can be drawn."""
    ids: list[int] = []
    while rest:
        sizes = range(min(len(rest), 64), 0, -1)
        found = (size for size in sizes if rest[:size] in pieces and (ids or np.isfinite(logits[pieces[rest[:size]]])))
        size = next(found)
        ids.append(pieces[rest[:size]])
        rest = rest[size:]
    return ids


def cost(generator: soma.Generator, pieces: dict[bytes, int], prompt: str, text: str, heal: bool) -> float:
    """The nats of `text` after `prompt`. `pieces`: the bytes of all tokens."""
    sequence = generator._sequence(prompt, Sampling.of(heal_prompt=heal))
    forward, tok = generator._model.forward, generator._tok
    logits = forward(np.array(sequence.context))[-1].astype(np.float64)
    while not sequence.read(logits.astype(np.float32)):
        logits = forward(np.array(sequence.context))[-1].astype(np.float64)
    if sequence.rest:
        kept = np.full_like(logits, -np.inf)
        allowed = tok._token_table().extending(sequence.rest)
        kept[allowed] = logits[allowed]
        logits = kept
    own = sequence.prompt_ids
    whole = tok.encode(prompt + text)
    ids = whole[len(own) :]
    if whole[: len(own)] != own or not np.isfinite(logits[ids[0]]):
        ids = spelled(pieces, sequence.rest + text.encode(), logits)
    read = np.array([*sequence.context, *ids])
    rows = np.vstack([logits, forward(read)[len(sequence.context) : -1]])
    most = rows.max(axis=1)
    sums = most + np.log(np.exp(rows - most[:, None]).sum(axis=1))
    return float((sums - rows[np.arange(len(ids)), ids]).sum())


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a model with a tokenizer of kind bpe")
    parser.add_argument("text", type=Path, help="UTF-8 text that it was not trained on")
    parser.add_argument("--prompts", type=int, default=200, help="of each kind")
    args = parser.parse_args()
    model, tok = soma.load(args.folder)
    generator, text = soma.Generator(model, tok), args.text.read_text(encoding="utf-8")
    pieces = {tok.decode_bytes([i]): i for i in range(tok.vocab_size)}
    rng, words = np.random.default_rng(0), [*re.finditer(r"(?<=\S) ?\w+", text[: 1 << 20])]
    known = {word[0].strip().lower() for word in words}
    found: dict[str, list[tuple[float, float, float]]] = {"space": [], "half a word": [], "a word that goes on": []}
    for at in rng.permutation(len(words)):
        word, begin = words[at][0], words[at].start()
        before = text[max(0, begin - CONTEXT) : begin]
        first = tok.decode(tok.encode(before + word)[len(tok.encode(before)) :][:1])
        cuts = {"space": 1 if word[0] == " " and len(word) > 1 else 0}
        if len(first.strip()) > 1 and word.startswith(first):  # a token that a prompt can end in
            cut = int(rng.integers(2 if first[0] == " " else 1, len(first)))
            cuts["a word that goes on" if word[:cut].strip().lower() in known else "half a word"] = cut
        for kind, cut in cuts.items():
            if cut and len(found[kind]) < args.prompts and len(before) == CONTEXT:
                end, rest = before + word[:cut], word[cut:]
                healed, given = (cost(generator, pieces, end, rest, heal) for heal in (True, False))
                found[kind].append((healed, given, cost(generator, pieces, before, word, False)))
        if all(len(costs) >= args.prompts for costs in found.values()):
            break
    rows = []
    for kind, costs in found.items():
        if costs:
            healed, given = ([cost[i] - cost[2] for cost in costs] for i in (0, 1))
            over = sum(more > 0.3 for more in healed)
            means = [f"{statistics.fmean(part):+.2f}" for part in (healed, given)]
            rows.append([kind, str(len(costs)), *means, f"{max(healed):+.2f}", f"{over} ({over / len(costs):.0%})"])
    print_table(["end of the prompt", "prompts", "healed", "as given", "healed, worst", "above 0.3"], rows)
    if not all(math.isfinite(cost[0]) for costs in found.values() for cost in costs):
        raise SystemExit("quality_healing: a true word cannot be drawn")


if __name__ == "__main__":
    main()
