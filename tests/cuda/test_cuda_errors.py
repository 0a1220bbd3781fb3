"""What can go wrong with a GPU is one clear exception each, in the emulation, and the process goes on."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.child import run_script
from helpers.cuda import I64, lib
from soma_native import _core
from soma_native.cli.main import main
from soma_native.optim.average import WeightAverage

SIZES = {"vocab_size": 12, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_seq_len": 256}
CONFIG = soma.ModelConfig(**SIZES)
IDS = np.arange(24).reshape(2, 12) % 12
LIBRARY = Path(os.environ["SOMA_CUDA_LIBRARY"])
CUDA_13 = 13000
lib.soma_taken_memory.restype = I64


@pytest.fixture
def machine() -> Iterator[None]:
    """Restores the emulated machine after the test."""
    yield
    lib.soma_set_machine(1, 9, 0, CUDA_13)
    lib.soma_set_memory(I64(4 << 30))


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("gpus", "capability", "driver", "message"),
    [
        (1, (9, 0), CUDA_13, "there is no GPU number 1: the only one is 0$"),
        (0, (9, 0), CUDA_13, r"there is no GPU that CUDA may use \(CUDA_VISIBLE_DEVICES can hide them\)$"),
        (2, (7, 5), CUDA_13, r"GPU 1 \(Emulation\) has compute capability 7.5: at least 8.0 is needed$"),
        (1, (9, 0), 0, r"no NVIDIA driver is installed: one for CUDA 13.0 \(driver 580 or newer\) is needed$"),
        (1, (9, 0), 12040, r"the NVIDIA driver is for CUDA 12.4: one for CUDA 13.0 \(driver 580 or newer\) is needed$"),
    ],
)
def test_a_gpu_that_cannot_be_used_says_why(gpus: int, capability: tuple[int, int], driver: int, message: str) -> None:
    lib.soma_set_machine(gpus, *capability, driver)
    with pytest.raises(ValueError, match=r"^device 'cuda:1' cannot be used: " + message):
        soma.Model(CONFIG, device="cuda:1")


@pytest.mark.usefixtures("machine")
def test_each_gpu_has_a_number() -> None:
    lib.soma_set_machine(2, 9, 0, CUDA_13)
    model, second = (soma.Model(CONFIG, device=device) for device in ("cuda:0", "cuda:1"))
    assert (model.device, second.device) == ("cuda", "cuda:1")
    assert second.forward(IDS).tobytes() == model.forward(IDS).tobytes()


@pytest.mark.usefixtures("machine")
def test_too_little_memory_says_how_much_and_the_process_goes_on() -> None:
    model = soma.Model(CONFIG, precision="float32", device="cuda")
    before = model.loss_and_grad(IDS, IDS)
    lib.soma_set_memory(I64(lib.soma_taken_memory() + 40_000))
    message = r"out of memory on cuda: \d{5,} bytes asked, \d+ of \d+ bytes free; a smaller batch"
    with pytest.raises(MemoryError, match=message):
        model.loss_and_grad(np.zeros((64, 256), int), np.zeros((64, 256), int))
    with pytest.raises(MemoryError, match="^for a model of 66,584 parameters: .*; " + message):
        soma.Model(soma.ModelConfig(**{**SIZES, "vocab_size": 4000}), device="cuda")
    model.zero_grad()
    assert model.loss_and_grad(IDS, IDS) == before
    lib.soma_set_memory(I64(4 << 30))
    assert np.isfinite(model.loss_and_grad(np.zeros((8, 64), int), np.zeros((8, 64), int)))


@pytest.mark.usefixtures("machine")
def test_too_little_memory_for_keys_and_values_is_an_error_and_the_generator_goes_on() -> None:
    model = soma.Model(CONFIG, device="cuda")
    decoder, ids = _core.Decoder(model._core, 1), np.arange(5, dtype=np.int32)
    decoder.prefill(0, ids)
    want = decoder.logits().tobytes()
    lib.soma_set_memory(I64(lib.soma_taken_memory() + 40_000))
    with pytest.raises(MemoryError, match=r"^out of memory on cuda: \d+ bytes asked, \d+ of \d+ bytes free"):
        _core.Decoder(model._core, 64)
    decoder.prefill(0, ids)
    assert decoder.logits().tobytes() == want


def test_a_failed_kernel_is_an_error_of_the_call_that_waits_for_it() -> None:
    model = soma.Model(CONFIG, device="cuda")
    lib.soma_fail_next()
    with pytest.raises(
        RuntimeError,
        match=r"^the GPU failed: an illegal memory access was encountered\. Start the program again; a run resumes",
    ):
        model.forward(IDS)


def test_an_attempt_to_write_names_what_writes() -> None:
    model = soma.Model(CONFIG, device="cuda")
    optimizer, average = soma.Muon(model), WeightAverage(model)
    writes: list[Callable[[Any], Any]] = [
        lambda array: array.__setitem__(0, 1),
        lambda array: array[:1].__setitem__(0, 1),
        lambda array: array.__imul__(2),
        lambda array: np.add(array, 1, out=array),
    ]
    for arrays, instead in (
        (model.parameters(), r"model\.write\(name, array\)"),
        (model.gradients(), r"change a copy\(\)"),
        (optimizer.state(), r"optimizer\.write\(name, array\)"),
        (average.values(), r"average\.write\(name, array\)"),
    ):
        array = next(iter(arrays.values()))
        for write in writes:
            with pytest.raises(ValueError, match=f"a copy of what is on the GPU, and cannot be written to: {instead}"):
                write(array)
        copy = array.copy()
        copy[...] = 2
        assert (copy == 2).all()
        assert type(array + 1) is type(pickle.loads(pickle.dumps(array))) is np.ndarray


@pytest.mark.usefixtures("machine")
def test_info_lists_the_gpus_or_says_why_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    lib.soma_set_machine(2, 9, 0, CUDA_13)
    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["cuda"]
    gpu = {"name": "Emulation", "memory": 4 << 30, "compute_capability": "9.0"}
    assert told["gpus"] == [{"device": "cuda", **gpu}, {"device": "cuda:1", **gpu}]
    assert (told["library"], told["driver"], told["problem"]) == (str(LIBRARY), "13.0", None)
    assert main(["info"]) == 0
    assert "Emulation, 4.3 GB, capability 9.0" in capsys.readouterr().out
    lib.soma_set_machine(1, 9, 0, 12040)
    assert main(["info"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "none: --device cuda cannot be used: the NVIDIA driver is for CUDA 12.4: one for CUDA 13.0" in said


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = soma.Model(CONFIG, seed=1, device="cuda")
    optimizer = soma.AdamW(model)
    model.loss_and_grad(IDS, IDS)
    before = [array.tobytes() for array in (*model.parameters().values(), *optimizer.state().values())]
    name = next(iter(model.gradients()))
    gradient = model.gradients()[name].copy()
    gradient[0, 0] = np.nan
    model._core.write(name, gradient, gradient=True)
    with pytest.raises((ValueError, FloatingPointError, RuntimeError), match="finite"):
        optimizer.step(lr=0.1)
    assert [array.tobytes() for array in (*model.parameters().values(), *optimizer.state().values())] == before


FULL = """
import ctypes, os
import soma_native as soma
library = ctypes.CDLL(os.environ["SOMA_CUDA_LIBRARY"])
library.soma_set_memory(ctypes.c_int64(1000))
config = soma.ModelConfig(vocab_size=12, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
try:
    soma.Model(config, device="cuda")
except MemoryError as error:
    print(error)
library.soma_set_memory(ctypes.c_int64(4 << 30))
print(soma.Model(config, device="cuda").device)
"""


def test_a_gpu_that_is_full_already_is_a_memory_error() -> None:
    done = run_script(FULL)
    said = "out of memory on the GPU: CUDA itself needs more than is free; end other programs there"
    assert done.stdout.splitlines() == [said, "cuda"], done.stderr


FORKED = """
import os, sys
import numpy as np
import soma_native as soma
config, ids = soma.ModelConfig(vocab_size=12, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16), np.arange(12)
model = soma.Model(config, device="cuda")
before = model.forward(ids)
if os.fork() == 0:
    for call in (lambda: model.forward(ids), lambda: model.read("wte"), lambda: soma.Model(config, device="cuda")):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, error)
    print(soma.Model(config).device)
    del model
    sys.stdout.flush()
    os._exit(0)
