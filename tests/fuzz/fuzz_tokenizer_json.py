"""Fuzzes the reader of tokenizer.json with atheris: a file is refused by name, or read as `tokenizers` reads it.

    python tests/fuzz/fuzz_tokenizer_json.py [options of libFuzzer, such as -max_total_time=30]

What it finds belongs into tests/tokenizer/test_bpe_fuzz.py, which checks the same by `check`.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import tokenizers

from soma_native import CheckpointError, Tokenizer

PROBES = ["the cat's a<|e|>b<t> e\u0301 12 \u212b", " \n\n  ab abab<t>", "\u0301<|e|>\u0338caf\u00e9 the"]
# What is put in the place of something else.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 262, 263, 1 << 24, 1 << 63, 0.5, 1e308, "", "a", "ab", "a b", "\u00e9", "e\u0301",
    "\ud800", "<t>", " ", [], {}, [[]], ["a", "b"], "NFC", {"type": "NFC"}, {"type": "NFD"}, {"type": "Lowercase"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Sequence", "normalizers": []}, {"type": "Sequence", "pretokenizers": []},
]  # fmt: skip


def seeds() -> list[bytes]:
    """Small files of ours that use every part of the format."""
    documents = []
    for pattern in ("gpt2", "cl100k", "qwen2", "o200k"):
        tok = Tokenizer.train(["the cat's the cat caf\u00e9 abab"], "bpe", 262, ["<|e|>"], pattern=pattern)
        with tempfile.TemporaryDirectory() as folder:
            documents.append(json.loads(tok.save(folder).read_text(encoding="utf-8")))
    more = copy.deepcopy(documents[2])
    more["normalizer"] = {"type": "NFC"}
    more["model"]["ignore_merges"] = True
    more["model"]["merges"] = [merge.split(" ") for merge in more["model"]["merges"]]
    token = more["added_tokens"][0]
    for i, content in enumerate(("<t>", "e\u0301", " "), 1):
        more["added_tokens"].append({**token, "id": token["id"] + i, "content": content, "special": False})
    more["added_tokens"][2]["normalized"] = more["added_tokens"][1]["lstrip"] = True
    more["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return [json.dumps(document).encode() for document in [*documents, more]]


def mutate(data: bytes, seed: int) -> bytes:
    """The document with a few of its values changed, moved or taken away."""
    rng = random.Random(seed)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(document, (dict, list)):
        return data
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        stack = [document]
        while stack:
            node = stack.pop()
            keys = list(node) if isinstance(node, dict) else range(len(node))
            few = list(keys) if len(keys) < 20 else rng.sample(list(keys), 20)  # else all would be vocabulary
            places += [(node, key) for key in few]
            stack += [node[key] for key in few if isinstance(node[key], (dict, list))]
        if not places:
            break
        node, key = rng.choice(places)
        what = rng.randrange(5)
        if what == 0:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        elif what == 1:
            del node[key]
        elif what == 2:
            other, there = rng.choice(places)
            if isinstance(other, dict) or there < len(other):
                node[key] = copy.deepcopy(other.get(there) if isinstance(other, dict) else other[there])
        elif isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif isinstance(node[key], bool):
            node[key] = not node[key]
        elif isinstance(node[key], int):
            node[key] += rng.choice((-1, 1))
        else:
            node[rng.choice(("type", "more", "a", "<t>", "q"))] = node.pop(key)
    return json.dumps(document).encode()


def check(data: bytes) -> None:
    """Refused in one line, or read as `tokenizers` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(data)
        try:
            tok = Tokenizer.load(path)
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, error
            return
        saved = tok.save(Path(folder) / "saved")
        again = Tokenizer.load(saved)
        try:
            theirs = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # a file that lacks what they ask for; and a panic of theirs is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return
        for text in PROBES:
            expected = theirs.encode(text, add_special_tokens=False).ids
            assert tok.encode(text, allowed_special="all") == expected, text
            assert again.encode(text, allowed_special="all") == expected, text


def main() -> None:
    """Fuzz, as the command line says."""
    import atheris

    with atheris.instrument_imports():
        pass

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        changed = mutate(data, seed) if seed % 4 else atheris.Mutate(data, most)
        return bytes(changed)[:most]

    with tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(seeds()):
            (Path(corpus) / str(i)).write_bytes(seed)
        atheris.Setup([sys.argv[0], "-max_len=20000", *sys.argv[1:], corpus], check, custom_mutator=mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
