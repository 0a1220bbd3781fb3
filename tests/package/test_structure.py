"""The rules of the source: layers, leaf kernels, one place for OpenMP and for compile flags, sizes."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.levels()

ROOT = Path(__file__).resolve().parents[2]

CPP = ROOT / "src" / "cpp"
BINDINGS = ROOT / "bindings"
CPP_SUFFIXES = {".cpp", ".h", ".cu"}

# A layer may include itself and the layers listed here. The model includes ops and never kernels.
LAYERS = {
    "base": set(),
    "kernels": {"base"},
    "ops": {"base", "kernels"},
    "model": {"base", "ops"},
    "ngram": {"base"},
    "tokenizer": {"base"},
}

# The most lines of a file, and longer files with their reasons.
MAX_LINES = 450
LONG_FILES = {"src/cpp/tokenizer/unicode_tables.cpp": "generated tables"}


def committed_files() -> list[Path]:
    """Every file of the project; without git (a source distribution) everything but build products."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).exists()]
    skipped = {"build", "dist", "runs", "__pycache__"}
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in skipped and not f.startswith(".")]
        found += [Path(folder) / n for n in names if not n.endswith((".so", ".pyd")) and n != "PKG-INFO"]
    return found


FILES = committed_files()


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cpp_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in CPP_SUFFIXES)


