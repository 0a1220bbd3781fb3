"""The package and its system: default threads, instruction sets, Ctrl-C, fork, PyTorch in the same process.

Tests that change their process for good run in a new interpreter.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import soma_native as soma
from helpers.child import PRELUDE, output_of, run_child

LEVELS = ("scalar", "sse", "avx2", "avx512", "avx512_bf16", "amx", "neon", "neon_bf16")


# -------------------------------------------------------------------------------------------------------------- threads


def cgroup_limit() -> int:
    """CPUs that the cgroups of this process grant, rounded up; a large number if they set no limit."""
    least = 10**6
    membership = Path("/proc/self/cgroup")
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = Path("/sys/fs/cgroup/cpu" if controllers else "/sys/fs/cgroup")
        folder = base / path.lstrip("/")
        for place in [folder, *folder.parents]:
            quota, period = 0, 1
            if (place / "cpu.max").is_file():
                text = (place / "cpu.max").read_text().split()
                quota, period = (0 if text[0] == "max" else int(text[0])), int(text[1])
            elif (place / "cpu.cfs_quota_us").is_file():
                quota = int((place / "cpu.cfs_quota_us").read_text())
                period = int((place / "cpu.cfs_period_us").read_text())
            if quota > 0:
                least = min(least, -(-quota // period))
            if place == base:
                break
    return least


needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")


@needs_affinity
def test_default_threads_are_the_least_of_affinity_quota_and_cores(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    expected = min(allowed, cgroup_limit(), os.cpu_count() or 1)
    assert output_of("print(soma.get_num_threads())", tmp_path) == str(expected)


@needs_affinity
def test_affinity_of_one_cpu_means_one_thread(tmp_path: Path) -> None:
    code = """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(soma.get_num_threads())
"""
    assert output_of(code, tmp_path) == "1"


def test_soma_num_threads_is_obeyed(tmp_path: Path) -> None:
    assert output_of("print(soma.get_num_threads())", tmp_path, SOMA_NUM_THREADS="3") == "3"


def test_set_num_threads_wins_over_the_environment(tmp_path: Path) -> None:
    code = "soma.set_num_threads(2); print(soma.get_num_threads())"
    assert output_of(code, tmp_path, SOMA_NUM_THREADS="3") == "2"


@pytest.mark.parametrize("value", ["0", "-2", "two", "1.5", "4 cores"])
def test_a_wrong_soma_num_threads_is_an_error_that_says_so(value: str, tmp_path: Path) -> None:
    done = run_child("soma.get_num_threads()", tmp_path, SOMA_NUM_THREADS=value)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ValueError") and "SOMA_NUM_THREADS" in message and value in message


@pytest.mark.parametrize("value", [0, -1, 10**6])
def test_set_num_threads_refuses_what_makes_no_sense(value: int) -> None:
    before = soma.get_num_threads()
    with pytest.raises(ValueError, match=str(value)):
        soma.set_num_threads(value)
    assert soma.get_num_threads() == before


def test_more_threads_than_cores_give_the_same_bits(tmp_path: Path) -> None:
    code = "model = small_model(); train(model); print(digest(model))"
    one = output_of(code, tmp_path, SOMA_NUM_THREADS="1")
    assert len(one) == 64
    assert output_of(code, tmp_path, SOMA_NUM_THREADS="7") == one


# ----------------------------------------------------------------------------------------------------- instruction sets


def test_the_levels_are_a_chain_that_starts_with_scalar() -> None:
    levels = soma.available_isas()
    assert levels[0] == "scalar"
    assert [LEVELS.index(level) for level in levels] == sorted(LEVELS.index(level) for level in levels)
    assert soma.active_isa() in levels


def test_the_highest_level_is_the_default(tmp_path: Path) -> None:
    assert output_of("print(soma.active_isa() == soma.available_isas()[-1])", tmp_path, SOMA_ISA="") == "True"


@pytest.mark.parametrize("level", soma.available_isas())
def test_soma_isa_caps_the_level(level: str, tmp_path: Path) -> None:
    code = "model = small_model(); losses = train(model); print(soma.active_isa(), losses[-1] < losses[0] + 1)"
    assert output_of(code, tmp_path, SOMA_ISA=level) == f"{level} True"


@pytest.mark.parametrize("level", ["pentium", "AVX2", " sse", "avx512,sse"])
def test_an_unknown_level_is_an_error_that_names_the_known_ones(level: str, tmp_path: Path) -> None:
    done = run_child("train(small_model())", tmp_path, SOMA_ISA=level)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ValueError") and "SOMA_ISA" in message and level in message
    assert all(known in message for known in soma.available_isas())


def test_a_level_this_machine_lacks_is_an_error(tmp_path: Path) -> None:
    lacking = [level for level in LEVELS if level not in soma.available_isas()]
    assert lacking, "no machine has both x86's and ARM's levels"
    for level in lacking:
        done = run_child("train(small_model())", tmp_path, SOMA_ISA=level)
        assert done.returncode != 0
        message = done.stderr.strip().splitlines()[-1]
        assert message.startswith("ValueError") and "SOMA_ISA" in message and level in message


def test_initial_parameters_are_the_same_bits_on_every_level(tmp_path: Path) -> None:
    digests = {output_of("print(digest(small_model(7)))", tmp_path, SOMA_ISA=level) for level in soma.available_isas()}
    assert len(digests) == 1


# ----------------------------------------------------------------------------------------------------- Python's threads


def training_losses(seed: int, steps: int) -> list[float]:
    rng = np.random.default_rng(seed)
    config = soma.ModelConfig(vocab_size=48, d_model=32, n_layers=2, n_heads=4, d_ff=64, max_seq_len=16)
    model = soma.Model(config, seed=seed)
    optimizer = soma.AdamW(model, lr=1e-2)
    losses = []
    for _ in range(steps):
        ids = rng.integers(0, 48, (4, 17)).astype(np.int32)
        losses.append(model.loss_and_grad(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])))
        optimizer.step()
    return losses


def test_two_models_in_two_threads_do_what_they_do_alone(threads: int) -> None:
    alone = [training_losses(seed, 12) for seed in (0, 1)]
    together: dict[int, list[float]] = {}
    start = threading.Barrier(2)

    def work(seed: int) -> None:
        start.wait()
        together[seed] = training_losses(seed, 12)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [together[0], together[1]] == alone


def test_the_number_of_threads_may_change_while_a_model_computes(tmp_path: Path) -> None:
    """Another thread changes it at any moment. The models are new, so their buffers are not yet of the largest size."""
    code = """
