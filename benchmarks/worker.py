"""One contender in one process: it reads commands as JSON lines and answers with results (common.Worker)."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common import WORKLOADS, initial_parameters, training_batches


def trainer(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., dict[str, Any]]]:
    """Training steps of one contender: command steps(n) -> seconds and the loss of every step."""
    workload = WORKLOADS[options["workload"]].as_block(options["block"])
    workload = replace(workload, batch=options["batch"], seq_len=options["seq_len"])
    params = initial_parameters(workload)
    contender: Any
    if options["contender"] == "torch":
        from torch_peer import TorchTrainer

        contender = TorchTrainer(
            workload, options["mode"], options["threads"], options["lr"], params, options["device"]
        )
        info = {"parameters": contender.parameters}
    else:
        from native import NativeTrainer

        contender = NativeTrainer(workload, options["mode"], options["lr"], params, options["device"])
        info = {"parameters": contender.parameters, "precision": contender.model.precision, "isa": contender.isa}
    del params
    batches = [contender.batch(*pair) for pair in training_batches(workload)]
    done = 0

    def steps(n: int) -> dict[str, Any]:
        nonlocal done
        losses = []
        begin = time.perf_counter()
        for _ in range(n):
            losses.append(contender.step(batches[done % len(batches)]))
            done += 1
        return {"seconds": time.perf_counter() - begin, "losses": losses}

    return info, lambda do, n: steps(n)


def decoder(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., dict[str, Any]]]:
    """Generation by one contender: commands prefill, decode, sample and logits."""
    workload = WORKLOADS[options["workload"]].as_block(options["block"])
    contender: Any
    if options["contender"] == "llama.cpp":
        from llama_peer import LlamaDecoder

        contender = LlamaDecoder(workload, options["mode"], options["threads"])
    else:
        from native import NativeDecoder

        contender = NativeDecoder(workload, options["mode"], options["device"])

    def run(do: str, ids: list[int], repeat: int = 1) -> dict[str, Any]:
        if do == "logits":
            return {"logits": contender.logits(ids)}
        work = getattr(contender, do)
        begin = time.perf_counter()
        for _ in range(repeat):
            work(ids)
        return {"seconds": time.perf_counter() - begin}

    return {"parameters": contender.parameters}, run


def scorer(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., dict[str, Any]]]:
    """Scoring of a text by one contender: command score(n) -> seconds and the first n log-probabilities."""
    contender: Any
    if options["contender"] == "transformers":
        from transformers_peer import TransformersScorer

        contender = TransformersScorer(options["folder"], options["text"], options["mode"], options["threads"])
    else:
        from native import NativeScorer

        contender = NativeScorer(options["folder"], options["text"], options["mode"])

    def score(n: int) -> dict[str, Any]:
        begin = time.perf_counter()
        logprobs = contender.score()
        return {"seconds": time.perf_counter() - begin, "tokens": len(logprobs) + 1, "logprobs": logprobs[:n]}

    return {"parameters": contender.parameters}, lambda do, n: score(n)


def engine(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., dict[str, Any]]]:
    """Our texts at once or one by one: commands together and alone -> seconds and texts; export."""
    from native import NativeEngine

    options.pop("threads")
    contender = NativeEngine(**options)

    def run(do: str, **more: Any) -> dict[str, Any]:
        if do == "export":
            return contender.export(**more)
        begin = time.perf_counter()
        texts = getattr(contender, do)()
        return {"seconds": time.perf_counter() - begin, "texts": texts}

    return {"parameters": contender.parameters}, run


def llama_batch(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., dict[str, Any]]]:
    """Batches of llama.cpp: commands together -> seconds, and logits(ids)."""
    from llama_batch import LlamaBatch

    contender = LlamaBatch(**options)

    def run(do: str, ids: list[int] | None = None) -> dict[str, Any]:
        if ids is not None:
            return {"logits": contender.logits_after(ids)}
        begin = time.perf_counter()
        contender.write()
        return {"seconds": time.perf_counter() - begin}

    return {"parameters": contender.parameters}, run


def main() -> None:
    """Serve commands until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a library goes to standard error, because standard output carries the answers

    def answer(message: dict[str, Any]) -> None:
        message["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        info, run = KINDS[sys.argv[1]](json.loads(sys.argv[2]))
        answer(info)
        for line in sys.stdin:
            answer(run(**json.loads(line)))
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error


KINDS = {"train": trainer, "decode": decoder, "score": scorer, "engine": engine, "llama-batch": llama_batch}

if __name__ == "__main__":
    main()
