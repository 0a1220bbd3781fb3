"""The regular expressions of the BPE patterns, as tiktoken and Hugging Face files write them, and texts to try."""

from __future__ import annotations

import random

_CASED = (
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*""",
)
# Numbers to the step Digits of `tokenizers`, whose Unicode is newer than that of its expressions.
NEW_NUMBERS = "\U00011de0-\U00011de9\U00016ff4-\U00016ff6"

# From tiktoken_ext.openai_public of tiktoken 0.14, from nanochat, and from the tokenizer.json of the others.
# StarCoder's file has two steps; the one expression here does both.
PATTERNS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"""
    r"""|\s*[\r\n]|\s+(?!\S)|\s""",
    "llama3": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "qwen2": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "o200k": "|".join(
        [
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    ),
    "nanochat": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"""
    r"""|\s+(?!\S)|\s+""",
    "starcoder": rf"""[\p{{N}}{NEW_NUMBERS}]|'(?:[sdmt]|ll|ve|re)| ?\p{{L}}+| ?[^\s\p{{L}}\p{{N}}{NEW_NUMBERS}]+"""
    rf"""|\s++(?=[\p{{N}}{NEW_NUMBERS}])|\s+(?!\S)|\s+""",
    "tekken": rf"""{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "qwen3.5": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+""",
}

# One or two characters of every class, and of every set that a rule names.
CHARACTERS = [
    *" \t\n\r\v'aAzZsStTdDmMlLvVrReE019.,!/-_\"(<\0", "ſ", "\u00a0", "\u3000", "\u2028", "\x85", "é", "É", "中", "ⅷ",
    "²", "٣", "\u0301", "\u0903", "ǅ", "ʰ", "ª", "😀", "\u200d", "İ", "ß", "\u212a", "’", "Я", "न",
    "\u094d", "\U000e0100", "\U00011de1",
]  # fmt: skip
PIECES = [*CHARACTERS, "'s", "'ll", "'RE", "'ve", "'T", "'ſ", "  ", "\n\n", "\n ", " \n", "!\n/", "//", "\r\n", "aB"]
ALL_CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
# All that are assigned, and each 17th of the others: planes 4 to 13 have none, 15 and 16 are private.
ASSIGNED_CHARACTERS = [c for c in ALL_CHARACTERS if ord(c) < 0x40000 or ord(c) >> 12 == 0xE0 or ord(c) % 17 == 0]


def random_text(source: random.Random) -> str:
    """Texts of pieces that the rules name, of any characters, and of both within ordinary English."""
    kind = source.randrange(4)
    if kind == 0:
        return "".join(source.choices(PIECES, k=source.randrange(1, 12)))
    if kind == 1:
        return "".join(source.choices(ALL_CHARACTERS, k=source.randrange(1, 40)))
    words = [
        "the",
        " cat",
        " sat",
        " on",
        ", ",
        " Don't",
        " HTMLParser",
        " 12345",
        ".\n",
        "\n\n    return",
        " x_1",
        "(",
    ]
    parts = [*source.choices(words, k=source.randrange(5, 40)), *source.choices(PIECES, k=kind)]
    source.shuffle(parts)
    return "".join(parts)
