"""The package as users see it: metadata, typing, the cost of the import, the command, every example of the docs."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import soma_native
from soma_native.model.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(soma_native.__file__).parent
README = ROOT / "README.md"
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def run_python(code: str, cwd: Path) -> str:
    """The output of code in a new interpreter that starts outside the source tree."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def distribution() -> importlib.metadata.Distribution:
    """The installed package; a tree built in place with `make dev` is not installed and has none."""
    try:
        return importlib.metadata.distribution("soma-native")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("soma_native runs from the source tree here: not installed")


# ------------------------------------------------------------------------------------------------------------- metadata


def test_the_version_is_said_once() -> None:
    declared = re.search(r'^version = "([^"]+)"$', PYPROJECT, flags=re.MULTILINE)
    assert declared
    assert soma_native.__version__ == declared[1]
    said_in = [
        path.name
        for path in [*ROOT.glob("*.txt"), *(ROOT / "soma_native").rglob("*.py"), *(ROOT / "cmake").iterdir()]
        if path.name != "corpus.txt" and f'"{declared[1]}"' in path.read_text(encoding="utf-8")
    ]
    assert not said_in


def test_the_installed_version_is_the_version() -> None:
    assert distribution().version == soma_native.__version__


def test_the_changelog_knows_the_version() -> None:
    assert soma_native.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_wheel_declares_few_dependencies() -> None:
    required = [r for r in distribution().requires or [] if "extra ==" not in r]
    assert {re.split(r"[<>=!~ ;\[]", r)[0].lower() for r in required} == {"numpy", "safetensors", "rich"}


def test_the_metadata_names_licence_and_python() -> None:
    metadata = distribution().metadata
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "# " in (metadata.get_payload() or metadata["Description"] or "")


def test_the_package_is_typed_and_complete() -> None:
    for name in ("py.typed", "_core.pyi", "showcase/corpus.txt", "serve/page/index.html"):
        assert (PACKAGE / name).is_file(), f"the package lacks {name}"


def test_nothing_else_is_installed() -> None:
    """No test, tool or source file ends up in other people's site-packages."""
    tops = {Path(str(f)).parts[0] for f in distribution().files or []}
    assert {t for t in tops if not t.endswith(".dist-info") and not t.startswith("..")} == {"soma_native"}
    inside = {Path(str(f)).suffix for f in distribution().files or [] if Path(str(f)).parts[0] == "soma_native"}
    page = {".html", ".css", ".js", ".svg"}
    assert inside <= {".py", ".pyc", ".pyi", ".typed", ".txt", ".so", ".pyd", "", *page}


# --------------------------------------------------------------------------------------------------------------- import


def test_import_brings_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, soma_native; print(*sorted(m.split('.')[0] for m in sys.modules))"
    loaded = set(run_python(code, tmp_path).split())
    heavy = (
        "torch matplotlib rich transformers safetensors tokenizers tiktoken regex pandas scipy argparse asyncio http"
    )
    assert not (loaded & set(heavy.split())) - already_loaded(tmp_path)


def already_loaded(tmp_path: Path) -> set[str]:
    """The modules that NumPy, a dependency, imports by itself."""
    return set(run_python("import sys, numpy; print(*sorted(m.split('.')[0] for m in sys.modules))", tmp_path).split())


def test_import_prints_and_logs_nothing_and_starts_no_thread(tmp_path: Path) -> None:
    code = "import soma_native, threading, os; print(threading.active_count(), len(os.listdir('/proc/self/task')))"
    if not os.path.isdir("/proc/self/task"):
        code = "import soma_native, threading; print(threading.active_count(), 1)"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's own
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("1 1", "")


