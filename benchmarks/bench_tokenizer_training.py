"""Training byte-level BPE, in seconds and in peak memory, beside gigatoken, rustbpe, sentencepiece and tokenizers.

    python benchmarks/bench_tokenizer_training.py book.txt other.txt --vocab-size 8192 32768 --rounds 5 --json out.json

Every run is a process of its own and reads the files itself. The contenders take turns. All learn byte-level
merges within the chunks of GPT-2's pattern; only sentencepiece has units of its own. Contenders that are not installed
are left out. Time is the time of the training call. Memory is the peak of the whole process. Our tokens are compared
with those of rustbpe, which breaks ties in the same way.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import machine_record, pairwise, print_machine, print_table, thread_environment, write_record

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPECIAL = "<|endoftext|>"


# The result of a training: the number of ids, and the bytes of the tokens in order if ties are broken in our way.
Learned = tuple[int, list[bytes] | None]


def train_soma_native(files: list[str], size: int) -> Callable[[], Learned]:
    """Our trainer: it takes files by path."""
    import soma_native as soma
    from soma_native.tokenizer.bpe_vocabulary import BpeVocabulary

    tokenizer = soma.Tokenizer.train(map(Path, files), kind="bpe", vocab_size=size)
    return lambda: (tokenizer.vocab_size, [t for t in BpeVocabulary.of(tokenizer._core).tokens if t is not None])


def train_gigatoken(files: list[str], size: int) -> Callable[[], Learned]:
    """Files by path."""
    import gigatoken

    learned = gigatoken.train_bpe(gigatoken.TextFileSource(files), size, [SPECIAL])
    return lambda: (len(learned[0]), None)


def train_rustbpe(files: list[str], size: int) -> Callable[[], Learned]:
    """It takes texts, not files, so one file at a time is read. It has no special tokens here."""
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    texts = (Path(file).read_bytes().decode() for file in files)
    tokenizer.train_from_iterator(texts, size - 1, pattern=GPT2)

    def learned() -> Learned:
        tokens = [bytes(token) for token, _ in sorted(tokenizer.get_mergeable_ranks(), key=lambda pair: pair[1])]
        return len(tokens) + 1, tokens

    return learned


def train_tokenizers(files: list[str], size: int) -> Callable[[], Learned]:
    """Files by path."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train(files, trainer)
    return lambda: (tokenizer.get_vocab_size(), None)


def train_sentencepiece(files: list[str], size: int) -> Callable[[], Learned]:
    """It takes files by path. Its units are characters, with bytes as a fallback."""
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            input=files,
            model_prefix=f"{folder}/model",
            vocab_size=size,
            model_type="bpe",
            byte_fallback=True,
            num_threads=int(os.environ["OMP_NUM_THREADS"]),
            max_sentence_length=1 << 20,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        tokens = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/model.model").vocab_size()
    return lambda: (tokens, None)


CONTENDERS: dict[str, Callable[[list[str], int], Callable[[], Learned]]] = {
    "soma_native": train_soma_native,
    "gigatoken": train_gigatoken,
    "rustbpe": train_rustbpe,
    "tokenizers": train_tokenizers,
    "sentencepiece": train_sentencepiece,
}


def run_here(name: str, files: list[str], size: int) -> None:
    """One training in this process: prints seconds, tokens and the peak of memory as JSON."""
    import resource

    importlib.import_module({"soma_native": "soma_native.tokenizer.tokenizer"}.get(name, name))
    begin = time.perf_counter()
    learned = CONTENDERS[name](files, size)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count, tokens = learned()
    digest = hashlib.sha256(b"".join(len(t).to_bytes(4, "little") + t for t in tokens)).hexdigest() if tokens else None
    print(json.dumps({"seconds": seconds, "tokens": count, "digest": digest, "peak_megabytes": peak}))


def run_there(name: str, files: list[str], size: int, threads: int) -> dict[str, Any]:
    """Run one training in a new process and return its result."""
    command = [sys.executable, __file__, *files, "--run", name, "--vocab-size", str(size)]
    environment = {**os.environ, **thread_environment(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"bench_tokenizer_training: {name}: {done.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="UTF-8 text files")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--vocab-size", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the record here")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run, print, record."""
    args = arguments(argv)
    if args.run:
        run_here(args.run, args.files, args.vocab_size[0])
        return 0
    machine = machine_record(args.threads, None)
    print_machine(machine)
    names = [name for name in args.contenders if importlib.util.find_spec(name) is not None]
    megabytes = sum(Path(file).stat().st_size for file in args.files) / 1e6
    results: list[dict[str, Any]] = []
    rows = []
    for size in args.vocab_size:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for turn in range(args.rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                runs[name].append(run_there(name, args.files, size, args.threads))
        if len({run["digest"] for name in names for run in runs[name]} - {None}) > 1:
            raise SystemExit("bench_tokenizer_training: our tokens differ from those of rustbpe, or from run to run")
        seconds = {name: [run["seconds"] for run in runs[name]] for name in names}
        for name in names:
            ours = seconds.get("soma_native")
            ratio = pairwise(seconds[name], ours) if ours and name != "soma_native" else None
            result = {
                "workload": f"{megabytes:.1f} MB, {size} tokens",
                "label": name,
                "megabytes": megabytes,
                "tokens": runs[name][0]["tokens"],
                "seconds": statistics.median(seconds[name]),
                "peak_megabytes": max(run["peak_megabytes"] for run in runs[name]),
                "rounds": seconds[name],
                "ours_over_this": {"soma_native": ratio} if ratio else {},
            }
            results.append(result)
            shown = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else "-"
            cells = [f"{result['seconds']:.3f}", f"{result['peak_megabytes']:.0f}", shown]
            rows.append([result["workload"], name, result["tokens"], *cells])
    print_table(["training", "contender", "tokens", "seconds", "peak MB", "we are x times as fast"], rows)
    write_record(args.json, "tokenizer_training", machine, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