os.wait()
print((model.forward(ids) == before).all())
"""


def test_the_child_of_a_fork_is_told_and_its_parent_goes_on() -> None:
    done = run_script(FORKED)
    said = done.stdout.splitlines()
    why = "this process was forked from one that had used a GPU, and cannot use it: start processes with "
    assert [line.partition(why)[0] for line in said] == [
        "RuntimeError ",
        "RuntimeError ",
        "ArgumentError device 'cuda' cannot be used: ",
        "cpu",
        "True",
    ], (said, done.stderr)


OPENS = "import soma_native as soma; soma.Model(soma.ModelConfig.preset('showcase'), device='cuda')"


def test_a_library_of_another_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    lib.soma_open_backend.restype = ctypes.c_char_p
    backend = ctypes.c_void_p()
    reason = lib.soma_open_backend(b"0.0.0 (interface 000000000000)", ctypes.byref(backend))
    mine = rf"{re.escape(soma.__version__)} \(interface [0-9a-f]{{12}}\)"
    said = rf"it is of soma_native {mine}, and this is soma_native 0.0.0 \(interface 000000000000\)"
    assert backend.value is None and re.fullmatch(said, reason.decode())

    other, source = tmp_path / "other.so", tmp_path / "other.c"
    source.write_text('const char* soma_open_backend(const char* core, void** backend) { return "it is of 9.9"; }')
    subprocess.run(["cc", "-shared", "-fPIC", "-o", other, source], check=True)
    last = run_script(OPENS, SOMA_CUDA_LIBRARY=str(other)).stderr.splitlines()[-1]
    assert last == (
        f"soma_native.errors.ArgumentError: device 'cuda' cannot use {other}: it is of 9.9. Install one version of "
        f"both: pip install soma-native-cuda13=={soma.__version__}"
    )


def test_what_is_no_library_is_refused_by_its_path(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.so"
    assert f"cannot use {wrong}: " in run_script(OPENS, SOMA_CUDA_LIBRARY=str(wrong)).stderr
    other = str(LIBRARY.with_name("libsoma_cuda_emulation.so"))
    said = run_script(OPENS, SOMA_CUDA_LIBRARY=other).stderr
    assert f"cannot use {other}: {other} is no library of soma_native. Install one" in said
