"""RMU, a method from a file outside the package, for the tests that ask for it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dareu_jax.registry import METHODS, load_plugin

RMU = Path(__file__).with_name("rmu.py")


@pytest.fixture(scope="module")
def rmu():
    """What the file defines; the registry is left as it was."""
    METHODS.names()
    tables = (METHODS._entries, METHODS._about, METHODS._options)
    known, modules = [dict(table) for table in tables], set(sys.modules)
    load_plugin(str(RMU))
    (name,) = (n for n in set(sys.modules) - modules if n.startswith("dareu_plugin"))
    yield SimpleNamespace(**vars(sys.modules[name]))
    del sys.modules[name]
    for table, before in zip(tables, known, strict=True):
        table.clear()
        table.update(before)
