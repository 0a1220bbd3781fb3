"""Byte-level BPE in Hugging Face files: a file gives the same ids here and in `tokenizers`, whichever wrote it."""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from soma_native import CheckpointError
from soma_native.tokenizer.added_tokens import to_nfc
from soma_native.tokenizer.tokenizer import Tokenizer

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
UPPER, LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"{UPPER}*{LOWER}+{CONTRACTIONS}?|{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Texts on which splitters, normalizers and searches for added tokens make mistakes.
AWKWARD = [
    "'s", "'S", "'ſ", "'ll", "'LL", "'re", "don't", "I'D", "''", "'", "a", "A", "é", "e\u0301", "\u0301", "\u0338",
    "中文", "ǅ", "ʰ", "12345", "٣٤٥", "½", "²", "\r\n", "\n", "\r", "\n \n  ", "  ", " ", "\t", "\u00a0", "\u3000",
    "\u2028", "\u0085", "\u001c", "/", "//\n", "...", "😀", "👩\u200d👧", "한국어", "\u1112\u1161\u11ab", "각\u11a8",
    "\u212b", "\u212a", "ﬁ", "\u0344", "\u0f73", "\u1df6", "\U00011935\U00011930", "q\u0307\u0323", "a\u0897\u0301",
    "hello", "Hello", " hello", "<|end|>", "<|end|", "<tool>", "<b>", "   x", "<mask>", "</s>", "\U0010ffff", "\0", "_",
    "ﷺ",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=4), max_size=12).map("".join)
CORPUS = [
    "The hello Hello hello world's don't 12345 67 中文 한국어 é e\u0301 naïve I'll we're\n\n  x   y\r\n<tool> end b "
    * 3,
    "".join(AWKWARD) * 2,
    "foo(bar)/baz // comment\n\tif (x == 10) { return 1000; }\n" * 3,
]

Theirs = tokenizers.Tokenizer


