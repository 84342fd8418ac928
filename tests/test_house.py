"""The rules of the house that a tool can count: sizes, docstrings, imports, declared dependencies."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "vlm_r1"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL = SOURCES + [
    file for folder in ("tests", "benchmarks", "examples") for file in sorted((ROOT / folder).rglob("*.py"))
]
MAX_FILE, MEDIAN_FILE, MAX_FUNCTION, UNDOCUMENTED = 400, 180, 80, 12
TORCH_FREE = (
    "records",
    "boxes",
    "errors",
    "image_file",
    "config",
    "config_file",
    "config_keys",
    "cli",
    "data",
    "prompts",
    "rewards",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def distribution_names(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=!\[ ]", line)[0].lower() for line in lines}


CORE = distribution_names(PROJECT["dependencies"])
OPTIONAL = PROJECT["optional-dependencies"]
EXTRAS = set().union(*(distribution_names(OPTIONAL[extra]) for extra in OPTIONAL.keys() - {"dev", "bench"}))
"""What a user adds for a part of the package, which says so where it is missing."""


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def functions(node: ast.AST):
    return (n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node) -> int:
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("file", ALL, ids=name)
def test_no_file_and_no_function_is_too_long(file):
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{name(file)} has {lines} lines; split it by what its parts are for"
    long = {f.name: length(f) for f in functions(tree(file)) if length(f) > MAX_FUNCTION}
    assert not long, f"{name(file)}: functions over {MAX_FUNCTION} lines: {long}"


def test_files_are_short_on_the_whole():
    lengths = [len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES if file.name != "__init__.py"]
    assert statistics.median(lengths) <= MEDIAN_FILE


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_modules_and_longer_public_functions_say_what_they_are(file):
    module = tree(file)
    assert ast.get_docstring(module), f"{name(file)} has no docstring"
    public = [n for n in module.body if not getattr(n, "name", "_").startswith("_")]
    inside = [
        n for c in public if isinstance(c, ast.ClassDef) for n in c.body if not getattr(n, "name", "_").startswith("_")
    ]
    silent = [
        n.name
        for n in public + inside
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and length(n) > UNDOCUMENTED
        and not ast.get_docstring(n)
    ]
    assert not silent, f"{name(file)}: no docstring: {', '.join(silent)}"


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_no_exception_is_swallowed_unnamed(file):
    broad = [
        handler.lineno
        for handler in ast.walk(tree(file))
        if isinstance(handler, ast.ExceptHandler)
        and (
            handler.type is None
            or (isinstance(handler.type, ast.Name) and handler.type.id in {"Exception", "BaseException"})
        )
        and all(isinstance(line, ast.Pass | ast.Continue) for line in handler.body)
    ]
    assert not broad, f"{name(file)}: lines {broad} catch every exception and go on"


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_nothing_is_left_for_later(file):
    left = re.findall(r"\b(?:TODO|FIXME|XXX)\b|raise NotImplementedError\(\s*\)", file.read_text(encoding="utf-8"))
    assert not left, f"{name(file)}: {left}"


@pytest.mark.parametrize("part", TORCH_FREE)
def test_a_typo_does_not_wait_for_torch(part):
    """Every module of the part is imported in a fresh process; none may bring in torch (seconds of start-up)."""
    files = sorted((PACKAGE / part).rglob("*.py")) if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]
    modules = [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for file in files
    ]
    code = (
        f"import sys, importlib\nfor module in {modules}:\n"
        "    importlib.import_module(module)\n    assert 'torch' not in sys.modules, module"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_every_imported_package_is_a_declared_dependency():
    distributions = packages_distributions()
    undeclared = {}
    for file in SOURCES:
        if file.parent.name == "vllm_worker" or file.name == "lmms.py":
            continue  # run in vLLM's and lmms-eval's environments
        for node in ast.walk(tree(file)):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for module in modules:
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top in {"vlm_r1", "__future__"}:
                    continue
                names = {d.lower().replace("_", "-") for d in distributions.get(top, [top])}
                if not names & (CORE | EXTRAS):
                    undeclared[top] = name(file)
    assert not undeclared, f"imported and not declared in pyproject.toml: {undeclared}"


def test_constraints_pin_every_dependency():
    wanted = CORE | distribution_names(PROJECT["optional-dependencies"]["dev"])
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert all("==" in line and "+" not in line for line in lines), "exact versions without a build suffix"
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert not {w.replace("_", "-") for w in wanted} - pinned
