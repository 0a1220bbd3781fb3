"""The regular expressions that byte-level BPE splits text by, and the rules of the core that do the same.

The published expressions are made of the same few alternatives. One made of these is understood, whoever wrote it.
"""

from __future__ import annotations

import re

from soma_native.core import _core
from soma_native.errors import ArgumentError
from soma_native.tokenizer.bpe_vocabulary import PATTERNS

_Part = dict[str, list[str]]  # words of the core's rules, and how their alternatives are written; the first is ours

_CONTRACTIONS: _Part = {
    "": [""],
    "contractions-lower": [r"'s|'t|'re|'ve|'m|'ll|'d", r"'(?:[sdmt]|ll|ve|re)"],
    "contractions-ascii": [
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
    ],
    "contractions-any": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"'(?i:[sdmt]|ll|ve|re)"],
}
_PLAIN_WORDS = {
    "": r" ?\p{L}+",
    "words-prefixed": r"[^\r\n\p{L}\p{N}]?\p{L}+",
    "words-marked": r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
}
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _or(expression: str) -> str:
    return expression and f"{expression}|"


def _cased(contraction: str) -> str:
    """Words that end where a capital letter follows a small one; a contraction belongs to its word."""
    behind = contraction and f"{contraction if contraction.startswith('(') else f'(?:{contraction})'}?"
    return f"{_UPPER}*{_LOWER}+{behind}|{_UPPER}+{_LOWER}*{behind}|"


# The alternatives in the order they stand in.
_PARTS: tuple[_Part, ...] = (
    {
        f"{contraction} {words}".strip(): [_or(written) + _or(word) for written in spellings]
        for contraction, spellings in _CONTRACTIONS.items()
        for words, word in _PLAIN_WORDS.items()
    }
    | {
        f"{contraction} words-cased".strip(): [_cased(written) for written in spellings]
        for contraction, spellings in _CONTRACTIONS.items()
    },
    {
        f"{most}{spaced}".strip(): [rf"{space}\p{{N}}{times}|"]
        for spaced, space in (("", ""), (" digits-spaced", " ?"))
        for most, times in (("", "+"), ("digits-1", ""), *((f"digits-{n}", f"{{1,{n}}}") for n in range(2, 10)))
    },
    {
        f"{marked}{tail}".strip(): [rf" ?[^\s\p{{L}}{no_mark}\p{{N}}]+{written}|"]
        for marked, no_mark in (("", ""), ("words-marked ", r"\p{M}"))
        for tail, written in (("", ""), ("tail-newlines", r"[\r\n]*"), ("tail-slashes", r"[\r\n/]*"))
    },
    {"": [""], "space-at-end": [r"\s++\z|", r"\s+\z|"]},
    {"": [""], "newlines": [r"\s*[\r\n]+|", r"\s*[\r\n]|"]},
    {"": [r"\s+(?!\S)|\s+", r"\s+(?!\S)|\s"]},
)
# Nothing behind these could match what they give back, so it is the same without the + that forbids giving back.
_POSSESSIVE = (r"\p{L}++", r"\p{N}++", r"\p{N}]?+\p{L}", r"\p{N}]++", r"[\r\n]*+", r"[\r\n/]*+")


def pattern_argument(pattern: object) -> str:
    """The argument `pattern` as the core takes it: a name, or a regular expression as tiktoken reads it.

    Raises:
        ValueError: it is neither a name nor an expression of alternatives that there are here.
    """
    if isinstance(pattern, str) and pattern in PATTERNS:
        return pattern
    # There, $ is the end of the text, and {1,3}+ forbids giving back.
    written = re.sub(r"(\{1,\d\})\+", r"\1", pattern.replace("$", r"\z")) if isinstance(pattern, str) else ""
    found = pattern_of(written)
    if found is None:
        problem = f"must be one of {', '.join(PATTERNS)}, or a regular expression made of the alternatives of these"
        raise ArgumentError("pattern", f"{problem}, got {pattern!r:.300}")
    return found


def pattern_of(regex: str) -> str | None:
    """The pattern that an expression of Oniguruma's stands for, by name or by rules; None where there is none."""
    for possessive in _POSSESSIVE:
        regex = regex.replace(possessive, possessive.replace("++", "+").replace("?+", "?").replace("*+", "*"))
    rules: list[str] = []
    for part in _PARTS:
        fitting = {written: words for words, spellings in part.items() for written in spellings}
        longest = max((written for written in fitting if regex.startswith(written)), key=len, default=None)
        if longest is None:
            return None
        regex = regex[len(longest) :]
        rules += fitting[longest].split()
    if regex or rules.count("words-marked") == 1:
        return None
    if "newlines" not in rules and "space-at-end" in rules:
        rules.remove("space-at-end")  # which is what \s+(?!\S) does there
    return _core.bpe_pattern_name(" ".join(dict.fromkeys(rules))) if rules else None


def regex_of(pattern: str) -> str:
    """The expression of a pattern that cuts no numbers out beforehand, as Oniguruma reads it."""
    rules = set(_core.bpe_pattern_rules(pattern).split())
    written = ""
    for part in _PARTS:
        concerned = {word for words in part for word in words.split()} & rules
        written += next(spellings[0] for words, spellings in part.items() if set(words.split()) == concerned)
    return written


def with_numbers_apart(pattern: str, step: str, most: int) -> str | None:
    """The pattern of a text of which numbers are cut out first.

    Args:
        pattern: that of what is between them.
        step: what cuts them out: "digits-split", an expression, or "digits-apart", Digits of `tokenizers`.
        most: how many digits it leaves together; 0: all.

    Returns:
        None where there is no such pattern: white space at the end of a text is special, or numbers fall apart in two
        ways at once.
    """
    rules = _core.bpe_pattern_rules(pattern).split()
    own = _most_digits(rules)
    if "space-at-end" in rules or (own and ((own < most and most % own) or (step == "digits-apart" and not most))):
        return None
    limit = min(own or most, most or own)
    rest = [word for word in rules if not word.startswith("digits-")]
    return _core.bpe_pattern_name(" ".join([*rest, step, *([f"digits-{limit}"] if limit else [])]))


def numbers_apart(pattern: str) -> tuple[str, str | None, int]:
    """What `with_numbers_apart` makes the pattern of; the step is None where no numbers are cut out first."""
    rules = _core.bpe_pattern_rules(pattern).split()
    step = next((word for word in rules if word in ("digits-apart", "digits-split")), None)
    if step is None:
        return pattern, None, 0
    rest = [word for word in rules if not word.startswith("digits-")]
    return _core.bpe_pattern_name(" ".join([*rest, "digits-spaced"])), step, _most_digits(rules)


def _most_digits(rules: list[str]) -> int:
    return next((int(word[-1]) for word in rules if word[-1].isdigit()), 0)