def theirs(
    pre_tokenizer: Any, *, normalizer: Any = None, ignore_merges: bool = False, added: tuple[AddedToken, ...] = ()
) -> Theirs:
    made = Theirs(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    for token in added:
        (made.add_special_tokens if token.special else made.add_tokens)([token])
    return made


def split(regex: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior, invert),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def special(content: str, **flags: bool) -> AddedToken:
    return AddedToken(content, special=True, **{"normalized": False, **flags})


def plain(content: str, **flags: bool) -> AddedToken:
    return AddedToken(content, special=False, **{"normalized": False, **flags})


END, MASK = special("<|end|>"), special("<mask>", lstrip=True)
SPACES = tuple(plain(" " * n, normalized=True) for n in (4, 3, 2))
NFC = normalizers.NFC()
gpt2 = pre_tokenizers.ByteLevel

STYLES: dict[str, Callable[[], Theirs]] = {
    "gpt2": lambda: theirs(gpt2(add_prefix_space=False), added=(special("<|end|>", normalized=True),)),
    "gpt2-prefix": lambda: theirs(gpt2(add_prefix_space=True), added=(END, plain("<tool>"))),
    "roberta": lambda: theirs(gpt2(add_prefix_space=False), added=(special("</s>", normalized=True), MASK)),
    "gpt-neox": lambda: theirs(gpt2(add_prefix_space=False), normalizer=NFC, added=(END, *SPACES)),
    "codegen": lambda: theirs(gpt2(add_prefix_space=False), added=(END, *SPACES, plain("<b>", rstrip=True))),
    "llama3": lambda: theirs(split(LLAMA3), ignore_merges=True, added=(END, special("<b>"))),
    "removed": lambda: theirs(split(LLAMA3, "removed", invert=True), added=(END,)),
    "qwen2": lambda: theirs(split(QWEN2), normalizer=NFC, added=(END, plain("<tool>"), special("<b>"))),
    "nfc-tokens": lambda: theirs(
        split(QWEN2), normalizer=NFC, added=(plain("e\u0301"), plain("\u212b", normalized=True), plain("hello"), END)
    ),
    "o200k": lambda: theirs(split(O200K), ignore_merges=True, added=(END,)),
    "existing": lambda: theirs(gpt2(add_prefix_space=False), added=(plain("hello"), plain("a"), special("The"))),
}


@pytest.fixture(scope="module", params=STYLES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Theirs]:
    made = STYLES[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder), made


def equal(tok: Tokenizer, other: Theirs, text: str) -> None:
    other.encode_special_tokens = False
    expected = other.encode(text, add_special_tokens=False)
    assert tok.encode(text, allowed_special="all") == expected.ids
    assert tok.encode_array(text, allowed_special="all").tolist() == expected.ids
    ids, offsets = tok.encode_with_offsets(text, allowed_special="all")
    assert ids == expected.ids
    if other.normalizer is None:
        assert offsets == expected.offsets
    other.encode_special_tokens = True
    assert tok.encode(text) == other.encode(text, add_special_tokens=False).ids


# ---------------------------------------------------------------------------------------------------------- their files


@given(TEXTS)
def test_a_file_of_theirs_gives_their_ids(pair: tuple[Tokenizer, Theirs], text: str) -> None:
    equal(*pair, text)


@given(st.lists(TEXTS, max_size=5))
def test_batches_of_a_file_of_theirs(pair: tuple[Tokenizer, Theirs], texts: list[str]) -> None:
    tok, other = pair
    other.encode_special_tokens = False
    expected = [e.ids for e in other.encode_batch(texts, add_special_tokens=False)]
    assert tok.encode_batch(texts, allowed_special="all") == expected
    ids, lengths = tok._encode_joined(texts, 0)
    other.encode_special_tokens = True
    expected = [e.ids for e in other.encode_batch(texts, add_special_tokens=False)]
    assert ids.tolist() == [i for part in expected for i in part]
    assert lengths.tolist() == [len(part) for part in expected]


@given(st.data())
def test_decoding_a_file_of_theirs(pair: tuple[Tokenizer, Theirs], data: st.DataObject) -> None:
    """Without tokens such as "é": `tokenizers` decodes the letters of an added token as bytes where it can."""
    tok, other = pair
    known = [
        i for i in range(tok.vocab_size) if "\u0301" not in tok.id_to_token(i) and "\u212b" not in tok.id_to_token(i)
    ]
    ids = data.draw(st.lists(st.sampled_from(known), max_size=20))
    assert tok.decode(ids) == other.decode(ids, skip_special_tokens=False)


def test_saved_again_a_file_is_what_it_was(pair: tuple[Tokenizer, Theirs], tmp_path: Path) -> None:
    tok, other = pair
    saved = tok.save(tmp_path / "saved")
    assert json.loads(Theirs.from_file(str(saved)).to_str()) == json.loads(other.to_str())
    again = Tokenizer.load(saved)
    assert again.save(tmp_path / "again").read_bytes() == saved.read_bytes()
    assert again.special_tokens == tok.special_tokens


def test_special_and_added_tokens(pair: tuple[Tokenizer, Theirs]) -> None:
    tok, other = pair
    added = other.get_added_tokens_decoder()
    assert set(tok.special_tokens) == {token.content for token in added.values() if token.special}
    for i, token in added.items():
        assert tok.token_to_id(token.content) == i
        assert tok.id_to_token(i) == token.content
    assert tok.kind == "bpe"
    assert tok.vocab_size == other.get_vocab_size()


@given(TEXTS)
def test_offsets_cover_what_normalization_moved(text: str) -> None:
    tok = nfc_tokenizer()
    ids, offsets = tok.encode_with_offsets(text)
    assert ids == tok.encode(text)
    assert [begin for begin, _ in offsets] == sorted(begin for begin, _ in offsets)
    covered = {i for begin, end in offsets for i in range(begin, end)}
    assert covered == set(range(len(text)))
    for begin, end in offsets:  # a span normalizes alone as it does within the text
        assert to_nfc(text[:begin]) + to_nfc(text[begin:end]) + to_nfc(text[end:]) == to_nfc(text)


_made: list[Tokenizer] = []


def nfc_tokenizer() -> Tokenizer:
    if not _made:
        _made.append(load_document(json.loads(theirs(split(QWEN2), normalizer=NFC).to_str())))
    return _made[0]


def load_document(document: Any) -> Tokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        return Tokenizer.load(folder)


# ------------------------------------------------------------------------------------------------------------------ NFC


def test_nfc_of_every_code_point_is_theirs() -> None:
    """For any Unicode version of Python: alone, before marks, after marks, and between characters that compose."""
    for c in range(0x110000):
        if 0xD800 <= c < 0xE000:
            continue
        x = chr(c)
        if (
            not unicodedata.combining(x)
            and unicodedata.category(x) not in ("Cn", "Mc", "Mn", "Me")
            and not (unicodedata.decomposition(x))
        ):
            continue
        for text in (x, f"a{x}\u0301", f"\u0301{x}\u0316{x}", f"a\u0345{x}", f"q\u0304{x}\u0334"):
            assert to_nfc(text) == NFC.normalize_str(text), hex(c)


MARKS = st.sampled_from(
    [chr(c) for c in range(0x20000) if unicodedata.combining(chr(c)) or unicodedata.decomposition(chr(c))]
)


@given(st.lists(MARKS | st.sampled_from(AWKWARD), max_size=12).map("".join))
def test_nfc_of_marks_is_theirs(text: str) -> None:
    assert to_nfc(text) == NFC.normalize_str(text)


# ------------------------------------------------------------------------------------------------------------ our files


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "llama3", "qwen2", "o200k"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Theirs]:
    tok = Tokenizer.train(
        CORPUS, kind="bpe", vocab_size=450, pattern=request.param, special_tokens=["<|end|>", "<mask>", "<b>"]
    )
    return tok, Theirs.from_file(str(tok.save(tmp_path_factory.mktemp(request.param))))


