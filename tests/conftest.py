"""Shared fixtures: every instruction set, one and two threads, tiny models; and the hypothesis profiles."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import soma_native

# In CI a derandomised run is the same on every machine and at every retry. Shared machines stall, so there are no
# deadlines. The fixtures isa and threads hold for all examples of a test, so a function-scoped fixture is right.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


# A shell script ignores Ctrl-C for programs that it starts with `&`, and children inherit that. Tests need Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A child process finds the package where this process does, in whatever folder it starts.
if os.environ.get("PYTHONPATH"):
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, os.environ["PYTHONPATH"].split(os.pathsep)))


@pytest.fixture(scope="session", autouse=True)
def away_from_the_source_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs tests in a folder of their own. In the source tree, a child would import the package without its core."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves out tests of the processor on another device."""
    if item.get_closest_marker("processor") and not arrays_are_views():
        pytest.skip("of the processor alone")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Leaves out a test that writes to a view of parameters, where the arrays of a device are copies."""
    try:
        return (yield)
    except ValueError as error:
        if re.search("read-only|cannot be written to", str(error)) and not arrays_are_views():
            pytest.skip("writes to a view of parameters, which this device has not")
        raise


@functools.cache
def arrays_are_views() -> bool:
    """Whether arrays of a model are views of its memory: not with SOMA_STRICT_DEVICE."""
    import soma_native

    return soma_native.Model(soma_native.ModelConfig(**TINY))._core.on_host


def available_isas() -> tuple[str, ...]:
    """The levels of this machine. Without the compiled module: one made-up level, so that tests are still collected."""
    try:
        from soma_native import _core
    except ImportError:
        return ("module-not-built",)
    return tuple(_core.available_isas())


@pytest.fixture
def settings_restored() -> Iterator[None]:
    """Restores the instruction set and the number of threads after the test."""
    from soma_native import _core

    isa, threads = _core.active_isa(), _core.get_num_threads()
    yield
    _core.set_isa(isa)
    _core.set_num_threads(threads)


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest, settings_restored: None) -> str:
    """Runs the test on every instruction-set level this machine has."""
    from soma_native import _core

    _core.set_isa(request.param)
    return str(request.param)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest, settings_restored: None) -> int:
    """Runs the test with one thread and with two."""
    from soma_native import _core

    _core.set_num_threads(request.param)
    return int(request.param)


@pytest.fixture
def one_thread(settings_restored: None) -> None:
    """Runs the test with one thread, unless it sets another number itself."""
    from soma_native import _core

    _core.set_num_threads(1)


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test twice: "auto" trains in float32, then in bfloat16."""
    monkeypatch.setenv("SOMA_PRECISION", request.param)
    return str(request.param)


def block_names() -> tuple[str, ...]:
    """The blocks of the core. Without the compiled module: one made-up block."""
    try:
        from soma_native.model.config import BLOCKS
    except ImportError:
        return ("module-not-built",)
    return BLOCKS


@pytest.fixture(params=block_names())
def block(request: pytest.FixtureRequest) -> str:
    """Runs the test with every block, so that a new block is tested everywhere at once."""
    return str(request.param)


TINY = {"vocab_size": 29, "d_model": 24, "n_layers": 2, "n_heads": 3, "d_ff": 40, "max_seq_len": 13}


@pytest.fixture
def make_tiny_model() -> Callable[..., soma_native.Model]:
    """Makes models of awkward small sizes; a keyword replaces a default."""
    import soma_native

    def make(block: str = "soma", seed: int = 0, precision: str = "auto", **overrides: Any) -> soma_native.Model:
        config = soma_native.ModelConfig(block=block, **{**TINY, **overrides})
        return soma_native.Model(config, seed=seed, precision=precision)

    return make


@pytest.fixture
def tiny_model(block: str, make_tiny_model: Callable[..., soma_native.Model]) -> soma_native.Model:
    """A tiny model of each block style."""
    return make_tiny_model(block)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command line of soma-native in this process: a command.Result."""
    from helpers.command import run_command

    return lambda *arguments: run_command(capsys, *arguments)


@pytest.fixture
def find_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives each validation of a training its loss, one after the other.

    Rounding decides when real losses turn. A decision on given losses holds for every rounding.
    """

    def give(*losses: float) -> None:
        left = iter(losses)
        monkeypatch.setattr("soma_native.training.run.mean_loss", lambda *arguments: next(left))

    return give


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips fsync. No test cuts the power, and flushing takes longer than training a tiny model."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