def code_of(path: Path) -> str:
    """The text of a C++ file without comments and string literals; include lines stay as they are."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    return "\n".join(
        line if line.lstrip().startswith("#include") else re.sub(r'"(?:\\.|[^"\\\n])*"', '""', line)
        for line in text.split("\n")
    )


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def offenders(paths: list[Path], pattern: str) -> list[str]:
    found = []
    for path in paths:
        for number, line in enumerate(code_of(path).split("\n"), 1):
            if re.search(pattern, line):
                found.append(f"{relative(path)}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_includes_only_what_stands_to_its_left(layer: str) -> None:
    files = cpp_files(CPP / layer)
    assert files, f"src/cpp/{layer} has no C++ files"
    wrong = [
        f"{relative(path)} includes {name}"
        for path in files
        for name in includes(path)
        if name.split("/")[0] not in LAYERS[layer] | {layer}
    ]
    assert not wrong


def test_every_folder_of_the_core_is_a_layer_with_a_rule() -> None:
    assert {p.name for p in CPP.iterdir() if p.is_dir()} == set(LAYERS)


def test_includes_are_paths_from_src_cpp() -> None:
    wrong = [
        f"{relative(path)} includes {name}"
        for path in cpp_files(CPP)
        for name in includes(path)
        if not (CPP / name).is_file()
    ]
    assert not wrong


def architectures() -> list[str]:
    found = sorted({p.stem for p in (CPP / "model" / "blocks").glob("*.cpp")} - {"block"})
    assert {"soma", "gpt2", "llama"} <= set(found)
    return found


def test_python_decides_nothing_on_a_block_s_name() -> None:
    """Presets name blocks, and the table of checkpoints; tokenizers have a pattern of the same name."""
    package, names = ROOT / "soma_native", "|".join(architectures())
    allowed = {package / "model" / "presets.py", package / "checkpoint" / "architectures.py"}
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Compare, ast.MatchValue)) and re.search(f"'({names})'", ast.unparse(node)):
                found.append(path)
    assert not [relative(p) for p in found if p not in allowed and package / "tokenizer" not in p.parents]


def test_the_bindings_include_no_kernels() -> None:
    assert not [
        f"{relative(p)} includes {n}" for p in cpp_files(BINDINGS) for n in includes(p) if n.startswith("kernels/")
    ]


def test_the_core_knows_no_python() -> None:
    assert not offenders(cpp_files(CPP), r"pybind11|Python\.h|\bPy[A-Z_]\w+")


def test_only_the_blocks_know_an_architecture_by_name() -> None:
    """All that depends on the block is a trait or a function of it: a third block must not end in an `else`.

    The tokenizer is left out: one of its patterns has the name of a block.
    """
    blocks, names = CPP / "model" / "blocks", "|".join(architectures())
    # "gpt2", kGpt2, Gpt2Block, gpt2_block(): as a string, a constant, a type, a function.
    pattern = re.compile(rf'"(?:{names})"|\bk(?:{names})\b|\b(?:{names})_?block', re.IGNORECASE)
    found = []
    for path in cpp_files(CPP) + cpp_files(BINDINGS):
        if blocks in path.parents or CPP / "tokenizer" in path.parents:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(re.sub(r"//.*", "", line)):
                found.append(f"{relative(path)}:{number}: {line.strip()}")
    assert not found


def test_only_parallel_says_omp() -> None:
    elsewhere = [p for p in cpp_files(CPP) + cpp_files(BINDINGS) if relative(p) != "src/cpp/base/parallel.cpp"]
    assert not offenders(elsewhere, r"\bomp\b|\bomp_\w+|omp\.h|_OPENMP")
    assert offenders([CPP / "base" / "parallel.cpp"], r"#pragma omp")


def test_only_the_isa_table_says_instruction_set_flags() -> None:
    pattern = re.compile(r"(?<![\w-])-m(?:avx|sse|fma|amx|arch|tune|cpu|f16c|bmi|prefer-vector)|/arch:|-mfpu")
    built = [
        p for p in FILES if p.suffix in {".cmake", ".toml", ".yml"} or p.name in {"CMakeLists.txt", "Makefile", "run"}
    ]
    assert [relative(p) for p in built if pattern.search(p.read_text(encoding="utf-8"))] == ["cmake/isa.cmake"]
    assert not offenders(
        cpp_files(CPP) + cpp_files(BINDINGS), r"#\s*pragma\s+(GCC|clang)\s+(target|attribute)|target\s*\("
    )


# -------------------------------------------------------------------------------------------------------------- kernels

# Headers without inline functions, which the linker could share between instruction sets.
LEAF_HEADERS = {
    "cstddef", "cstdint", "stddef.h", "stdint.h", "float.h", "cfloat", "cmath", "math.h", "cstring", "string.h",
    "immintrin.h", "emmintrin.h", "arm_neon.h", "arm_sve.h", "unistd.h",
}  # fmt: skip


def test_kernels_are_leaves() -> None:
    files = cpp_files(CPP / "kernels")
    foreign = [
        f"{relative(path)} includes <{name}>"
        for path in files
        for name in re.findall(r"#\s*include\s+<([^>]+)>", code_of(path))
        if name not in LEAF_HEADERS
    ]
    assert not foreign
    assert not offenders(files, r"\b(throw|try|catch|dynamic_cast|typeid)\b")
    assert not offenders(
        files, r"\b(new|delete|malloc|calloc|realloc|free|aligned_alloc|posix_memalign|alloca)\s*[\s(\[]"
    )
    assert not offenders(files, r"\b(parallel_for|num_threads|mutex|static\s+std)\b")
    registers = "amx_emulation.h"  # a thread's own tiles, as on a real processor
    assert not offenders([path for path in files if path.name != registers], r"\bthread_local\b")


def test_a_kernel_has_an_equation_and_few_arguments() -> None:
    """Its equation stands above it, or above the kernel before of the same arguments. Seven arguments are the most."""
    lists = sorted((CPP / "kernels").glob("*_kernels.h"))
    assert lists
    for path in lists:
        _, _, table = path.read_text(encoding="utf-8").partition("_KERNELS(X)")
        kernels = re.findall(r"(\*/\s*\\\s*)?X\(\w+, (\w+),\s*\\?\s*\(([^()]*)\)\)", table)
        assert len(kernels) == len(re.findall(r"\bX\(", table))
        assert not [name for _, name, arguments in kernels if arguments.count(",") >= 7]
        before = ["", *(arguments for _, _, arguments in kernels)]
        assert not [k[1] for k, other in zip(kernels, before, strict=False) if not k[0] and k[2] != other]


def test_dispatch_units_reach_no_throwing_header() -> None:
    """Headers of base that a per-ISA unit includes, directly or further on, have no STL either."""
    pending = sorted((CPP / "kernels").glob("isa_*.cpp"))
    assert pending
    seen: set[Path] = set()
    while pending:
        path = pending.pop()
        if path not in seen:
            seen.add(path)
            pending += [CPP / name for name in includes(path)]
    foreign = [
        f"{relative(path)} includes <{name}>"
        for path in sorted(seen)
        for name in re.findall(r"#\s*include\s+<([^>]+)>", code_of(path))
        if name not in LEAF_HEADERS
    ]
    assert not foreign


def isa_flags() -> dict[str, list[str]]:
    """The rows of the table in cmake/isa.cmake that GCC and Clang read."""
    table = (ROOT / "cmake" / "isa.cmake").read_text(encoding="utf-8").split("if(MSVC)")[0]
    rows: dict[str, list[str]] = {}
    for name, flags in re.findall(r'^set\(SOMA_ISA_FLAGS_(\w+) "([^"]*)"\)', table, flags=re.MULTILINE):
        words = [
            rows[flag[len("${SOMA_ISA_FLAGS_") : -1]] if flag.startswith("$") else [flag] for flag in flags.split(";")
        ]
        rows[name] = [flag for word in words for flag in word if flag]
    return rows


def core_flags() -> list[str]:
    """The flags in CMakeLists.txt for the whole core that change the code of a kernel."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    standard = re.search(r"set\(CMAKE_CXX_STANDARD (\d+)\)", text)
    assert standard
    return [f"-std=c++{standard[1]}", *(flag for flag in ("-ffp-contract=off", "-fno-math-errno") if flag in text)]


