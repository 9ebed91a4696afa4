"""Nested mappings, as YAML files and ``key=value`` write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dareu_jax.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raise `UserError` where there is none."""
    if not path.is_file():
        raise UserError(f"no such config file: {path}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {where}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold `key: value` lines, found {tree!r:.60}")
    return tree


def parse_value(item: str, text: str) -> Any:
    """Parse the right side of ``key=value`` as YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {item!r}: the value is not valid YAML") from None


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` in nested dictionaries, making the ones that are missing."""
    *parents, last = key.split(".")
    for i, parent in enumerate(parents):
        below = tree.get(parent)
        if below is None:
            below = tree[parent] = {}
        if not isinstance(below, dict):
            raise UserError(
                f"cannot set {key!r}: {'.'.join(parents[: i + 1])!r} is the value "
                f"{below!r}, not a section"
            )
        tree = below
    here = tree.get(last)
    if isinstance(here, Mapping) and isinstance(value, Mapping):
        value = merge(here, value)
    tree[last] = value


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with the keys of ``above`` put over it, section by section."""
    out = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out
