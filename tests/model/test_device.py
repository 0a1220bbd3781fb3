"""The device of a model: its name, arrays read and written by name, and the errors for a device that is not there."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.child import run_child
from soma_native.cli.main import main
from soma_native.optim.average import WeightAverage

SIZES: dict[str, Any] = {"vocab_size": 12, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_seq_len": 16}
IDS = np.arange(24).reshape(2, 12) % 12
ABSENT = r"device 'cuda:1' needs the package soma-native-cuda13, which is not installed: pip install "


@pytest.fixture
def model(block: str) -> soma.Model:
    return soma.Model(soma.ModelConfig(block=block, **SIZES), seed=1)


def test_a_model_is_on_the_processor_unless_it_is_told_otherwise(model: soma.Model) -> None:
    assert model.device == soma.Model(model.config, device="cpu").device == "cpu"
    assert pickle.loads(pickle.dumps(model)).device == "cpu"


def test_arrays_can_be_written_to_only_where_they_are_views(model: soma.Model) -> None:
    for arrays in (model.parameters(), model.gradients(), soma.Muon(model).state(), WeightAverage(model).values()):
        assert {array.flags.writeable for array in arrays.values()} == {model._core.on_host}


def test_parameters_are_read_as_copies_and_written_by_name(model: soma.Model) -> None:
    other = soma.Model(model.config, seed=2)
    for name, array in model.parameters().items():
        copy = model.read(name)
        assert copy.tobytes() == array.tobytes()
        copy[...] += 1
        assert array.tobytes() != copy.tobytes(), "a copy"
        other.write(name, array.astype(np.float64))
        assert other.read(name).tobytes() == array.tobytes()
    assert other.forward(IDS).tobytes() == model.forward(IDS).tobytes()


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros(3), ValueError, r"array must have shape \(\d+, 8\), got \(3,\)"),
        (["a"], TypeError, "array must hold real numbers"),
        (np.zeros((12, 8), complex), TypeError, "array must hold real numbers, got dtype complex128"),
    ],
)
def test_what_does_not_fit_a_parameter_is_refused(
    model: soma.Model, array: Any, error: type[Exception], message: str
) -> None:
    name = next(iter(model.parameters()))
    before = model.read(name)
    with pytest.raises(error, match=message):
        model.write(name, array)
    assert model.read(name).tobytes() == before.tobytes()
    for call in (lambda: model.read("wrong"), lambda: model.write("wrong", before)):
        with pytest.raises(ValueError, match=r"name must be a parameter of the model, such as '.*', got 'wrong'"):
            call()


@pytest.mark.parametrize("make", [soma.AdamW, soma.Muon])
def test_moments_and_averages_are_written_by_name(
    model: soma.Model, make: Callable[[soma.Model], soma.AdamW | soma.Muon]
) -> None:
    optimizer, average = make(model), WeightAverage(model)
    for name, array in optimizer.state().items():
        optimizer.write(name, np.full(array.shape, 0.5))
        assert (optimizer.state()[name] == 0.5).all()
    for name, array in average.values().items():
        average.write(name, np.full(array.shape, 0.25))
        assert (average.values()[name] == 0.25).all() and (model.read(name) != 0.25).all()
    for wrong in ("first_moment.wrong", "wrong.wte", "wrong"):
        with pytest.raises(ValueError, match=rf"name must be that of an array of state\(\), got '{wrong}'"):
            optimizer.write(wrong, np.zeros(1))
    with pytest.raises(ValueError, match="name must be a parameter of the model"):
        average.write("wrong", np.zeros(1))


def test_a_device_that_is_not_there_is_never_replaced(model: soma.Model, tmp_path: Path) -> None:
    tok = soma.Tokenizer.train(["abcdefghij"], kind="char")
    soma.save(tmp_path, model, tok)
    for call in (
        lambda: soma.Model(model.config, device="cuda:1"),
        lambda: soma.load(tmp_path, device="cuda:1"),
        lambda: soma.train(["abc"], 1, device="cuda:1"),
    ):
        with pytest.raises(ValueError, match=ABSENT):
            call()
    for wrong in ("gpu", "cuda:", "cuda:x", "CPU", ""):
        with pytest.raises(
            ValueError, match=f"device must be 'cpu', 'cuda' or 'cuda:N' for GPU number N, got '{wrong}'"
        ):
            soma.Model(model.config, device=wrong)
    with pytest.raises(TypeError, match="device must be a name such as 'cpu', got int"):
        soma.Model(model.config, device=0)  # type: ignore[arg-type]
    assert soma.load(tmp_path, device="cpu")[0].device == "cpu"


@pytest.mark.parametrize("command", ["train", "generate", "evaluate", "bench", "showcase"])
def test_the_command_names_the_option_and_what_to_install(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text, out = tmp_path / "model", tmp_path / "text.txt", tmp_path / "out"
    text.write_text("abcabcabc\n" * 40)
    tok = soma.Tokenizer.train(["abcdefghij"], kind="char")
    soma.save(folder, soma.Model(soma.ModelConfig(**SIZES)), tok)
    given = {
        "train": [text, "--out", out, "--minutes", 1],
        "generate": [folder, "abc"],
        "evaluate": [folder, text],
        "bench": ["showcase", "--steps", 1],
        "showcase": ["--out", out],
    }[command]
    with pytest.raises(SystemExit) as ended:
        main([command, *map(str, given), "--device", "cuda"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--device 'cuda' needs the package soma-native-cuda13, which is not installed" in said
    assert said.count("\n") == 1 and not any(out.glob("*")), "nothing was begun"


PEEK = """
from soma_native import _core
model = small_model()
print(model._core.on_host, flush=True)
print(_core._ops.peek(model._core) == next(iter(model.parameters().values())).flat[0])
"""


def test_a_host_that_reads_memory_of_a_device_ends_the_process(model: soma.Model, tmp_path: Path) -> None:
    """A planted mistake: `make test-strict` finds it."""
    done = run_child(PEEK, tmp_path)
    on_host, *said = done.stdout.split()
    assert on_host == str(model._core.on_host)
    assert (done.returncode, said) == ((0, ["True"]) if model._core.on_host else (-signal.SIGSEGV, []))
