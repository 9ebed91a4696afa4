"""The house rules that a machine can check, over the files that are there."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / "dareu_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

COMMON = {"errors", "registry"}
BASE = {"config", "parallel"}
MAKING = {"generation", "attribution", "models", "corpus"}
MAY_IMPORT = {
    "errors": set(),
    "registry": {"errors"},
    "cache": set(),
    "config": COMMON | {"trees"},
    "trees": {"errors"},
    "parallel": {"errors"},
    "tracking": {"errors"},
    "integrity": {"errors", "parallel"},
    "checkpoints": {"errors", "parallel", "integrity"},
    "reinforcement": COMMON,
    "corpus": COMMON | BASE,
    "models": COMMON | BASE,
    "generation": COMMON | BASE | {"models"},
    "attribution": COMMON | BASE | {"models", "corpus"},
    "unlearning": COMMON | BASE | MAKING | {"reinforcement"},
    "evaluation": COMMON | BASE | MAKING,
    "reporting": COMMON | {"evaluation"},
    "__main__": {"cli"},
    "options": set(),
    "prepare": {"cache", "errors", "parallel"},
    "cli": COMMON
    | {"pipeline", "config", "reporting", "imported", "export", "estimate", "cache"}
    | {"attributor", "doctor", "evaluation", "evaluator", "fidelity", "parallel"}
    | {"options", "prepare", "stress"},
}
PIPELINE = {
    *("pipeline", "stages", "loop", "inputs", "indexing"),
    *("imported", "export", "folders", "memory", "estimate", "checks"),
    *("fidelity", "doctor", "attributor", "evaluator", "stress"),
}
EVERYTHING = {*MAY_IMPORT, *PIPELINE} - {"cli"}
MAY_IMPORT |= dict.fromkeys([*PIPELINE, "__init__"], EVERYTHING)
MODULES = {path.stem for path in PACKAGE.iterdir()}

ONLY_IN = {
    "tensorflow_datasets": r"corpus/.*",
    "transformers": r"models/hf_io\.py|corpus/tokenizer\.py",
    "orbax": r"checkpoints\.py",
    "torch": r"(?!)",
    "tensorflow": r"(?!)",
}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports here are absolute"
            yield node.module
            if node.module == "dareu_jax":
                modules = MODULES.intersection(alias.name for alias in node.names)
                yield from (f"dareu_jax.{module}" for module in modules)


def messages(tree: ast.AST) -> Iterator[str]:
    """Yields every string of a file that is not a docstring."""
    bare = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in bare:
            yield str(node.value)


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.fixture(params=FILES, ids=name)
def source(request) -> tuple[str, ast.Module]:
    return name(request.param), ast.parse(request.param.read_text())


def test_who_imports_whom(source):
    path, tree = source
    part = path.split("/")[0].removesuffix(".py")
    assert part in MAY_IMPORT, f"say in MAY_IMPORT what {path} may import"
    ours = {i.split(".")[1] for i in imports(tree) if i.startswith("dareu_jax.")}
    wrong = ours - MAY_IMPORT[part] - {part}
    assert not wrong, f"{path} imports {sorted(wrong)}, {part} may not"


def test_who_imports_which_package(source):
    path, tree = source
    for package in {i.split(".")[0] for i in imports(tree)} & ONLY_IN.keys():
        assert re.fullmatch(ONLY_IN[package], path), f"{path} imports {package}"


def test_sizes(source):
    path, tree = source
    lines = len((PACKAGE / path).read_text().splitlines())
    assert lines < 400, f"{path} has {lines} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            long = node.end_lineno - node.lineno + 1
            assert long <= 60, f"{path} {node.name} has {long} lines"


def test_no_buffer_takes_the_dtype_of_tokens(source):
    path, tree = source
    found = re.findall(
        r"(?:zeros|ones|full)_like\(\w*(?:tokens|ids)\b", ast.unparse(tree)
    )
    assert not found, f"{path}: {found} has an integer dtype; name the dtype"


def test_no_promise_that_cannot_be_kept(source):
    path, tree = source
    for text in messages(tree):
        promise = re.search(r"\b(erased|certified)\b", text, re.IGNORECASE)
        assert not promise, f"{path} says {promise.group()!r}: {text!r}"


def test_no_promise_in_pages():
    pages = [*PACKAGE.rglob("*.j2"), *REPO.glob("README.md")]
    for page in pages:
        promise = re.search(r"\b(erased|certified)\b", page.read_text(), re.IGNORECASE)
        assert not promise, f"{page.name} says {promise.group()!r}"


IMPORT = """
import json, sys, time
start = time.perf_counter()
import dareu_jax
seconds = time.perf_counter() - start
heavy = [m for m in ("tensorflow", "torch", "transformers") if m in sys.modules]
bridge = sys.modules.get("jax._src.xla_bridge")
ready = bool(bridge and bridge.backends_are_initialized())
print(json.dumps({"seconds": seconds, "heavy": heavy, "backends": ready}))
"""


def test_import_is_light():
    runs = []
    for _ in range(3):
        out = subprocess.check_output([sys.executable, "-c", IMPORT], cwd=REPO)
        runs.append(json.loads(out))
        if runs[-1]["seconds"] < 1.5:
            break
    assert min(run["seconds"] for run in runs) < 1.5, runs
    assert not runs[-1]["heavy"] and not runs[-1]["backends"], runs
