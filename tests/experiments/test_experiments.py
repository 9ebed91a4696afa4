"""Experiments: their configurations load, their scripts and commands name what is."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from dareu_jax.config import load_config

REPO = Path(__file__).resolve().parents[2]
EXPERIMENTS = REPO / "experiments"
CONFIGS = sorted(EXPERIMENTS.glob("**/*.yaml"))
SCRIPTS = sorted(EXPERIMENTS.glob("**/*.py"))
PAGES = [*sorted(EXPERIMENTS.glob("*/README.md")), *REPO.glob("tpu_scripts/*.md")]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def commands_of(page: Path) -> list[list[str]]:
    found = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(found).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_configuration_loads(path):
    cfg = load_config(path)
    assert cfg.seeds and cfg.scale


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_what_a_script_imports_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dareu"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module}: {name.name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_name_files_and_keys_that_are(page):
    for command in commands_of(page):
        for word in command:
            if word.startswith(("experiments/", "tpu_scripts/")):
                given = word.removesuffix("/env.sh")  # made by the reader
                assert (REPO / given).exists(), word
        if command[:1] == ["dareu"] and command[1] in ("run", "estimate", "fidelity"):
            keys = [x for x in command[3:] if re.match(r"[\w.]+=", x)]
            load_config(REPO / command[2], keys)


MODULE = re.compile(r"\bdareu_jax\.[a-z_]+(?:\.[a-z_]+)*")


def test_modules_that_texts_name_are_there():
    texts = [*REPO.glob("*.md"), *REPO.glob("*.toml"), *CONFIGS]
    for folder in ("dareu_jax", "experiments", "tpu_scripts"):
        texts += [*(REPO / folder).glob("**/*.md"), *(REPO / folder).glob("**/*.sh")]
    for path in texts:
        for name in MODULE.findall(path.read_text(encoding="utf-8")):
            parent, _, last = name.rpartition(".")
            if importlib.util.find_spec(parent) is None:
                pytest.fail(f"{path}: {name}")
            module = importlib.import_module(parent)
            is_module = hasattr(module, "__path__") and importlib.util.find_spec(name)
            assert is_module or hasattr(module, last), f"{path}: {name}"