def in_a_source_folder(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder that has the package without its compiled module, as a checkout does."""
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "soma_native", ignore=ignored, dirs_exist_ok=True)
    return subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("other", ["", "_core.cpython-27-other.so"], ids=["no core", "the core of another Python"])
@pytest.mark.parametrize("arguments", [("-c", "import soma_native"), ("-m", "soma_native", "info")], ids=["-c", "-m"])
def test_a_source_folder_without_its_core_says_what_to_do(
    arguments: tuple[str, ...], other: str, tmp_path: Path
) -> None:
    if other:
        (tmp_path / "soma_native").mkdir()
        (tmp_path / "soma_native" / other).write_bytes(b"")
    done = in_a_source_folder(tmp_path, *arguments)
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and message.startswith("ImportError: ") and "circular" not in done.stderr
    assert str(tmp_path / "soma_native") in message and EXTENSION_SUFFIXES[0] in message
    assert "start Python in another folder" in message and "make dev" in message
    assert "During handling" not in done.stderr


def test_a_core_that_cannot_be_loaded_keeps_the_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "soma_native").mkdir()
    (tmp_path / "soma_native" / f"_core{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    done = in_a_source_folder(tmp_path, "-c", "import soma_native; soma_native.Model")
    assert done.returncode == 1 and "ImportError" in done.stderr and "make dev" not in done.stderr


def test_plotting_is_optional() -> None:
    """matplotlib and the oracles are imported where they are used, never at the top of a module."""
    optional = {"matplotlib", "torch", "transformers", "tokenizers", "tiktoken", "regex"}
    found = []
    for path in sorted((ROOT / "soma_native").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.name}:{node.lineno}" for name in names if name.split(".")[0] in optional]
    assert not found


# -------------------------------------------------------------------------------------------------------------- command


def command(tmp_path: Path) -> Path:
    """The installed soma-native; in a source tree, a script that does the same."""
    installed = Path(sys.executable).parent / ("soma-native.exe" if os.name == "nt" else "soma-native")
    if installed.exists():
        return installed
    script = tmp_path / "bin" / "soma-native"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!{sys.executable}\nfrom soma_native.cli.main import main\nraise SystemExit(main())\n")
    script.chmod(0o755)
    return script


def test_the_command_is_installed() -> None:
    points = [p for p in distribution().entry_points if p.group == "console_scripts"]
    assert [(p.name, p.value) for p in points] == [("soma-native", "soma_native.__main__:run")]
    assert callable(points[0].load())


def test_the_command_answers(tmp_path: Path) -> None:
    done = subprocess.run([command(tmp_path), "info"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert soma_native.__version__ in done.stdout and soma_native.active_isa() in done.stdout


# ------------------------------------------------------------------------------------------------------------- examples

MODULES = ["soma_native"] + [
    m.name
    for m in pkgutil.walk_packages([str(PACKAGE)], "soma_native.")
    if m.name.rsplit(".")[-1] not in {"__main__", "_core"}
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=flags, report=True)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples failed: see the output above"


def test_there_are_examples_in_docstrings() -> None:
    finder = doctest.DocTestFinder()
    examples = sum(len(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name)))
    assert examples >= 20


def fenced_blocks(text: str) -> list[tuple[str, str, int]]:
    """(language, code, line number) of every fenced block."""
    pattern = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
    return [(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in pattern.finditer(text)]


def shell_commands(block: str, language: str) -> list[str]:
    """The commands of a shell block: after `$ ` in a console block, every line elsewhere; continuations joined."""
    joined = block.replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines()]
    if language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in lines if line and not line.startswith("#")]


SHELLS = {"sh", "bash", "shell", "console"}
# Programs that run in examples, and programs that are only checked: they install, or take minutes and have tests.
RUN = {"soma-native", "echo", "cat", "head", "ls", "python", "printf", "wc"}
LOOKED_AT = {"make", "pip", "python3", "git", "cd", "export", "mpiexec"}


def check_unrun(line: str) -> None:
    """Check that a line which is not run names things that exist."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert {w for w in words[1:] if "=" not in w} <= targets, line
    for extra in re.findall(r"\[([\w,]+)\]", line):
        assert set(extra.split(",")) <= set(re.findall(r"^(\w+) = \[", PYPROJECT, flags=re.MULTILINE)), line


PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = [
    "README.md",
    "docs/cuda.md",
    "docs/embedding.md",
    "docs/exporting.md",
    "docs/files.md",
    "docs/machines.md",
    "docs/tokenizer.md",
    "docs/training.md",
]


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def languages_of(page: Path) -> set[str]:
    """The languages of a page's examples: "python", "shell"."""
    languages = {language for language, _, _ in fenced_blocks(page.read_text(encoding="utf-8"))}
    return (languages & {"python"}) | ({"shell"} if languages & SHELLS else set())


def jobs_of(page: Path) -> list[tuple[str, list[str]]]:
    """(place, command to run) of the examples of a page, in order. Checks the lines that are not run."""
    jobs = []
    for language, code, line in fenced_blocks(page.read_text(encoding="utf-8")):
        place = f"{page_name(page)}:{line}"
        if language == "python":
            jobs.append((place, [sys.executable, "-W", "error", "-c", code]))
        for text in shell_commands(code, language) if language in SHELLS else []:
            program = next(word for word in shlex.split(text, comments=True) if "=" not in word)
            assert program in RUN | LOOKED_AT, f"{place}: the test does not know {program}: {text}"
            if program in RUN:
                jobs.append((place, [shutil.which("bash") or "sh", "-c", text]))
            else:
                check_unrun(text)
    return jobs


@pytest.mark.levels("bfloat16")
@pytest.mark.parametrize("page", [page for page in PAGES if languages_of(page)], ids=page_name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """In order and in one folder, beside a text file. Later examples may use files of earlier ones."""
    sentences = (PACKAGE / "showcase" / "corpus.txt").read_text(encoding="utf-8").splitlines()[:120]
    (tmp_path / "my_text.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    path = f"{command(tmp_path).parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    for place, job in jobs_of(page):
        job[-1] = re.sub(r"(?<=minutes[ =])[\d.]+", "0.05", job[-1])  # an example is shorter here
        done = subprocess.run(job, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{place}: {job[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("name", GUIDE)
def test_the_guide_has_examples(name: str) -> None:
    """Every page has examples in Python and in the shell: a fence of another name would hide them from the tests."""
    assert languages_of(ROOT / name) == {"python", "shell"}


def test_the_readme_names_the_two_commands() -> None:
    text = README.read_text(encoding="utf-8")
    assert "make showcase" in text and "make test" in text


def test_the_presets_of_the_guide_are_those_there_are() -> None:
    row = r"^\| `([\w-]+)` \| `(\w+)`" + r" \| (\d+)" * 5 + r" \|"
    rows = re.findall(row, (ROOT / "docs" / "training.md").read_text(encoding="utf-8"), re.MULTILINE)
    fields = ("block", "d_model", "n_layers", "n_heads", "d_ff", "max_seq_len")
    want = {name: [str(sizes[field]) for field in fields] for name, sizes in PRESETS.items()}
    assert {name: sizes for name, *sizes in rows} == want


def anchors(page: Path) -> set[str]:
    """The links to the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_links_in_the_prose_lead_somewhere() -> None:
    """To a file that exists, and to a heading that its page has."""
    missing = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
            path = page.parent / target if target else page
            if re.match(r"[a-z]+:", target):
                continue
            if not path.exists() or (anchor and anchor not in anchors(path)):
                missing.append(f"{page.name}: {target}#{anchor}")
    assert not missing
