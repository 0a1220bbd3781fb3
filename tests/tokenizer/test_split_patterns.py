"""Splits of other people's tokenizers: what is made of known alternatives is read and trained with, others not."""

from __future__ import annotations

import base64
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

import soma_native as soma
from oracles.bpe_patterns import CHARACTERS, PATTERNS, PIECES, random_text
from soma_native import _core
from soma_native.tokenizer.formats.split_patterns import numbers_apart, pattern_of, regex_of, with_numbers_apart

TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4) | st.just("12345 words"), max_size=40).map("".join)
CORPUS = [random_text(random.Random(seed)) for seed in range(400)]
LLAMA3 = PATTERNS["llama3"]
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = {**GPT2, "use_regex": False}


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def digits(individual: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


# The steps of published tokenizer.json files, and others of the same making.
STEPS: dict[str, list[dict[str, Any]]] = {
    "GPT-2, OLMo, Phi-2": [GPT2],
    "Llama-3": [split(LLAMA3), BYTES],
    "Phi-4": [split(LLAMA3, "Removed", invert=True), BYTES],
    "Qwen-2": [split(PATTERNS["qwen2"]), BYTES],
    "Qwen-3.5": [split(PATTERNS["qwen3.5"]), BYTES],
    "Mistral-Nemo": [split(PATTERNS["tekken"]), BYTES],
    "GPT-4o": [split(PATTERNS["o200k"]), BYTES],
    "nanochat": [split(PATTERNS["nanochat"]), BYTES],
    "StarCoder, SmolLM": [digits(True), GPT2],
    "whole numbers apart": [digits(False), GPT2],
    "digits apart, then Llama-3": [digits(True), split(LLAMA3), BYTES],
    "numbers of three apart": [split(r"\p{N}{1,3}"), split(LLAMA3), BYTES],
    "numbers apart by an expression": [split(r"\p{N}+"), split(PATTERNS["nanochat"]), BYTES],
    "digits apart by an expression": [split(r"\p{N}"), GPT2],
    "ASCII contractions": [
        split(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
        BYTES,
    ],
}


def trained(steps: list[dict[str, Any]]) -> tokenizers.Tokenizer:
    """A tokenizer of Hugging Face with these steps, read from its JSON."""
    plain = tokenizers.Tokenizer(models.BPE())
    plain.decoder = decoders.ByteLevel()
    document = json.loads(plain.to_str())
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    made = tokenizers.Tokenizer.from_str(json.dumps(document))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    return made


@pytest.mark.parametrize("name", STEPS)
def test_files_of_others_give_the_same_ids(name: str, tmp_path: Path) -> None:
    theirs = trained(STEPS[name])
    theirs.save(str(tmp_path / "theirs.json"))
    loaded = soma.Tokenizer.load(tmp_path / "theirs.json")
    again = soma.Tokenizer.load(loaded.save(tmp_path / "again"))
    source = random.Random(3)
    for text in [random_text(source) for _ in range(2000)] + ["in 12345 days", "a  1 \n 2\t3", ""]:
        assert loaded.encode(text) == again.encode(text) == theirs.encode(text).ids, text
    saved = json.loads((tmp_path / "again" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["pre_tokenizer"] == json.loads(theirs.to_str())["pre_tokenizer"]


@pytest.mark.parametrize("pattern", _core.bpe_patterns())
def test_a_name_survives_training_saving_and_loading(pattern: str, tmp_path: Path) -> None:
    tok = soma.Tokenizer.train(CORPUS, kind="bpe", vocab_size=600, pattern=pattern)
    file = tok.save(tmp_path)
    again, theirs = soma.Tokenizer.load(file), tokenizers.Tokenizer.from_file(str(file))
    assert again._core.bpe_vocabulary()[0] == pattern
    source = random.Random(4)
    for text in (random_text(source) for _ in range(1000)):
        ids = tok.encode(text)
        assert ids == again.encode(text) == theirs.encode(text).ids, text
        assert tok.decode(ids) == text


def all_rules() -> list[str]:
    """The rules of every pattern that the core has, but for more than three digits."""
    contractions = ["", "contractions-lower", "contractions-ascii", "contractions-any"]
    words = ["", "words-prefixed", "words-marked", "words-cased"]
    numbers = ["", "digits-spaced", "digits-1", "digits-2", "digits-3", "digits-2 digits-spaced"]
    apart = ["digits-apart", "digits-apart digits-1", "digits-split", "digits-split digits-2"]
    spaces = ["", "newlines", "newlines space-at-end"]
    found = []
    for chosen in itertools.product(
        contractions, words, numbers + apart, ["", "tail-newlines", "tail-slashes"], spaces
    ):
        if not any("apart" in word or "split" in word for word in chosen) or "space-at-end" not in chosen[-1]:
            found.append(" ".join(filter(None, chosen)))
    return [rules for rules in found if rules]


def theirs_of(rules: str) -> pre_tokenizers.PreTokenizer:
    between, step, most = numbers_apart(rules)
    main = pre_tokenizers.Split(Regex(regex_of(between)), "isolated")
    if step is None:
        return main
    first: Any = pre_tokenizers.Digits(individual_digits=most == 1)
    if step == "digits-split":
        first = pre_tokenizers.Split(Regex(rf"\p{{N}}{{1,{most}}}" if most else r"\p{N}+"), "isolated")
    return pre_tokenizers.Sequence([first, main])


def check(rules: str, theirs: pre_tokenizers.PreTokenizer, text: str) -> None:
    raw, ends = text.encode(), _core.bpe_chunk_ends(rules, text)
    ours = [raw[begin:end].decode() for begin, end in itertools.pairwise([0, *ends])]
    assert ours == [piece for piece, _ in theirs.pre_tokenize_str(text)], (rules, text)


def test_every_combination_of_rules_splits_as_its_expression() -> None:
    source = random.Random(5)
    rules = all_rules()
    assert len(rules) > 1000
    for one in rules:
        theirs = theirs_of(one)
        for text in (random_text(source) for _ in range(20)):
            check(one, theirs, text)
        for shift in (0, source.randrange(60)):  # all that rules are about, somewhere in a block of ASCII
            text = "".join(source.choices([*" \n\t'sdLVe12a!/_", *PIECES[:10]], k=150))
            check(one, theirs, "x" * shift + text)
            check(one, theirs, "x" * shift + "".join(filter(str.isascii, text)))


@given(rules=st.sampled_from(all_rules()), text=TEXTS)
def test_any_text_by_any_rules(rules: str, text: str) -> None:
    check(rules, theirs_of(rules), text)


@given(rules=st.sampled_from(all_rules()), text=TEXTS)
def test_a_piece_ends_where_a_chunk_does(rules: str, text: str) -> None:
    """Pieces of a long text have the chunks of the whole, and its words."""
    raw = text.encode()
    at = _core.last_chunk_end(raw, 0)
    assert not at or at in _core.bpe_chunk_ends(rules, text)
    whole, halves = _core.TokenCounter("word"), _core.TokenCounter("word")
    whole.add([raw], 0)
    halves.add([raw[:at], raw[at:]], 0)
    assert whole.ranked(1000) == halves.ranked(1000)


def test_every_character_beside_the_end_of_a_piece() -> None:
    texts = [f"a{c}b 1{c}{c}!" for c in map(chr, [*range(0xD800), *range(0xE000, 0x110000, 7)])]
    for text in texts:
        raw = text.encode()
        at = _core.last_chunk_end(raw, 0)
        assert not at or (at in _core.bpe_chunk_ends("o200k", text) and raw[at : at + 1] != b"_")


@pytest.mark.parametrize("rules", all_rules()[::7])
def test_an_expression_is_recognised(rules: str) -> None:
    between, step, most = numbers_apart(rules)
    found = pattern_of(regex_of(between))
    assert found is not None
    again = found if step is None else with_numbers_apart(found, step, most)
    assert _core.bpe_pattern_name(rules) == again


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "starcoder"])
def test_training_takes_an_expression(pattern: str) -> None:
    """As tiktoken writes it: $ is the end of the text, and {1,3}+ gives nothing back."""
    tok = soma.Tokenizer.train(CORPUS, kind="bpe", vocab_size=400, pattern=PATTERNS[pattern])
    assert tok._core.bpe_vocabulary()[0] == pattern


def test_an_expression_without_a_name_survives_saving(tmp_path: Path) -> None:
    regex = PATTERNS["nanochat"].replace("{1,2}", "{1,4}")
    tok = soma.Tokenizer.train(CORPUS, kind="bpe", vocab_size=500, pattern=regex)
    file = tok.save(tmp_path)
    again, theirs = soma.Tokenizer.load(file), tokenizers.Tokenizer.from_file(str(file))
    for text in ["in 1234567 days", *CORPUS]:
        assert tok.encode(text) == again.encode(text) == theirs.encode(text).ids


def test_a_rank_file_takes_an_expression(tmp_path: Path) -> None:
    ranks = tmp_path / "ranks.tiktoken"
    ranks.write_text("".join(f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256)))
    tok = soma.Tokenizer.from_tiktoken(ranks, pattern=PATTERNS["cl100k"])
    assert tok._core.bpe_vocabulary()[0] == "cl100k"


@pytest.mark.parametrize(
    "pattern", [r"\w+|\s+", "", "p50k", LLAMA3 + "|x", LLAMA3.replace(r"\p{L}+", r"\p{L}*"), "words-cased"]
)
def test_another_expression_is_refused_with_what_it_is(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern must be one of gpt2, .* or a regular expression made of") as caught:
        soma.Tokenizer.train(CORPUS, kind="bpe", vocab_size=400, pattern=pattern)
    assert repr(pattern)[:200] in str(caught.value)


DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
)
DEEPSEEK += r"|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [{"type": "Punctuation", "behavior": "Contiguous"}, GPT2, digits(False)],
            "'Punctuation'; only 'ByteLevel'",
        ),
        (
            [split(r"\p{N}{1,3}"), split("[一-龥]+"), split(DEEPSEEK), BYTES],
            r"splits text by the pattern .\[!",
        ),
        ([split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), BYTES], "splits text by the pattern ' \\?"),
        ([split(LLAMA3.replace("{1,3}", "{1,3}+")), BYTES], "splits text by the pattern"),  # any number of digits there
        ([split(LLAMA3.replace(r"|\s*", r"|\s++$|\s*")), BYTES], "splits text by the pattern"),  # $ ends a line there
        ([{**split(""), "pattern": {"String": " "}}, BYTES], "which is no regular expression"),
        ([split(LLAMA3, "MergedWithNext"), BYTES], "only a Split that keeps what its pattern finds"),
        ([digits(True), BYTES], "does not split the text"),
        ([GPT2, digits(True)], "only a ByteLevel that comes last"),
        ([digits(True), {**GPT2, "add_prefix_space": True}], "add_prefix_space after others"),
        ([digits(True), digits(True), GPT2], "only numbers can be cut out first, once"),
        ([split(r"\p{N}{1,3}"), split(PATTERNS["nanochat"]), BYTES], "as the next pattern cuts them"),
        ([digits(False), split(LLAMA3), BYTES], "as the next pattern cuts them"),
        ([split(r"\p{N}", "Removed", invert=True), GPT2], r"only \\p\{N\}"),
        ([{**digits(True), "more": 1}, GPT2], "not as Digits is"),
        ([{**digits(True), "individual_digits": 1}, GPT2], "not as Digits is"),
    ],
)
def test_other_steps_are_refused_by_name(steps: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    document = json.loads(trained([GPT2]).to_str())
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(soma.CheckpointError, match=message):
        soma.Tokenizer.load(tmp_path)


def test_the_newest_numbers() -> None:
    """Digits of `tokenizers` follows a newer Unicode than its expressions do."""
    for rules in ("starcoder", "contractions-lower digits-apart", "contractions-lower digits-split digits-1"):
        theirs = theirs_of(rules)
        for letters in itertools.product("\U00011de1\U00016ff51 !a\n", repeat=5):
            check(rules, theirs, "".join(letters))
    assert "\U00011de1" in CHARACTERS
