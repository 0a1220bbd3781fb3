"""Fuzzes the reader of the reference's pickle with atheris: a file is refused in one line, or read; nothing of it runs.

    python tests/fuzz/fuzz_soma_pickle.py [options of libFuzzer, such as -max_total_time=10]

What it finds belongs into tests/checkpoint/test_soma_pickle_hostile.py, which checks the same by `check`.
"""

from __future__ import annotations

import importlib
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.soma_pickle import dumps, reference
from soma_native.checkpoint.soma_pickle import import_soma_pickle
from soma_native.errors import CheckpointError

# What the interpreter reports before it runs or starts something. Reading a file needs none of it.
FORBIDDEN = {
    "exec", "compile", "import", "marshal.loads", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
    "socket.connect", "pickle.find_class", "ctypes.dlopen", "os.remove", "os.rename", "shutil.rmtree",
}  # fmt: skip
_seen: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in FORBIDDEN:
        _seen.append(event)


sys.addaudithook(_watch)


def seeds() -> list[bytes]:
    """Small models in every protocol."""
    saved = reference(d_model=2, n_layers=1, n_heads=1, d_ff=1, longest=1)
    return [dumps(saved, protocol) for protocol in range(6)]


def mutate(data: bytes, seed: int) -> bytes:
    """The pickle with a few of its bytes changed, moved, repeated or taken away, or with an operation put in."""
    rng, changed = random.Random(seed), bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 1, 2, 4, 9, 40))
        piece = bytes(changed[(other := rng.randrange(len(changed) + 1)) : other + length])
        put = rng.choice(
            (piece, bytes([rng.randrange(256)]), bytes([rng.choice(b"(.0125]}N)abceioqrstuRQ\x80\x85\x93")]))
        )
        changed[at : at + (0 if rng.randrange(2) else length)] = put
    return bytes(changed)


def check(data: bytes, *, watch: bool = True) -> bool:
    """Whether the file was read. Else it was refused in one line. Neither ran anything."""
    global _watching
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "old.pkl"
        path.write_bytes(data)
        _seen.clear()
        _watching = watch
        try:
            import_soma_pickle(path)
            return True
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, error
            return False
        finally:
            _watching = False
            assert not _seen, _seen


for _first in (*seeds(), b"S'a'\n0U\x01b0T\x01\0\0\0c0N.", b"?"):
    check(_first, watch=False)  # Python imports modules, such as codecs, when they are first needed


def main() -> None:
    """Fuzz, as the command line says."""
    import atheris

    global import_soma_pickle
    for name in ("pickletools", "soma_native.checkpoint.soma_pickle"):  # once more, so that their branches are seen
        del sys.modules[name]
    with atheris.instrument_imports(include=["pickletools", "soma_native.checkpoint.soma_pickle"]):
        import_soma_pickle = importlib.import_module("soma_native.checkpoint.soma_pickle").import_soma_pickle

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        changed = mutate(data, seed) if seed % 4 else atheris.Mutate(data, most)
        return bytes(changed)[:most]

    def run(data: bytes) -> None:
        check(data)

    with tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(seeds()):
            (Path(corpus) / str(i)).write_bytes(seed)
        atheris.Setup([sys.argv[0], "-max_len=20000", *sys.argv[1:], corpus], run, custom_mutator=mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