import threading
config = soma.ModelConfig(vocab_size=64, d_model=64, n_layers=2, n_heads=4, d_ff=64, max_seq_len=64)
ids, targets = batch(4, 64, 64)
def run():
    model = soma.Model(config)
    loss = model.loss_and_grad(ids, targets)
    return loss, b"".join(value.tobytes() for value in model.gradients().values())
soma.set_num_threads(1)
alone = run()
done, changes = threading.Event(), 0
def change():
    global changes
    while not done.is_set():
        soma.set_num_threads(1)
        soma.set_num_threads(8)
        changes += 1
changer = threading.Thread(target=change)
changer.start()
try:
    together = [run() for _ in range(100)]
finally:
    done.set()
    changer.join()
print(together == 100 * [alone], changes > 100)
"""
    assert output_of(code, tmp_path) == "True True"


def test_gradients_may_be_asked_for_while_they_are_first_computed(tmp_path: Path) -> None:
    """Gradients are allocated once, at the first need. Batches of many sizes vary the moment of the request."""
    code = """
import threading, time
config = soma.ModelConfig(vocab_size=4000, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_seq_len=8)
models, answers = [], []
def ask():
    while len(answers) < 150:
        if len(answers) < len(models):
            answers.append(models[-1].gradients())
sys.setswitchinterval(1e-4)
asker = threading.Thread(target=ask)
asker.start()
same = True
for i in range(150):
    ids, targets = batch(1 + i % 30, 7, 4000)
    model = soma.Model(config)
    models.append(model)
    model.loss_and_grad(ids, targets)
    while len(answers) <= i:
        time.sleep(0)
    mine = model.gradients()
    same &= all(np.shares_memory(mine[name], view) for name, view in answers[i].items())
asker.join()
print(same)
"""
    assert output_of(code, tmp_path, SOMA_NUM_THREADS="1") == "True"


def test_openmp_settings_stay_as_the_user_left_them(tmp_path: Path) -> None:
    """Our setting is in the environment only while OpenMP is loaded. Other libraries and children never see it."""
    code = "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    assert output_of(code, tmp_path) == "None None"
    assert output_of(code, tmp_path, GOMP_SPINCOUNT="77") == "77 None"
    assert output_of(code, tmp_path, OMP_WAIT_POLICY="active") == "None active"


def test_other_threads_run_while_the_core_computes(tmp_path: Path) -> None:
    """Python never takes the GIL from the main thread here, so the watcher runs only if the core releases it."""
    code = """
import threading
model = soma.Model(soma.ModelConfig(vocab_size=64, d_model=128, n_layers=6, n_heads=4, d_ff=512, max_seq_len=256))
ids, targets = batch(16, 256, 64)
sys.setswitchinterval(600)
begin, returned, seen = threading.Event(), False, []
def watch():
    begin.wait()
    seen.append(returned)
watcher = threading.Thread(target=watch)
watcher.start()
begin.set()
model.loss_and_grad(ids, targets)
returned = True
watcher.join()
print(seen)
"""
    assert output_of(code, tmp_path) == "[False]"


# --------------------------------------------------------------------------------------------------------------- Ctrl-C

LONG_CALL = """
model = soma.Model(soma.ModelConfig(vocab_size=64, d_model=64, n_layers=48, n_heads=4, d_ff=256, max_seq_len=256))
ids, targets = batch(16, 256, 64)
try:
    print("READY", flush=True)  # inside: the signal may be quicker than the next line
    model.loss_and_grad(ids, targets)
    print("FINISHED", flush=True)
