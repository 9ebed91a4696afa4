"""De-attribute to forget: LLM unlearning with data attribution as the reward.

The names below are documented in README.md beside this file; all else is private.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
PUBLIC = {
    "load_config": "config",
    "run": "runs.surface",
    "load_run": "runs.surface",
    "load_model": "runs.surface",
    "evaluate": "runs.surface",
    "attribute": "attribution",
    "KERNELS": "registry",
    "METHODS": "registry",
    "METRICS": "registry",
    "load_plugin": "registry",
}
"""Public name -> the module that has it, imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'dareu_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dareu_jax.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
