"""What a corpus takes in memory beside the model: a small multiple of its file, whatever characters are in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from helpers.child import output_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")

MEGABYTES = 24

CHILD = """
import json, re
from pathlib import Path

from soma_native.data.documents import read_documents

def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

def train(texts, **options):
    tok = soma.Tokenizer.train(texts(), kind=os.environ["KIND"], **options)
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "max_seq_len": 64}
    model = soma.Model(soma.ModelConfig(vocab_size=tok.vocab_size, **shape))
    trainer = soma.Trainer(model, tok, soma.TrainConfig(steps=1, batch_size=2, eval_every=2, warmup_steps=0))
    return trainer.fit(texts())

options = {"vocab_size": 400} if os.environ["KIND"] == "bpe" else {}
texts = {
    "file": lambda path: lambda: path,
    "lines": lambda path: lambda: read_documents(path, "line"),
    "str": lambda path: lambda text=path.read_text(encoding="utf-8"): [text],
}[os.environ["HOW"]]
train(texts(Path("small.txt")), **options)
big = texts(Path("big.txt"))
if os.environ["HOW"] == "str":
    big()  # is the caller's own
before = highest()
history = train(big, **options)
print(json.dumps([highest() - before, history.data["train"]["tokens"]]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small and a big text; one emoji makes a str of the big one take four bytes a character."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = "".join(f"The {i} cats sat on {i * i} mats, and word{i % 3000} was said.\n" for i in range(4000))
    (folder / "small.txt").write_text(lines[:5000] + "😀\n", encoding="utf-8")
    (folder / "big.txt").write_text(lines * (MEGABYTES * (1 << 20) // len(lines)) + "😀\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("how", ["file", "lines", "str"])
@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_training_takes_less_than_a_small_multiple_of_the_file(kind: str, how: str, folder: Path) -> None:
    grown, tokens = json.loads(output_of(CHILD, folder, KIND=kind, HOW=how, SOMA_NUM_THREADS="2"))
    size = (folder / "big.txt").stat().st_size
    assert tokens > size / 8
    times = 3 if how == "lines" else 2  # many documents and windows: where each begins and ends
    assert grown < times * size, f"{grown / size:.2f} times the file"
