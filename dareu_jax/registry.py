"""Registries: name -> entry, one registry per kind, and the user's own plug-ins."""

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from dareu_jax.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of a ``kind`` by name; ``package`` registers the built-in ones."""

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}
        self._about: dict[str, str] = {}
        self._options: dict[str, type[Any]] = {}

    def register(
        self, name: str, about: str, *, options: type | None = None
    ) -> Callable[[T], T]:
        """Return a decorator that stores its argument under ``name``, if it is free.

        ``about`` is one line for ``dareu list``; ``options`` the class of the entry's
        own configuration section, a `dareu_jax.config.schema.Section` in which every
        field has a default.
        """

        def add(entry: T) -> T:
            self._add(name, about, entry, options)
            return entry

        return add

    def _add(self, name: str, about: str, entry: T, options: type | None) -> None:
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        self._about[name] = about
        if options is not None:
            self._options[name] = options

    def get(self, name: str) -> T:
        """Return the entry; raise `UserError` with the nearest known name."""
        self._load()
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise UserError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}; "
                f"known: {known}"
            )
        return self._entries[name]

    def items(self) -> Iterator[tuple[str, str]]:
        """Yield ``(name, description)`` in alphabetical order."""
        self._load()
        yield from sorted(self._about.items())

    def names(self) -> tuple[str, ...]:
        """Return every registered name in alphabetical order."""
        return tuple(name for name, _ in self.items())

    def options(self) -> tuple[tuple[str, type[Any]], ...]:
        """Return ``(name, options class)`` of the entries that have options."""
        self._load()
        return tuple(sorted(self._options.items()))

    def _load(self) -> None:
        importlib.import_module(self._package)


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """An unlearning method as it is registered; ``cfg`` is the one of its row.

    ``make(cfg, inputs)`` is a `dareu_jax.unlearning.method.Method`. It ``reads`` beside
    the original any of the stages of `unlearning.reads_of`.
    """

    make: Callable[..., Any]
    needs: Callable[[Any], Mapping[str, Any]]  # "forget", "retain" -> Need of a step
    reads: Callable[[Any], Collection[str]]
    sections: tuple[str, ...]  # of the configuration that its row may set
    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keys it sets


class MethodRegistry(Registry[MethodEntry]):
    """Unlearning methods by name, with what a run must know before one is made."""

    def register(  # type: ignore[override]
        self,
        name: str,
        about: str,
        *,
        needs: Callable[[Any], Mapping[str, Any]],
        reads: Callable[[Any], Collection[str]] = lambda cfg: (),
        options: type | None = None,
        sets: tuple[str, ...] = (),
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that stores a function ``make`` as method ``name``.

        A row of it may set the sections ``sets`` beside its own; see `MethodEntry`.
        """
        own = () if options is None else (name,)

        def add(make: Callable[..., Any]) -> Callable[..., Any]:
            entry = MethodEntry(make, needs, reads, (*own, *sets, "guards"))
            self._add(name, about, entry, options)
            return make

        return add

    def variant(
        self, name: str, about: str, *, of: str, preset: Mapping[str, Any]
    ) -> None:
        """Store method ``of`` as ``name`` too, with keys that it sets."""
        entry = dataclasses.replace(self._entries[of], preset=preset)
        self._add(name, about, entry, None)


def load_plugin(plugin: str) -> None:
    """Import a Python file (``my/rmu.py``) or a module, once, so that it registers."""
    try:
        if not plugin.endswith(".py"):
            importlib.import_module(plugin)
            return
        path = Path(plugin).resolve()
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
        name = f"dareu_plugin_{path.stem}_{digest}"
        if name not in sys.modules:
            _import_file(name, path)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"plug-in {plugin} cannot be imported ({reason}); plugins takes paths of "
            "Python files and names of installed modules"
        ) from error


def _import_file(name: str, path: Path) -> None:
    spec: Any = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


KERNELS: Registry = Registry("kernel", "dareu_jax.attribution.kernels")
METHODS = MethodRegistry("method", "dareu_jax.unlearning")
METRICS: Registry = Registry("metric", "dareu_jax.evaluation.metrics")
SOURCES: Registry = Registry("source", "dareu_jax.data")
FAMILIES: Registry = Registry("family", "dareu_jax.models.hf.families")
MODELS: Registry = Registry("model", "dareu_jax.models")
STRESS: Registry = Registry("stress test", "dareu_jax.audits.stress")
REGISTRIES: dict[str, Registry] = {
    "families": FAMILIES,
    "kernels": KERNELS,
    "methods": METHODS,
    "metrics": METRICS,
    "models": MODELS,
    "sources": SOURCES,
    "stress": STRESS,
}
"""By the names that ``dareu list`` takes."""