@given(TEXTS)
def test_a_file_of_ours_gives_our_ids(ours: tuple[Tokenizer, Theirs], text: str) -> None:
    equal(*ours, text)


def test_a_file_of_ours_loads_as_it_was(ours: tuple[Tokenizer, Theirs], tmp_path: Path) -> None:
    tok, other = ours
    saved = tok.save(tmp_path)
    again = Tokenizer.load(saved)
    assert again.special_tokens == tok.special_tokens
    assert again.save(tmp_path / "again").read_bytes() == saved.read_bytes()
    other.save(str(tmp_path / "theirs.json"))
    through = Tokenizer.load(tmp_path / "theirs.json")
    for text in CORPUS:
        assert again.encode(text) == through.encode(text) == tok.encode(text)


@given(TEXTS)
def test_ranks_become_merges_that_give_equal_ids(ranked: tuple[Tokenizer, Theirs], text: str) -> None:
    equal(*ranked, text)


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "o200k"])
def ranked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Theirs]:
    """Ranks with tokens that no merge reaches, tokens that many pairs merge to, and a gap before the special tokens."""
    from test_bpe_files import rank_file

    folder = tmp_path_factory.mktemp("ranks")
    tok = Tokenizer.from_tiktoken(
        rank_file(folder, CORPUS), pattern=request.param, special_tokens={"<|end|>": 700, "<b>": 710}
    )
    return tok, Theirs.from_file(str(tok.save(folder)))


def test_transformers_loads_what_we_save(tmp_path: Path) -> None:
    tok = Tokenizer.train(CORPUS, kind="bpe", vocab_size=400)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tok.save(tmp_path)), eos_token="<|endoftext|>")
    text = "Hello <|endoftext|> world's 123 é\n"
    ids = tok.encode(text, allowed_special="all")
    assert fast.encode(text) == ids
    assert fast.eos_token_id == tok.token_to_id("<|endoftext|>")
    assert fast.decode(ids) == text


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    made = theirs(split(LLAMA3), normalizer=NFC, added=(END, plain("<tool>")))
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    return dict(json.loads(made.to_str()))


