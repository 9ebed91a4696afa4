"""Name -> entry, one registry per kind; an unknown name lists the known ones."""

import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from dareu_jax.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name, with a one-line description each.

    Args:
      kind: what an entry is called in messages, for example ``"kernel"``.
      package: the package whose import registers every built-in entry.
    """

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}
        self._about: dict[str, str] = {}

    def register(self, name: str, about: str) -> Callable[[T], T]:
        """Returns a decorator that stores its argument under ``name``.

        Raises:
          ValueError: when the name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            self._about[name] = about
            return entry

        return add

    def get(self, name: str) -> T:
        """Returns the entry; raises `UserError` naming the nearest known name."""
        self._load()
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise UserError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}; "
                f"known: {known}"
            )
        return self._entries[name]

    def items(self) -> Iterator[tuple[str, str]]:
        """Yields ``(name, description)`` in alphabetical order."""
        self._load()
        yield from sorted(self._about.items())

    def names(self) -> tuple[str, ...]:
        """Returns every registered name in alphabetical order."""
        return tuple(name for name, _ in self.items())

    def _load(self) -> None:
        importlib.import_module(self._package)


def did_you_mean(name: str, known: Iterator[str] | dict | tuple | list) -> str:
    """Returns ``" (did you mean 'x'?)"`` or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


KERNELS: Registry = Registry("kernel", "dareu_jax.attribution")
METHODS: Registry = Registry("method", "dareu_jax.unlearning")
METRICS: Registry = Registry("metric", "dareu_jax.evaluation")
SOURCES: Registry = Registry("source", "dareu_jax.corpus")
FAMILIES: Registry = Registry("family", "dareu_jax.models.families")
MODELS: Registry = Registry("model", "dareu_jax.models")
STRESS: Registry = Registry("stress test", "dareu_jax.stress")
REGISTRIES: dict[str, Registry] = {
    "families": FAMILIES,
    "kernels": KERNELS,
    "methods": METHODS,
    "metrics": METRICS,
    "models": MODELS,
    "sources": SOURCES,
    "stress": STRESS,
}
"""Every registry by what `dareu list` calls it."""
