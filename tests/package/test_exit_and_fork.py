"""The end of Python, and fork, while another thread computes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.child import output_of, run_child

pytestmark = pytest.mark.levels("bfloat16")

SETUP = """
import signal, threading, types
config = soma.ModelConfig(vocab_size=256, d_model=64, n_layers=2, n_heads=4, d_ff=256, max_seq_len=64)
model, other = soma.Model(config, seed=1), soma.Model(config, seed=2)
tok = soma.Tokenizer.train(["the quick brown fox"], kind="byte")
bpe = soma.Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 3, kind="bpe", vocab_size=270)
ids, targets = batch(8, 64, 256)
long_text = "some text " * 20000
texts = ["some text " * 20] * 2000
tokens = tok.encode_array(long_text)
optimizer = soma.AdamW(model)

def in_a_thread(call):
    '''Repeats the call on a daemon thread; returns after the first, as a rule while the next is under way.'''
    begun = threading.Event()
    def work():
        while True:
            call()
            begun.set()
    threading.Thread(target=work, daemon=True).start()
    begun.wait()
"""

CALLS = {
    "forward": "model.forward(ids)",
    "loss": "model.loss(ids, targets)",
    "loss_and_grad": "model.loss_and_grad(ids, targets)",
    "step": "optimizer.step()",
    "new model": "soma.Model(config)",
    "weights": "soma.Generator(model, tok, weights='int8')",
    "generate": "soma.Generator(model, tok).generate('the', max_tokens=40)",
    "encode": "tok.encode_array(long_text)",
    "encode bpe": "bpe.encode(long_text)",
    "encode_batch": "bpe.encode_batch(texts)",
    "decode": "tok.decode(tokens)",
    "train": "soma.Tokenizer.train(texts, kind='bpe', vocab_size=260)",
}


# ---------------------------------------------------------------------------------------------------------- Python ends


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_program_ends_with_its_own_status_while_a_daemon_thread_computes(
    call: str, threads: str, tmp_path: Path
) -> None:
    """An object's destructor computes while Python ends, with the thread's model too, so that the thread returns."""
    code = f"""
class Last:
    def __del__(self, models=(model, other), ids=ids, write=os.write):
        for _ in range(30):
            logits = [m.forward(ids) for m in models]
        write(1, b"last")

last = types.ModuleType("last")
last.object = Last()
sys.modules["last"] = last
del last
in_a_thread(lambda: {call})
sys.exit(7)
"""
    done = run_child(SETUP + code, tmp_path, SOMA_NUM_THREADS=threads)
    assert (done.returncode, done.stdout, done.stderr) == (7, "last", "")


# ----------------------------------------------------------------------------------------------------------------- fork

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

# The alarm ends a child that hangs.
FORKS = """
def start_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        status = 3
        try:
            status = 0 if work() else 4
        finally:
            os._exit(status)
    return pid
def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def status_of_child(work):
    return status_of(start_child(work))
"""

CHILD_WORK = """
def results():
    found = [model.forward(ids[:2, :5]).tobytes(), model.loss(ids, targets)]
    model.zero_grad()
    found += [model.loss_and_grad(ids, targets), *(g.tobytes() for g in model.gradients().values())]
    found += [soma.Generator(model, tok, weights=w).generate("the", max_tokens=5, seed=1) for w in ("auto", "bfloat16")]
    found += [bpe.encode(long_text[:5000]), tok.decode(tokens[:100]), bpe.encode_batch(texts[:20])]
    model.zero_grad()
    return found
"""


@needs_fork
@pytest.mark.parametrize(
    "call", [c for name, c in CALLS.items() if name != "step"], ids=[name for name in CALLS if name != "step"]
)
def test_a_child_computes_with_what_another_thread_was_computing_with(call: str, tmp_path: Path) -> None:
    code = f"""
expected, before = results(), digest(model)
in_a_thread(lambda: {call})
def work():
    optimizer_of_child = soma.AdamW(model)
    same = results() == expected and digest(model) == before
    model.loss_and_grad(ids, targets)
    optimizer_of_child.step()
    return same and digest(model) != before
print(*(status_of_child(work) for _ in range(2)))
"""
    assert output_of(SETUP + FORKS + CHILD_WORK + code, tmp_path, SOMA_NUM_THREADS="2") == "0 0"


@needs_fork
@pytest.mark.parametrize("kind", ["AdamW", "Muon"])
def test_a_child_sees_steps_of_the_optimizer_whole(kind: str, tmp_path: Path) -> None:
    """A child has parameters and moments of the same step, although the thread steps without a pause."""
    code = """
wide = soma.ModelConfig(vocab_size=256, d_model=256, n_layers=6, n_heads=4, d_ff=1024, max_seq_len=16)
def state(model, optimizer):
    parts = [model.parameters(), optimizer.state()]
    return hash(b"".join(value.tobytes() for part in parts for value in part.values()))
def begin():
    model = soma.Model(wide, seed=3)
    model.loss_and_grad(*batch(2, 8, 256))
    return model, getattr(soma, KIND)(model)
STEPS = 6
model, optimizer = begin()
whole = {state(model, optimizer)}
for _ in range(STEPS):
    optimizer.step()
    whole.add(state(model, optimizer))
model, optimizer = begin()
begins, may_go_on, ended = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
def work():
    for _ in range(STEPS):
        ended.clear()
        begins.release()
        optimizer.step()
        ended.set()
        may_go_on.acquire()
thread = threading.Thread(target=work)
thread.start()
statuses = []
for _ in range(STEPS):
    begins.acquire()  # which returns as soon as the thread gives the GIL up: as a rule in its step
    children = []
    while not ended.is_set() and len(children) < 30:
        children.append(start_child(lambda: state(model, optimizer) in whole))
    statuses += map(status_of, children)
    may_go_on.release()
thread.join()
print(len(statuses) > 0, set(statuses))
"""
    assert output_of(f"{SETUP}{FORKS}KIND = {kind!r}\n{code}", tmp_path, SOMA_NUM_THREADS="1") == "True {0}"


@needs_fork
def test_calls_of_the_parent_take_no_threads_from_a_child(tmp_path: Path) -> None:
    code = """
from soma_native._core import _ops
in_a_thread(lambda: model.forward(ids))
def work():
    soma.set_num_threads(3)
    return tuple(_ops.threads_at_work("loop")) == (3, 3)
print(*(status_of_child(work) for _ in range(4)))
"""
    assert output_of(SETUP + FORKS + code, tmp_path, SOMA_NUM_THREADS="1") == "0 0 0 0"


@needs_fork
def test_a_signal_cuts_a_call_short_in_a_child_of_another_thread(tmp_path: Path) -> None:
    """The forking thread is the main thread of the child, so it must check for signals there."""
    code = """
deep = soma.ModelConfig(vocab_size=64, d_model=64, n_layers=48, n_heads=4, d_ff=256, max_seq_len=256)
model = soma.Model(deep)
ids, targets = batch(16, 256, 64)
def stop(*_):
    raise InterruptedError
def work():
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        model.loss_and_grad(ids, targets)
    except InterruptedError:
        return not model.gradients()["wte"].any()
thread = threading.Thread(target=lambda: print(status_of_child(work)))
thread.start()
thread.join()
"""
    assert output_of(SETUP + FORKS + code, tmp_path, SOMA_ISA="scalar", SOMA_NUM_THREADS="1") == "0"
