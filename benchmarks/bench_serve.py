"""A served model: texts of many clients beside the engine itself and llama.cpp's server, first bytes, endurance.

    python benchmarks/bench_serve.py --preset 10m --rounds 7 --seconds 60 --json out.json

`clients`: as many clients at once, each with one connection and no stream, in tokens/s. Beside it run our engine in a
process of its own, and llama.cpp's server (pip install xllamacpp gguf) with the GGUF that export_gguf writes, of as
many bytes a weight. `first`: milliseconds from a request to the first event of its stream, on an idle server.
`endurance`: many clients for some seconds, a tenth of which hang up or send rubbish: wrong answers, and the server's
memory before and after. All traffic stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import importlib.util
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import (
    WorkerError,
    isa_environment,
    machine_record,
    pairwise,
    print_machine,
    print_table,
    thread_environment,
    write_record,
)

import soma_native as soma

TASKS = ("clients", "first", "endurance")
FORMATS = {"auto": "f32", "float32": "f32", "bfloat16": "f16", "int8": "q8_0"}  # of as many bytes a weight
ENGINE = """
import json, sys, time
import soma_native as soma
folder, weights, sequences = sys.argv[1], sys.argv[2], int(sys.argv[3])
engine = soma.Engine(*soma.load(folder), sequences, weights=weights)
print("http://engine:0", flush=True)
for line in sys.stdin:
    begin = time.perf_counter()
    handles = [engine.submit(ask.pop("prompt"), **ask) for ask in json.loads(line)]
    tokens = sum(len(handle.result().tokens) for handle in handles)
    print(json.dumps([time.perf_counter() - begin, tokens]), flush=True)
engine.close()
"""
LLAMA = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, context, clients, threads = sys.argv[1], *map(int, sys.argv[2:])
params.hostnames, params.port = ["127.0.0.1"], 0
params.n_ctx, params.n_parallel = context * clients, clients
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.warmup = True
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="10m")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--weights", choices=list(FORMATS), default="float32")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a text")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--crowd", type=int, default=200, help="clients of endurance")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of endurance")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="hold us to this instruction set")
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args(argv)


class Contender:
    """The model, saved in a folder, and what clients ask of it. Nothing ends a text before its number of tokens."""

    def __init__(self, args: argparse.Namespace, place: Path) -> None:
        config = soma.ModelConfig.preset(args.preset)
        if config.block not in ("gpt2", "llama"):  # llama.cpp has no other
            config = dataclasses.replace(config, block="gpt2")
        self.model = soma.Model(config, seed=1)
        characters = "".join(chr(0x4E00 + i) for i in range(config.vocab_size - 1))
        self.tok = soma.Tokenizer.train([characters], kind="char", special_tokens=("<|end|>",))
        self.folder = place / "model"
        soma.save(self.folder, self.model, self.tok)
        source = random.Random(5)
        prompts = ["".join(source.choices(characters, k=args.prompt)) for _ in range(args.clients)]
        self.asks: list[dict[str, Any]] = [
            {"prompt": prompt, "max_tokens": args.tokens, "seed": seed} for seed, prompt in enumerate(prompts)
        ]


@contextlib.contextmanager
def server_of(command: list[str], threads: int, isa: str | None) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and the port that it says: as JSON with a "url", or as an address."""
    package = str(Path(soma.__file__).parents[1])  # the one that was measured, installed or not
    environment = {**thread_environment(threads), **isa_environment(isa), "PYTHONPATH": package}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line in ("}\n",) or line.startswith("http"):
                break
        if not said:
            raise WorkerError(f"{command[1]} ended with status {process.wait()}")
        url = json.loads(said)["url"] if said.startswith("{") else said.strip()
        port = urlsplit(url).port
        assert port is not None
        yield process, port
    finally:
        process.terminate()
        process.communicate()


