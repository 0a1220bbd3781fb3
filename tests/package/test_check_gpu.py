"""tools/check_gpu.py ends in time, and says of each check how it ended. What it runs exists."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.levels()

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]
try:
    import bench_generate
    import bench_train
    import check_gpu
finally:
    del sys.path[:2]


def test_its_commands_are_those_of_the_benchmarks_and_take_eight_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    found = check_gpu.checks(["bf16-eager", "bf16-compile"])
    assert sum(seconds for _, seconds, _ in found) <= 8 * 60
    parse = {f"benchmarks/{module.__name__}.py": module.arguments for module in (bench_train, bench_generate)}
    commands = [command[2 * (command[0] == "env") :] for _, _, command in found]
    seen = [parse[command[1]](command[2:]) for command in commands if command[1] in parse]
    assert [options.device for options in seen] == [*["cuda"] * 6, "cpu", "cuda"]
    assert [bool(options.modes) for options in seen[:7]] == [True, True, *[False] * 5]
    assert [(options.batch, options.length) for options in seen[1:4]] == [(16, 1024), (4, 1024), (64, 1024)]
    files = [
        word for _, _, command in found for word in command if word.startswith(("benchmarks/", "tests/", "tools/"))
    ]
    assert all((ROOT / file).exists() for file in files)


@pytest.mark.parametrize(
    ("code", "seconds", "result"),
    [
        ("print('well')", 60, "right"),
        ("raise SystemExit(3)", 60, "status 3"),
        ("input()\nwhile True: pass", 0, "no time"),
    ],
)
def test_how_a_command_ended(code: str, seconds: float, result: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert check_gpu.run([sys.executable, "-c", code], seconds, log) == result
    assert log.read_text() == ("well\n" if result == "right" else "")


def test_the_table_at_the_end_and_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [
        ("good", 60.0, [sys.executable, "-c", "print('all is well')"]),
        ("missing", 60.0, ["/no/such/program"]),
        ("bad", 60.0, [sys.executable, "-c", "1/0"]),
    ]
    monkeypatch.setattr(check_gpu, "checks", lambda modes: checks)
    monkeypatch.setattr(check_gpu, "card", lambda: "a card\n")
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--out", str(tmp_path)])
    assert check_gpu.main() == 1
    *said, card, good, missing, bad = capsys.readouterr().out.splitlines()
    assert card == "a card"
    assert good.split()[:2] == ["good", "right"] and bad.split()[:3] == ["bad", "status", "1"]
    assert "not run: No such file or directory" in missing
    assert "all is well" in said and "ZeroDivisionError: division by zero" in said
    assert "all is well" in (tmp_path / "0-good.txt").read_text()


@pytest.mark.parametrize(("minutes", "stopped"), [(0.0, False), (1.0, True)])
def test_the_table_comes_when_the_time_is_over_and_after_ctrl_c(
    minutes: float, stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(command: list[str], seconds: float, log: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(check_gpu, "checks", lambda modes: [("first", 60.0, []), ("second", 60.0, [])])
    monkeypatch.setattr(check_gpu, "run", interrupted)
    monkeypatch.setattr(check_gpu, "card", lambda: "a card\n")
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--out", str(tmp_path), "--minutes", str(minutes)])
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            check_gpu.main()
    else:
        assert check_gpu.main() == 1
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        ["first", "not", "run"],
        ["second", "not", "run"],
    ]
