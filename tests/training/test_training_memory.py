"""What training takes in memory, what is free, and what happens before the first step where that is too little."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.child import output_of
from helpers.training import SENTENCES, WORDS, make_model, make_trainer
from soma_native.errors import RankError
from soma_native.parallel.threads import ThreadComm, run_ranks
from soma_native.training.memory import free_memory, require_memory, size_text, training_memory

SHAPES: dict[str, dict[str, Any]] = {
    "many tokens": {"vocab_size": 256, "d_model": 128, "n_layers": 4, "n_heads": 4, "d_ff": 352, "block": "llama"},
    "many parameters": {"vocab_size": 2000, "d_model": 384, "n_layers": 4, "n_heads": 4, "d_ff": 768, "block": "gpt2"},
}

CHILD = """
import json
from pathlib import Path
from soma_native.training.memory import training_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def train(config, batch, optimizer, average):
    tokens = (np.arange(4 * batch * config.max_seq_len) * 7 % config.vocab_size).astype(np.uint16)
    store = soma.TokenStore(tokens, np.array([0]), np.array([len(tokens)]))
    settings = soma.TrainConfig(steps=2, batch_size=batch, optimizer=optimizer, ema=0.9 if average else None)
    sizes = []
    model = soma.Model(config)
    soma.Trainer(model, None, settings).fit(store, callbacks=[lambda event: sizes.append(resident())])
    return max(sizes), model.precision

asked = json.loads(os.environ["ASKED"])
config = soma.ModelConfig(**asked["shape"])
train(soma.ModelConfig(vocab_size=16, d_model=16, n_layers=1, n_heads=2, d_ff=16, max_seq_len=8), 2, *asked["how"])
before = resident()
after, precision = train(config, asked["batch"], *asked["how"])
batch, length = asked["batch"], config.max_seq_len
print(json.dumps([after - before, training_memory(config, batch, length, precision, *asked["how"], best=False)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.parametrize(
    ("shape", "batch", "length", "how"),
    [("many tokens", 16, 128, ("muon", True)), ("many parameters", 2, 32, ("adamw", False))],
)
def test_what_is_predicted_is_what_a_process_grows_by(
    shape: str, batch: int, length: int, how: Any, tmp_path: Path
) -> None:
    asked = json.dumps({"shape": SHAPES[shape] | {"max_seq_len": length}, "batch": batch, "how": how})
    grown, predicted = json.loads(output_of(CHILD, tmp_path, ASKED=asked, SOMA_NUM_THREADS="2"))
    assert abs(predicted - grown) < 0.25 * grown + 20e6, (predicted, grown)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_ranks_share_the_moments(optimizer: str) -> None:
    config = soma.ModelConfig(**SHAPES["many parameters"], max_seq_len=32)
    kind = {"adamw": soma.AdamW, "muon": soma.Muon}[optimizer]
    moments = 4 * sum(array.size for array in kind(soma.Model(config)).state().values())
    one, four = (training_memory(config, 2, 32, "float32", optimizer, ranks=ranks) for ranks in (1, 4))
    sent = 4 * (config.num_parameters + config.num_parameters // 16)
    assert one + sent - four == pytest.approx(0.75 * moments, abs=4)
    assert training_memory(config, 2, 32, "float32", optimizer, ranks=4, first=True) == four + moments


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_average_best_weights_and_optimizer_count_in_the_memory(precision: str) -> None:
    config = soma.ModelConfig(**SHAPES["many parameters"], max_seq_len=32)
    weights = 4 * config.num_parameters

    def needed(*options: Any, batch: int = 4, **named: Any) -> int:
        return training_memory(config, batch, 32, precision, *options, **named)

    plain = needed("adamw", best=False)
    assert plain > 4 * weights
    assert needed("adamw", True, best=False) - plain == weights == needed("adamw") - plain
    vectors = needed("adamw", best=False) - needed("muon", best=False)
    assert 0 < vectors < weights, "a second moment of what Muon does not move, less its scratch"
    assert needed("adamw", teachers=[config]) > needed("adamw") + weights
    longer = needed(batch=8) - needed(batch=4)
    assert needed(batch=12) - needed(batch=8) == pytest.approx(longer, rel=0.2)


# --- what is free

GIB = 1 << 30


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


SYSTEM = {"proc/meminfo": f"MemTotal: {16 << 20} kB\nMemFree: 9 kB\nMemAvailable: {8 << 20} kB\n"}
V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"


def group(folder: str, limit: str, used: int, cached: int, v1: bool = False) -> dict[str, str]:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_") if v1 else ("memory.max", "memory.current", "")
    stat = f"anon 5\n{names[2]}inactive_file {cached}\n"
    return {folder + names[0]: f"{limit}\n", folder + names[1]: f"{used}\n", folder + "memory.stat": stat}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (SYSTEM, 8 * GIB),
        ({"proc/meminfo": "MemTotal: 1 kB\n"}, None),
        (SYSTEM | {"proc/self/cgroup": "0::/a\n"} | group(f"{V2}a/", str(4 * GIB), 3 * GIB, GIB), 2 * GIB),
        (SYSTEM | {"proc/self/cgroup": "0::/a/b\n"} | group(f"{V2}a/", str(4 * GIB), 3 * GIB, 0)
         | group(f"{V2}a/b/", "max", GIB, 0), GIB),
        (SYSTEM | {"proc/self/cgroup": "0::/\n"} | group(V2, str(64 * GIB), GIB, 0), 8 * GIB),
        ({"proc/self/cgroup": "0::/\n"} | group(V2, str(GIB), 2 * GIB, 0), 0),
        (SYSTEM | {"proc/self/cgroup": "3:cpu,memory:/a\n1:cpu:/a\n"}
         | group(f"{V1}a/", str(3 * GIB), 2 * GIB, 0, v1=True), GIB),
        (SYSTEM | {"proc/self/cgroup": "3:memory:/seen/from/outside\n"}
         | group(V1, str(5 * GIB), 2 * GIB, GIB, v1=True), 4 * GIB),
        (SYSTEM | {"proc/self/cgroup": "3:memory:/\n"} | group(V1, str((1 << 63) - 4096), GIB, 0, v1=True), 8 * GIB),
        (SYSTEM | {"proc/self/cgroup": "0::/\n", f"{V2}memory.max": "a word"}, 8 * GIB),
    ],
    ids=["no files", "system", "old kernel", "v2", "v2 parent", "v2 above the system", "v2 full", "v1", "v1 container",
         "v1 without a limit", "unreadable"],
)  # fmt: skip
def test_free_is_the_least_of_system_and_cgroups(files: dict[str, str], free: int | None, tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, files)) == free


def test_ranks_share_what_the_system_has(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, SYSTEM), ranks=4) == 2 * GIB