class Client:
    """One client with one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def text(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The answer of /v1/completions, whole."""
        self._connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise WorkerError(f"status {response.status}: {body[:200]!r}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def first(self, fields: dict[str, Any]) -> float:
        """The seconds to the first event of a stream."""
        begin = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/completions", json.dumps({**fields, "stream": True}), headers)
        response = self._connection.getresponse()
        while not response.readline().startswith(b"data: "):
            pass
        seconds = time.perf_counter() - begin
        response.read()
        return seconds


def together(port: int, asks: list[dict[str, Any]]) -> tuple[float, int]:
    """The seconds until all clients have their answers, and the tokens of these."""
    clients = [Client(port) for _ in asks]
    with ThreadPoolExecutor(len(asks)) as pool:
        begin = time.perf_counter()
        answers = list(pool.map(lambda client, ask: client.text(ask), clients, asks))
        seconds = time.perf_counter() - begin
    return seconds, sum(answer["usage"]["completion_tokens"] for answer in answers)


def clients_at_once(args: argparse.Namespace, ours: list[str], model: Contender, place: Path) -> list[dict[str, Any]]:
    """Tokens/s of all contenders, in turns."""
    rates: dict[str, list[float]] = {}
    total = args.clients * args.tokens
    with contextlib.ExitStack() as stack:
        _, port = stack.enter_context(server_of(ours, args.threads, args.isa))
        command = [sys.executable, "-c", ENGINE, str(model.folder), args.weights, str(args.clients)]
        engine, _ = stack.enter_context(server_of(command, args.threads, args.isa))

        def alone() -> tuple[float, int]:
            assert engine.stdin is not None and engine.stdout is not None
            engine.stdin.write(json.dumps(model.asks) + "\n")
            engine.stdin.flush()
            seconds, tokens = json.loads(engine.stdout.readline())
            return seconds, tokens

        runs: dict[str, Any] = {"soma_native serve": lambda: together(port, model.asks), "the engine itself": alone}
        if not args.no_peer:
            path = place / "model.gguf"
            soma.export_gguf(path, model.model, model.tok, FORMATS[args.weights])
            context = str(model.model.config.max_seq_len)
            asks = [{**ask, "ignore_eos": True} for ask in model.asks]
            command = [sys.executable, "-c", LLAMA, str(path), context, str(args.clients), str(args.threads)]
            _, other = stack.enter_context(server_of(command, args.threads, None))
            runs["llama.cpp server"] = lambda: together(other, asks)
        for run in runs.values():
            run()
        for turn in range(args.rounds):
            names = list(runs)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                seconds, tokens = runs[name]()
                if tokens != total:
                    raise WorkerError(f"{name} wrote {tokens} tokens, not {total}")
                rates.setdefault(name, []).append(tokens / seconds)
    return [
        {
            "workload": f"{args.preset} {args.weights}",
            "task": f"{args.clients} clients, texts of {args.tokens} tokens after {args.prompt}",
            "label": name,
            "tokens_per_second": statistics.median(values),
            "rounds": values,
            "ours_over_this": {} if name.endswith("serve") else {"serve": pairwise(rates["soma_native serve"], values)},
        }
        for name, values in rates.items()
    ]


def first_bytes(args: argparse.Namespace, ours: list[str], model: Contender) -> list[dict[str, Any]]:
    """Milliseconds to the first event after a prompt of a hundred tokens, each time another one."""
    source = random.Random(1)
    vocabulary = range(1, model.tok.vocab_size)
    with server_of(ours, args.threads, args.isa) as (_, port):
        client = Client(port)
        times = [
            1000 * client.first({"prompt": source.choices(vocabulary, k=100), "max_tokens": 16, "seed": 1})
            for _ in range(10 * args.rounds)
        ]
    result = {
        "workload": f"{args.preset} {args.weights}",
        "task": "first event of a stream",
        "label": "soma_native serve",
    }
    return [{**result, "milliseconds": statistics.median(times[5:]), "rounds": times[5:]}]


def resident_mb(process: subprocess.Popen[str]) -> float:
    """The memory of a process."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def endurance(args: argparse.Namespace, ours: list[str], model: Contender) -> list[dict[str, Any]]:
    """A crowd of clients, a tenth of which hang up or send rubbish. The others check every answer."""
    asks = [{**ask, "max_tokens": 16} for ask in model.asks]
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def polite(port: int, number: int, expected: list[str], until: float) -> None:
        client, source = Client(port), random.Random(number)
        while time.monotonic() < until:
            index = source.randrange(len(asks))
            try:
                text = client.text(asks[index])["choices"][0]["text"]
                count("right" if text == expected[index] else "wrong")
            except WorkerError as error:
                count("refused" if "status 429" in str(error) or "status 503" in str(error) else "failed")
                time.sleep(0.05)
            except OSError:
                client = Client(port)
                count("failed")

    def rude(port: int, number: int, until: float) -> None:
        source = random.Random(number)
        body = json.dumps({**asks[0], "max_tokens": 4000, "stream": True}).encode()
        request = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (
            len(body),
            body,
        )
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request if source.random() < 0.5 else source.randbytes(source.randrange(1, 2000)))
                connection.settimeout(source.random() / 5)
                connection.recv(100)
            count("rude")
            time.sleep(0.01)

    with server_of([*ours, "--max-queue", str(2 * args.crowd)], args.threads, args.isa) as (process, port):
        expected = [Client(port).text(ask)["choices"][0]["text"] for ask in asks]
        memory = []
        for seconds in (min(5.0, args.seconds / 4), args.seconds):  # the first part makes the memory that stays
            until = time.monotonic() + seconds
            threads = [
                threading.Thread(target=rude, args=(port, number, until))
                if number % 10 == 0
                else threading.Thread(target=polite, args=(port, number, expected, until))
                for number in range(args.crowd)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            memory.append(resident_mb(process))
        alive = process.poll() is None
    result = {"workload": f"{args.preset} {args.weights}", "task": f"{args.crowd} clients for {args.seconds:g} s"}
    return [
        {**result, "label": "soma_native serve", "alive": alive, "memory_mb": memory, **dict(sorted(counts.items()))}
    ]


def main(argv: list[str] | None = None) -> int:
    """Run, print, record."""
    args = arguments(argv)
    if not args.no_peer and not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")):
        print("llama.cpp is not installed (pip install xllamacpp gguf): ours alone", file=sys.stderr)
        args.no_peer = True
    machine = machine_record(args.threads, args.isa)
    print_machine(machine)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        model = Contender(args, Path(place))
        ours = [sys.executable, "-m", "soma_native", "serve", str(model.folder), "--port", "0", "--json"]
        ours += ["--weights", args.weights, "--max-sequences", str(args.clients)]
        if "clients" in args.tasks:
            found = clients_at_once(args, ours, model, Path(place))
            rows = []
            for r in found:
                ratio = next(
                    (f"{p['median']:.2f} ({p['min']:.2f}-{p['max']:.2f})" for p in r["ours_over_this"].values()), "-"
                )
                spread = f"{min(r['rounds']):,.0f}-{max(r['rounds']):,.0f}"
                rows.append([r["label"], f"{r['tokens_per_second']:,.0f}", spread, ratio])
            print(f"{found[0]['workload']}: {found[0]['task']}")
            print_table(["contender", "tokens/s", "range", "serve is x times"], rows)
            results += found
        if "first" in args.tasks:
            results += first_bytes(args, ours, model)
            print(f"\nfirst event after 100 tokens: {results[-1]['milliseconds']:.1f} ms")
        if "endurance" in args.tasks:
            results += endurance(args, ours, model)
            print(f"\n{json.dumps({key: value for key, value in results[-1].items() if key != 'workload'})}")
    write_record(args.json, "serve", machine, results)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WorkerError as error:
        sys.exit(f"bench_serve: {error}")