def machine_levels(compiler: str) -> list[str]:
    target = subprocess.run([compiler, "-dumpmachine"], capture_output=True, check=True, text=True).stdout
    x86, arm = target.startswith(("x86_64", "amd64")), target.startswith(("aarch64", "arm64"))
    return [level for level in isa_flags() if level == "scalar" or (arm if level.startswith("neon") else x86)]


def test_the_isa_table_and_the_units_agree() -> None:
    units = {p.stem.removeprefix("isa_") for p in (CPP / "kernels").glob("isa_*.cpp")}
    assert set(isa_flags()) == units


COMPILER = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), "c++")


@pytest.mark.skipif(os.name == "nt", reason="nm and GCC's flags")
@pytest.mark.parametrize("optimisation", ["-O3", "-O0"])
def test_an_isa_unit_exports_one_symbol_and_no_weak_one(optimisation: str, tmp_path: Path) -> None:
    """The linker shares weak symbols: it may keep the AVX-512 copy, which crashes an older CPU.

    -O3 is shipped; -O0 shows symbols that inlining hides.
    """
    levels = machine_levels(COMPILER)
    assert "scalar" in levels
    jobs = []
    for level in levels:
        unit = tmp_path / f"isa_{level}.o"
        command = [COMPILER, "-fPIC", "-fvisibility=hidden", f"-I{CPP}", optimisation, *core_flags()]
        command += [*isa_flags()[level], "-c", str(CPP / "kernels" / f"isa_{level}.cpp"), "-o", str(unit)]
        command += [f"-DSOMA_HAVE_{name.upper()}=1" for name in levels]
        jobs.append(
            (level, unit, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        )
    for level, unit, job in jobs:
        output, _ = job.communicate()
        assert job.returncode == 0, output
        symbols = subprocess.run(["nm", "--demangle", str(unit)], capture_output=True, check=True, text=True).stdout
        kinds = [(line[17:18], line[19:]) for line in symbols.splitlines()]
        exported = [name for kind, name in kinds if kind in "TDBRGSC"]
        weak = [name for kind, name in kinds if kind in "wWvVu"]
        assert len(exported) == 1, f"isa_{level}.cpp exports {exported}"
        assert not weak, f"isa_{level}.cpp has weak symbols {weak}"


# ---------------------------------------------------------------------------------------------------------------- files


def test_every_file_opens_with_what_it_is_for() -> None:
    silent = []
    for path in FILES:
        if path.suffix in CPP_SUFFIXES:
            opens = path.read_text(encoding="utf-8").startswith("// ")
        elif path.suffix == ".py":
            opens = bool(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))
        elif path.suffix in {".pyi", ".cmake", ".toml", ".yml"} or path.name in {"CMakeLists.txt", "Makefile"}:
            opens = path.read_text(encoding="utf-8").startswith("# ")
        else:
            continue
        if not opens:
            silent.append(relative(path))
    assert not silent