# Training depends on the rounding of products. So `make levels` runs all tests that train twice more: in bfloat16, and
# on a low level. They are found by their source, so that a new test is never left out. The marker `levels` names the
# runs that can tell more than the whole suite on the best level in float32: "bfloat16" where a test of processes or
# files trains but looks at no number, "sse" where it names float32 itself, none where it trains nothing of its own.

TRAINS = re.compile(
    r"\bsoma(_native)?\.(AdamW|Muon|Trainer|cli)\b|\bimport .*\b(AdamW|Muon|Trainer|run_showcase)\b|"
    r"(?<!ref)\.loss_and_grad\(|\bsoma-native |-m.{1,4}soma_native|\bbench_train\b"
)
HERE = Path(__file__).parent


@functools.cache
def trains(path: Path) -> bool:
    """Whether a test file, or a test file that it imports, trains models or calls the command."""
    text = path.read_text(encoding="utf-8")
    imported = (sys.modules.get(name) for name in re.findall(r"^(?:from|import) (\w+)", text, flags=re.MULTILINE))
    files = (Path(file) for module in imported if (file := getattr(module, "__file__", None)))
    return bool(TRAINS.search(text)) or any(trains(file) for file in files if HERE in file.parents and file != path)


def runs_of_levels(item: pytest.Item) -> tuple[str, ...]:
    """The runs of `make levels` that a test belongs to, by the names of their markers."""
    fixtures = getattr(item, "fixturenames", ())
    if "isa" in fixtures or not trains(item.path):
        return ()  # it runs on all levels anyway, or on none
    if marker := item.get_closest_marker("levels"):
        return marker.args
    return ("sse",) if "precision" in fixtures else ("bfloat16", "sse")  # what is given a precision gets both anyway


def for_sanitizers(items: list[pytest.Item]) -> list[pytest.Item]:
    """What `make sanitize` runs: of a test of models each case on every third level, a third of the cases on each.

    What levels have of their own are kernels. Tests of kernels run each case on each level.
    """
    levels, chosen = available_isas(), []
    numbers: dict[tuple[Path, str], dict[str, int]] = {}
    for item in items:
        if "isa" not in getattr(item, "fixturenames", ()) or item.path.parent.name == "kernels":
            chosen.append(item)
            continue
        spec: Any = item.callspec  # type: ignore[attr-defined]
        case = spec.id.split("-")
        case.remove(spec.params["isa"])
        known = numbers.setdefault((item.path, item.name.partition("[")[0]), {})
        number = known.setdefault("-".join(case), len(known))
        # The digits, so that a parameter of three values does not give each level one of them.
        digits = sum(number // 3**place for place in range(6))
        if (digits + levels.index(spec.params["isa"])) % min(3, len(levels)) == 0:
            chosen.append(item)
    return chosen


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that train. Chooses those for the sanitizers."""
    for item in items:
        runs = runs_of_levels(item)
        for name in (*runs, "trains") if runs else ():
            item.add_marker(name)
    if os.environ.get("SOMA_SANITIZED"):
        items[:] = for_sanitizers(items)


# With SOMA_TESTS_NO_SKIP=1, as .ci/run sets it, a skipped test is a failure. Otherwise a run without an oracle would
# look green.


def skipped(config: pytest.Config) -> list[Any]:
    """Reports of skipped tests, if they count as failures."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("SOMA_TESTS_NO_SKIP"):
        return []
    return list(reporter.stats.get("skipped", []))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turns a run with skipped tests into a failed run, if they count as failures."""
    if skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says why a run without failures failed."""
    if reports := skipped(config):
        terminalreporter.section("skipped tests are failures here (SOMA_TESTS_NO_SKIP)")
        for report in reports:
            terminalreporter.line(f"{report.nodeid}: {report.longrepr}")
