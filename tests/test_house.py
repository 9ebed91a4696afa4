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
SHARED = COMMON | {"parallel", "storage"}
BELOW_MODELS = SHARED | {"config", "data"}
BELOW_TRAINING = BELOW_MODELS | {"models", "rl"}
BELOW_ATTRIBUTION = BELOW_TRAINING | {"training"}
BELOW_RUNS = BELOW_ATTRIBUTION | {"attribution", "unlearning", "evaluation"}
MAY_IMPORT = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "rl": set(),
    "registry": {"errors"},
    "parallel": {"errors"},
    "config": COMMON,
    "storage": {"errors", "parallel"},
    "data": SHARED | {"config"},
    "models": BELOW_MODELS,
    "training": BELOW_TRAINING,
    "attribution": BELOW_ATTRIBUTION,
    "unlearning": BELOW_ATTRIBUTION | {"attribution"},
    "evaluation": BELOW_ATTRIBUTION | {"attribution"},
    "reporting": COMMON | {"data", "attribution", "evaluation"},
    "runs": BELOW_RUNS,
    "audits": BELOW_RUNS | {"runs", "reporting"},
    "cli": BELOW_RUNS | {"runs", "reporting", "audits"},
}
"""What each package and loose module may import of ours, `architecture.md` 3."""
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
ROOMS -= {"__pycache__"}

ONLY_IN = {
    "tensorflow_datasets": r"data/.*",
    "transformers": r"data/tokenizer\.py|audits/doctor/peer\.py",
    "orbax": r"storage/checkpoints\.py",
    "torch": r"audits/doctor/peer\.py",  # which another interpreter runs
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
                rooms = ROOMS.intersection(alias.name for alias in node.names)
                yield from (f"dareu_jax.{room}" for room in rooms)


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


def ours(tree: ast.AST) -> set[str]:
    """Returns the packages and loose modules of ours that a file imports."""
    return {i.split(".")[1] for i in imports(tree) if i.startswith("dareu_jax.")}


def test_who_imports_whom(source):
    path, tree = source
    room = path.split("/")[0].removesuffix(".py")
    wrong = ours(tree) - MAY_IMPORT[room] - {room}
    assert not wrong, f"{path} imports {sorted(wrong)}, {room} may not"


def test_the_table_names_every_room_and_no_other():
    assert MAY_IMPORT.keys() == ROOMS


def test_there_are_few_rooms():
    assert len(ROOMS - {"__init__"}) <= 17, sorted(ROOMS)


def test_no_room_imports_one_that_imports_it():
    above = {room: set(below) for room, below in MAY_IMPORT.items()}
    while above:
        ground = {room for room, below in above.items() if not below & above.keys()}
        assert ground, f"these import each other in a circle: {sorted(above)}"
        for room in ground:
            del above[room]


def modules_of(tree: ast.Module) -> Iterator[str]:
    """Yields the modules of ours that a file needs before it is whole itself."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dareu_jax"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_imports_one_that_imports_it():
    names = {name(path).removesuffix(".py").replace("/", "."): path for path in FILES}
    needs = {}
    for module, path in names.items():
        found = {
            x.removeprefix("dareu_jax.")
            for x in modules_of(ast.parse(path.read_text()))
        }
        needs[module] = found & names.keys() - {module}
    while needs:
        ready = {module for module, below in needs.items() if not below & needs.keys()}
        assert ready, f"these import each other in a circle: {sorted(needs)}"
        for module in ready:
            del needs[module]


def test_who_imports_which_package(source):
    path, tree = source
    for package in {i.split(".")[0] for i in imports(tree)} & ONLY_IN.keys():
        assert re.fullmatch(ONLY_IN[package], path), f"{path} imports {package}"


def logic_of(node: ast.AST) -> int:
    """Lines of a file or a function without docstrings, imports and tables."""
    spans = [(node.lineno, node.end_lineno)] if hasattr(node, "lineno") else []
    lines = {line for a, b in spans for line in range(a, b + 1)}
    for x in ast.walk(node):
        if isinstance(x, ast.stmt) and not isinstance(x, ast.ClassDef):
            lines |= set(range(x.lineno, x.end_lineno + 1))
    for x in ast.walk(node):
        is_text = isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant)
        is_table = isinstance(x, ast.Assign) and isinstance(x.value, ast.Dict)
        if is_text or is_table or isinstance(x, ast.Import | ast.ImportFrom):
            lines -= set(range(x.lineno, x.end_lineno + 1))
    return len(lines)


def test_sizes(source):
    """The ceilings are for logic: a schema, a table or a formula may be longer."""
    path, tree = source
    assert logic_of(tree) <= 400, f"{path} has {logic_of(tree)} lines of logic"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            long = logic_of(node)
            assert long <= 60, f"{path} {node.name} has {long} lines of logic"


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