def test_files_are_short() -> None:
    source = [p for p in FILES if p.suffix in {*CPP_SUFFIXES, ".py", ".cmake"}]
    lengths = {relative(p): len(p.read_text(encoding="utf-8").splitlines()) for p in source}
    assert not {name: n for name, n in lengths.items() if n > MAX_LINES and name not in LONG_FILES}
    assert not [name for name in LONG_FILES if lengths.get(name, 0) <= MAX_LINES], "no longer long"


def test_lines_are_short() -> None:
    """In C++ with its comments, which clang-format does not check. Ruff checks Python."""
    paths = [p for p in FILES if p.suffix in CPP_SUFFIXES and relative(p) not in LONG_FILES]
    lines = [(p, n, line) for p in paths for n, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)]
    assert not [f"{relative(p)}:{n}" for p, n, line in lines if len(line) > 120]


def test_nothing_names_this_machine() -> None:
    """No file has an absolute path of somebody's computer."""
    pattern = re.compile(r"(?<![\w.~$}])/(?:work|opt|root|home|Users)/\w")
    text_files = [p for p in FILES if p.suffix not in {".png", ".safetensors", ".gz", ".npz"}]
    found = []
    for path in text_files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{relative(path)}:{number}: {line.strip()[:120]}")
    assert not found


def test_the_package_never_unpickles() -> None:
    """Reading a checkpoint must run no code. One file takes a pickle apart, with a module that runs nothing."""
    forbidden = {"pickle", "_pickle", "pickletools", "cPickle", "dill", "joblib", "marshal", "shelve"}
    reader, found = "soma_native/checkpoint/soma_pickle.py", []
    for path in (ROOT / "soma_native").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            allowed = {"pickletools"} if relative(path) == reader else set()
            if (forbidden - allowed) & {name.split(".")[0] for name in names}:
                found.append(f"{relative(path)}:{node.lineno}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                found.append(f"{relative(path)}:{node.value.lineno}")
    assert not found


def test_only_the_command_prints() -> None:
    found = []
    for path in (ROOT / "soma_native").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(path)
    assert {relative(path.parent) for path in found if path.name != "__main__.py"} == {"soma_native/cli"}


def test_no_page_has_a_gap_to_be_filled() -> None:
    pages = [path for path in FILES if path.suffix == ".md"]
    lines = [(p, n, line) for p in pages for n, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)]
    assert lines
    assert not [f"{relative(p)}:{n}: {line.strip()}" for p, n, line in lines if "@@" in line]


def test_the_design_stays_short_and_the_log_has_verdicts_newest_first() -> None:
    assert len((ROOT / "DESIGN.md").read_text(encoding="utf-8").splitlines()) <= 250
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    form = r"(20\d\d-\d\d-\d\d) .+ \((?:kept|not kept|measured|predicted)\)"
    assert not [heading for heading in headings if not re.fullmatch(form, heading)]
    dates = [heading.split()[0] for heading in headings]
    assert dates == sorted(dates, reverse=True)


def test_every_top_level_entry_is_explained() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    entries = {relative(path).split("/")[0] for path in FILES}
    unexplained = sorted(e for e in entries if e not in contributing and e != "CONTRIBUTING.md")
    assert not unexplained, "say in CONTRIBUTING.md what these are"


def test_every_script_in_the_makefile_exists() -> None:
    makefile = re.sub(r"\$\(\w+\)/", "", (ROOT / "Makefile").read_text(encoding="utf-8"))
    scripts = set(re.findall(r"(?<![\w./-])[\w./-]+\.py\b", makefile))
    assert {"tools/preflight.py", "benchmarks/bench_train.py"} <= scripts
    assert not sorted(name for name in scripts if not (ROOT / name).is_file())