except KeyboardInterrupt:
    # The backward pass ends at the embedding: still zero means that the call was cut short, not waited for.
    print("CUT SHORT" if not model.gradients()["wte"].any() else "TOO LATE", flush=True)
    model.zero_grad()
    print("USABLE" if np.isfinite(model.loss(*batch(1, 8, 64))) else "BROKEN", flush=True)
"""

TRAINING_LOOP = """
model = small_model()
optimizer = soma.AdamW(model)
data = batch()  # imports a part of NumPy: Python swallows a signal that comes then
print("READY", flush=True)
while True:
    model.loss_and_grad(*data)
    optimizer.step()
"""


def interrupted(code: str, cwd: Path) -> tuple[int, str, str]:
    """Start code and send SIGINT when it prints READY. Returns the exit status and the later output."""
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", PRELUDE + code],
        cwd=cwd,
        env={**os.environ, "SOMA_ISA": "scalar"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "READY", child.communicate()[1]
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=120)
    finally:
        child.kill()
        child.wait()
    return child.returncode, stdout, stderr


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_ends_a_training_loop_with_keyboard_interrupt(tmp_path: Path) -> None:
    status, _, stderr = interrupted(TRAINING_LOOP, tmp_path)
    assert status in (130, -signal.SIGINT), stderr
    assert stderr.strip().splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_cuts_a_single_long_call_short(tmp_path: Path) -> None:
    status, stdout, stderr = interrupted(LONG_CALL, tmp_path)
    assert stdout.split("\n")[:2] == ["CUT SHORT", "USABLE"], stdout + stderr
    assert status == 0


# ----------------------------------------------------------------------------------------------------------------- fork

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


@needs_fork
def test_a_forked_child_computes_the_same_bits_and_does_not_hang(tmp_path: Path) -> None:
    code = """
soma.set_num_threads(2)
model = small_model()
train(model)                       # the pool of threads exists now, and does not survive fork
expected = model.loss(*batch(seed=9)), digest(model)
pid = os.fork()
if pid == 0:
    same = (model.loss(*batch(seed=9)), digest(model)) == expected
    train(model)
    os._exit(0 if same else 3)
_, status = os.waitpid(pid, 0)
train(model)                       # and the parent goes on
print(os.waitstatus_to_exitcode(status), soma.get_num_threads())
"""
    assert output_of(code, tmp_path, timeout=120) == "0 2"


@needs_fork
def test_a_child_forked_before_any_use_is_free_to_use_threads(tmp_path: Path) -> None:
    code = """
pid = os.fork()
if pid == 0:
    soma.set_num_threads(2)
    model = small_model()
    train(model)
    print(digest(model), flush=True)
    os._exit(0)
_, status = os.waitpid(pid, 0)
model = small_model()
train(model)
print(digest(model))
"""
    child, parent = output_of(code, tmp_path).splitlines()
    assert child == parent


@needs_fork
def test_a_multiprocessing_pool_works_after_use(tmp_path: Path) -> None:
    code = """
import multiprocessing
soma.set_num_threads(2)
train(small_model())

def work(seed):
    model = small_model(seed)
    train(model)
    return digest(model)

with multiprocessing.get_context("fork").Pool(2) as pool:
    there = pool.map(work, [1, 2])
print(there == [work(1), work(2)])
"""
    assert output_of(code, tmp_path) == "True"


# -------------------------------------------------------------------------------------------------------------- PyTorch

TORCH_WORK = """
import torch
def torch_work():
    torch.manual_seed(0)
    a = torch.randn(256, 256, requires_grad=True)
    (a @ a).relu().sum().backward()
    return float(a.grad.double().sum())
"""
OURS = "model = small_model(); losses = train(model); print('result', digest(model), losses)\n"


def test_torch_before_or_after_or_between_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    alone = output_of(OURS, tmp_path, SOMA_NUM_THREADS="2")
    orders = {
        "torch first": TORCH_WORK + "torch_work()\n" + OURS,
        "torch after": OURS + TORCH_WORK + "torch_work()\n",
        "interleaved": TORCH_WORK
        + """
model = small_model()
optimizer = soma.AdamW(model, lr=1e-2)
losses, theirs = [], set()
for step in range(3):
    theirs.add(torch_work())
    losses.append(model.loss_and_grad(*batch(seed=step)))
    theirs.add(torch_work())
    optimizer.step()
assert len(theirs) == 1, theirs
print('result', digest(model), losses)
""",
    }
    for order, code in orders.items():
        assert output_of(code, tmp_path, SOMA_NUM_THREADS="2") == alone, order


def test_torch_imported_before_us_works(tmp_path: Path) -> None:
    """The prelude imports soma_native, so torch loads its OpenMP runtime before ours."""
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", TORCH_WORK + "torch_work()\n" + PRELUDE + OURS],
        cwd=tmp_path,
        env={**os.environ, "SOMA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == output_of(OURS, tmp_path, SOMA_NUM_THREADS="2")
