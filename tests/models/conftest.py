import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def hf():
    """The module that makes tiny Hugging Face folders and their golden arrays."""
    path = Path(__file__).parent / "make_golden.py"
    spec = importlib.util.spec_from_file_location("make_golden", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