def test_a_limit_of_addresses_counts() -> None:
    resource = pytest.importorskip("resource", reason="no limits on this system")
    script = """
        import resource, soma_native
        from soma_native.training.memory import free_memory
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + (100 << 20), resource.RLIM_INFINITY))
        print(free_memory(), free_memory(own=False))
    """
    if not Path("/proc/self/statm").exists() or not hasattr(resource, "RLIMIT_AS"):
        pytest.skip("this system does not say what is taken")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    limited, machine = map(int, done.stdout.split())
    assert 50 << 20 < limited <= 90 << 20 < machine, "ranks compare what all need with what the machine has"


@pytest.mark.parametrize(
    ("size", "text"), [(512, "0.5 kB"), (310e6, "310 MB"), (3.14e9, "3.1 GB"), (22.4e9, "22 GB"), (9.5e6, "9.5 MB")]
)
def test_sizes_are_said_in_a_fitting_unit(size: float, text: str) -> None:
    assert size_text(size) == text


# --- before the first step


def test_too_little_is_refused_and_most_of_it_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    require_memory(10**9, None, 8, 64)
    require_memory(8 * 10**8, 10**9, 8, 64)
    assert not caplog.records
    require_memory(9 * 10**8, 10**9, 8, 64)
    assert "needs 900 MB of memory, and 1.0 GB are free" in caplog.text
    with pytest.raises(ValueError, match=r"needs 1\.1 GB of memory, and 1\.0 GB are free: take a smaller batch"):
        require_memory(11 * 10**8, 10**9, 8, 64)


def test_a_run_that_does_not_fit_ends_before_its_first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("soma_native.training.layout.free_memory", lambda **_: 1000)
    trainer = make_trainer(checkpoint_dir=tmp_path / "out")
    events: list[str] = []
    with pytest.raises(ValueError, match="a smaller batch"):
        trainer.fit(SENTENCES, callbacks=[lambda event: events.append(event.kind)])
    assert not events
    assert not (tmp_path / "out").exists()


def test_memory_that_a_model_holds_already_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(epochs=1)
    trainer.fit(SENTENCES)
    config = trainer.model.config
    held = 4 * trainer.model._core.held_floats
    assert held > 8 * config.num_parameters, "values, gradients and buffers"
    longest = trainer.history.data["train"]["longest_window"]
    needed = training_memory(config, 8, longest, trainer.model.precision, "adamw", best=False)
    monkeypatch.setattr("soma_native.training.layout.free_memory", lambda **_: needed - held)
    with caplog.at_level(logging.WARNING, "soma_native"):
        trainer.fit(SENTENCES)
    assert "are free" in caplog.text
    monkeypatch.setattr("soma_native.training.layout.free_memory", lambda **_: needed - held - 1)
    with pytest.raises(ValueError, match="are free"):
        trainer.fit(SENTENCES)


@pytest.mark.parametrize("sync_every", [None, 4])
def test_ranks_of_a_machine_need_their_memory_together(monkeypatch: pytest.MonkeyPatch, sync_every: int | None) -> None:
    """Each has half of the windows, and unless it takes steps of its own, half of the moments."""
    config = make_model().config

    def work(comm: ThreadComm) -> str | None:
        settings = soma.TrainConfig(steps=2, batch_size=8, sync_every=sync_every)
        model = soma.Model(config, precision="float32")
        try:
            soma.Trainer(model, WORDS, settings, comm=comm).fit(SENTENCES)
        except (ValueError, RankError) as error:
            return str(error)
        return None

    longest = make_trainer(epochs=1).fit(SENTENCES).data["train"]["longest_window"]
    ranks, outer = (2, 0) if sync_every is None else (1, 7)
    held = 4 * soma.Model(config)._core.held_floats
    first, other = (
        training_memory(config, 4, longest, "float32", "adamw", best=False, ranks=ranks, first=one)
        for one in (True, False)
    )
    outer *= 4 * config.num_parameters
    monkeypatch.setattr("soma_native.training.layout.free_memory", lambda **_: free)
    free = first + other + 2 * (outer - held)
    assert run_ranks(2, work) == [None, None]
    free -= 1
    said = run_ranks(2, work)
    assert said[0] is not None
    assert said[0].startswith("training on 2 ranks of one machine needs ")
    assert "take fewer ranks, a smaller batch (it has 8 windows)" in said[0]
    assert said[1] == said[0]