def edit(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


SPLIT = ("pre_tokenizer", "pretokenizers", 0)
BYTES = ("pre_tokenizer", "pretokenizers", 1)
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("normalizer", to={"type": "NFKC"}), "a normalizer of type 'NFKC'; only 'NFC'"),
        (edit("normalizer", to={"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}), "type 'Lowercase'"),
        (edit("normalizer", to={"type": "Sequence"}), "has the normalizer"),
        (edit("normalizer", to="NFC"), "has the normalizer 'NFC'"),
        (edit("pre_tokenizer", to=None), "has the pre_tokenizer None"),
        (edit("pre_tokenizer", to=DIGITS), "only a ByteLevel that comes last"),
        (edit("pre_tokenizer", to={"type": "Metaspace"}), "a pre_tokenizer of type 'Metaspace'"),
        (edit("pre_tokenizer", to={**BYTE_LEVEL, "use_regex": False}), "which does not split the text"),
        (edit("pre_tokenizer", to={**BYTE_LEVEL, "add_prefix_space": None}), "not as ByteLevel is"),
        (edit("pre_tokenizer", to={**BYTE_LEVEL, "more": 1}), "not as ByteLevel is"),
        (edit(*SPLIT, "pattern", to={"Regex": r"\w+"}), r"by the pattern '\\w+', which is not supported; only the p"),
        (edit(*SPLIT, "pattern", to={"String": " "}), "by the pattern {'String': ' '}, which is no regular"),
        (edit(*SPLIT, "behavior", to="Removed"), "a Split that keeps what its pattern finds"),
        (edit(*SPLIT, "invert", to=True), "a Split that keeps what its pattern finds"),
        (edit(*BYTES, "use_regex", to=True), "before another, which is not supported"),
        (edit(*BYTES, "add_prefix_space", to=True), "add_prefix_space after others"),
        (edit("decoder", to=None), "no decoder of type 'ByteLevel'"),
        (edit("decoder", to={"type": "Metaspace"}), "a decoder of type 'Metaspace'"),
        (edit("post_processor", to={"type": "Unheard"}), "a post_processor of type 'Unheard'"),
        (edit("post_processor", to=[]), "has the post_processor []"),
        (edit("model", "dropout", to=0.1), "dropout = 0.1"),
        (edit("model", "dropout", to=False), "dropout = False"),
        (edit("model", "end_of_word_suffix", to="</w>"), "end_of_word_suffix = '</w>'"),
        (edit("model", "continuing_subword_prefix", to="##"), "continuing_subword_prefix = '##'"),
        (edit("model", "byte_fallback", to=True), "byte_fallback = True"),
        (edit("model", "ignore_merges", to="no"), "ignore_merges = 'no'"),
        (edit("model", "tricks", to=1), "tricks = 1"),
        (edit("model", "type", to="Unigram"), "'Unigram'"),
        (edit("model", "merges", to={}), "without a list of merges"),
        (edit("model", "merges", 0, to=["a"]), "has the merge ['a']"),
        (edit("model", "merges", 0, to="a b c"), "has the merge ['a', 'b', 'c']"),
        (edit("model", "merges", 0, to=["a", 3]), "has the merge ['a', 3]"),
        (edit("model", "merges", 0, to=["q", "j"]), "has the merge 'q' 'j', but 'qj' is not in the vocabulary"),
        (lambda d: d["model"]["merges"].append(d["model"]["merges"][0]), "twice"),
        (edit("model", "fuse_unk", to=0), "'fuse_unk': 0}, where a token or null, and true or false"),
        (edit("model", "vocab", to=[]), "has no vocabulary"),
        (edit("model", "vocab", "a", to=7), "the id 7 to both"),
        (edit("model", "vocab", "a", to=1 << 40), "the id 1099511627776, which is not a whole number from 0 to"),
        (edit("model", "vocab", "a", to=(1 << 24) - 1), "too many ids without a token"),
        (edit("added_tokens", 0, "single_word", to=True), "'<|end|>' with single_word"),
        (edit("added_tokens", 0, "lstrip", to=1), "not as added tokens are"),
        (edit("added_tokens", 0, "more", to=1), "not as added tokens are"),
        (edit("added_tokens", 0, "content", to=""), "the token ''"),
        (edit("added_tokens", 0, "content", to=None), "no content"),
        (edit("added_tokens", 0, "id", to=900), "the id 900, but its place after the vocabulary gives it 461"),
        (edit("added_tokens", 1, "id", to=461), "the id 461, but its place after the vocabulary gives it 462"),
        (edit("added_tokens", 1, "content", to="<|end|>"), "'<|end|>' twice"),
        (edit("added_tokens", 0, "content", to="hello"), "the id 461, but the vocabulary gives it"),
        (edit("added_tokens", to={"a": 1}), "added_tokens that are not a list"),
        (edit("truncation", to=512), "has the truncation 512, where null or an object"),
    ],
)  # fmt: skip
def test_a_feature_that_we_lack_is_refused_by_name(
    document: dict[str, Any], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    bad = copy.deepcopy(document)
    change(bad)
    with pytest.raises(CheckpointError) as caught:
        load_document(bad)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["roberta", "template", "sequence"])
def test_special_tokens_of_a_template_are_never_added_but_kept(kind: str, tmp_path: Path) -> None:
    made = theirs(split(LLAMA3), added=(END,))
    end = ("<|end|>", made.token_to_id("<|end|>"))
    template = processors.TemplateProcessing("<|end|> $A", None, [end])
    made.post_processor = {
        "roberta": processors.RobertaProcessing(end, end),
        "template": template,
        "sequence": processors.Sequence([processors.ByteLevel(), template]),
    }[kind]
    tok = load_document(json.loads(made.to_str()))
    assert tok.encode("hello") == made.encode("hello", add_special_tokens=False).ids
    again = Theirs.from_file(str(tok.save(tmp_path)))
    assert again.encode("hello").ids == made.encode("hello").ids != tok.encode("hello")


def test_gpt2_wrote_its_file_without_the_type_of_the_model(tmp_path: Path) -> None:
    made = STYLES["gpt2"]()
    document = json.loads(made.to_str())
    del document["model"]["type"]
    document["model"].update(continuing_subword_prefix="", end_of_word_suffix="", dropout=0.0)
    document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    equal(load_document(document), made, "Hello hello world's <|end|>")


def test_a_token_out_of_reach_decodes_and_is_never_found() -> None:
    document = json.loads(theirs(split(LLAMA3), ignore_merges=True, added=(END,)).to_str())
    vocab = document["model"]["vocab"]
    size = len(vocab)
    vocab["hello hello"] = size  # a space: the byte-level alphabet has none
    document["added_tokens"][0]["id"] = size + 1
    tok = load_document(document)
    assert size not in tok.encode("hello hello", allowed_special="all")
    assert tok.decode([size]) == "hello hello"
    assert tok.special_tokens == ("<|end|>",)
    assert Theirs.from_str(json.dumps(document)).decode([size]) == "hello hello"


def test_errors_name_the_text_and_not_a_piece_of_it() -> None:
    tok = load_document(json.loads(STYLES["qwen2"]().to_str()))
    bad: Any = "a<tool>e\u0301\ud800"
    for call, named in (
        (lambda: tok.encode(bad), "text has the lone surrogate U\\+D800 at character 9"),
        (lambda: tok.encode_array(bad), "text has the lone surrogate U\\+D800 at character 9"),
        (lambda: tok.encode_with_offsets(bad), "text has the lone surrogate U\\+D800 at character 9"),
        (lambda: tok.encode_batch(["<tool>a", bad]), r"texts\[1\] has the lone surrogate U\+D800 at character 9"),
    ):
        with pytest.raises(ValueError, match=named):
            call()
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        tok.encode(b"a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got int"):
        tok.encode_batch(["a", 3])  # type: ignore[list-item]
    assert tok.encode_batch([]) == []
    assert tok.encode("") == []
    assert tok.encode_with_offsets("") == ([], [])


@pytest.mark.parametrize(
    "text", ["\u0301" * 1_000_000, "e\u0301" * 300_000, "\u1100\u1161\u11a8" * 200_000, "<tool>" * 100_000]
)
def test_long_runs_of_what_normalization_moves_take_linear_time(text: str) -> None:
    tok = load_document(json.loads(STYLES["qwen2"]().to_str()))
    ids, offsets = tok.encode_with_offsets(text)
    assert ids == tok.encode(text)
    assert offsets[-1][1] == len(text)
