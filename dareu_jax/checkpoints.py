"""Checkpoints of one stage: saved whole, verified before they are trusted.

Orbax writes a step; a manifest (sha256 of every file, shape and dtype of every leaf)
is added when all of it is on disk. A step counts only if its manifest verifies, so
whatever a kill, a full disk or a flaky file system leaves behind is passed over.
On several hosts the folder must be one that all of them see.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from dareu_jax.errors import TrainingError, UserError, first_line
from dareu_jax.parallel import (
    agreed,
    is_first,
    named_leaves,
    on_host,
    wait_for_all,
)

MANIFEST = "integrity.json"


class Checkpoints:
    """The newest `keep` steps of one stage in `folder`; use it as a context manager.

    Args:
      folder: holds one sub-folder per step; made when first needed.
      keep: how many steps stay on disk.
      warn: called with one line for every step that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        warn: Callable[[str], None] = warnings.warn,
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._warn = warn
        self._open: Any = None

    def save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        """Writes `tree` (arrays) and `meta` (JSON) and returns once both are on disk.

        Steps at or after `step` belong to an abandoned run and are removed first.

        Raises:
          TrainingError: no disk space is left; steps saved before stay usable.
        """
        self._remove([old for old in agreed(self.steps()) if old >= step])
        try:
            with _quiet():
                self._write(step, tree, meta)
        except Exception as error:
            self._discard(step)
            if not _is_disk_full(error):
                raise
            raise TrainingError(
                f"no disk space left while saving {self.folder} step {step}; "
                "free space and run the same command again"
            ) from error
        self._remove(agreed(self.steps())[: -self._keep])

    def latest(self, abstract_tree: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Returns `(step, tree, meta)` of the newest step that can be trusted, if any.

        Args:
          abstract_tree: `jax.ShapeDtypeStruct` or array leaves; the shardings found
            there decide where the result lives, whatever mesh it was saved from.

        Raises:
          UserError: a leaf on disk has another shape or dtype than the one wanted.
        """
        passed_over: list[tuple[int, str]] = []
        found = None
        for step in reversed(agreed(self.steps())):
            reason = _agreed_problem(self._path(step))
            if reason:
                self._remove([step])
            else:
                found, reason = self._restore(step, abstract_tree)
            if found is not None:
                break
            passed_over.append((step, reason))
        then = f"using step {found[0]} instead" if found else "starting from step 0"
        for step, reason in passed_over:
            self._warn(
                f"checkpoint {self.folder} step {step} is unreadable ({reason}); {then}"
            )
        return found

    def steps(self) -> list[int]:
        """Returns the steps with a folder on disk, oldest first, unverified."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def close(self) -> None:
        """Releases the threads Orbax holds; the object stays usable."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
        )
        manager = self._manager()
        manager.save(step, args=args, force=True)
        manager.wait_until_finished()
        if is_first():
            _write_manifest(self._path(step), tree)
        wait_for_all(f"saved {step}")

    def _restore(
        self, step: int, abstract_tree: Any
    ) -> tuple[tuple[int, Any, dict[str, Any]] | None, str]:
        import orbax.checkpoint as ocp

        target = _targets(abstract_tree)
        found = json.loads((self._path(step) / MANIFEST).read_text())["leaves"]
        restore_error(f"checkpoint {self.folder} step {step}", found, target)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        )
        try:
            out = self._manager().restore(step, args=args)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, first_line(error)
        return (step, out["state"], out["meta"]), ""

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        if self._open is None:
            # One more than asked for: the oldest goes only after the newest verifies.
            policy = ocp.checkpoint_managers.preservation_policy.LatestN(self._keep + 1)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policy, cleanup_tmp_directories=True
            )
            self._open = _deaf(ocp.CheckpointManager)(self.folder, options=options)
        return self._open

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _remove(self, steps: list[int]) -> None:
        if not steps:
            return
        wait_for_all(f"removing {steps}")
        if is_first():
            for step in steps:
                shutil.rmtree(self._path(step), ignore_errors=True)
        wait_for_all(f"removed {steps}")
        if self._open is not None:
            self._open.reload()

    def _discard(self, step: int) -> None:
        """Drops a failed save; Orbax may still hold its error, so it is reopened."""
        with contextlib.suppress(Exception):
            self.close()
        self._open = None
        if is_first():
            for path in [
                self._path(step),
                *self.folder.glob("*.orbax-checkpoint-tmp*"),
            ]:
                shutil.rmtree(path, ignore_errors=True)


def _deaf(manager: type) -> type:
    """An Orbax manager that does not listen for a preemption, for the run does.

    JAX counts the steps at which it is asked, and whoever else asks, with a step of
    its own, resets that count: the run's question would never be answered yes.
    """

    class Deaf(manager):
        def reached_preemption(self, step: int) -> bool:
            return False

    return Deaf


def restore_error(where: str, found: dict[str, list], target: Any) -> None:
    """Compares leaves on disk, `{path: [shape, dtype]}`, with the leaves wanted.

    Raises:
      UserError: names the first leaf that differs and both shapes.
    """
    wanted = _describe(target)
    for path in [*wanted, *(path for path in found if path not in wanted)]:
        if found.get(path) != wanted.get(path):
            raise UserError(
                f"{where} does not fit this configuration: {path} is "
                f"{_shape(found.get(path))} there, {_shape(wanted.get(path))} wanted; "
                "use another output folder or the configuration that wrote it"
            )


def fingerprint(tree: Any) -> str:
    """Returns the sha256 over every leaf's path, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for path, leaf in named_leaves(tree):
        digest.update(f"{path} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
        digest.update(np.ascontiguousarray(_on_host(leaf)).tobytes())
    return digest.hexdigest()


def _describe(tree: Any) -> dict[str, list]:
    return {path: [list(x.shape), str(x.dtype)] for path, x in named_leaves(tree)}


def _shape(leaf: list | None) -> str:
    return f"{leaf[1]}{leaf[0]}" if leaf else "absent"


def _on_host(leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(on_host(leaf))


def _targets(abstract_tree: Any) -> Any:
    """Gives each leaf a sharding; leaves without one go wherever the others live."""
    leaves = jax.tree.leaves(abstract_tree)
    meshes = [s.mesh for s in map(_sharding, leaves) if isinstance(s, NamedSharding)]
    if meshes:
        default: Any = NamedSharding(meshes[0], PartitionSpec())
    else:
        default = SingleDeviceSharding(jax.local_devices()[0])

    def target(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = _sharding(leaf) or default
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(target, abstract_tree)


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def _write_manifest(folder: Path, tree: Any) -> None:
    manifest = {"leaves": _describe(tree), "files": _hashes(folder)}
    part = folder / f"{MANIFEST}.part"
    with part.open("w") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MANIFEST)


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in paths if path.parent != folder or path.name != MANIFEST]
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_sha256, paths))
    return {str(path.relative_to(folder)): h for path, h in zip(paths, hashes)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(folder: Path) -> str:
    """Says why a step cannot be trusted; empty when it can."""
    try:
        wanted = json.loads((folder / MANIFEST).read_text())["files"]
        found = _hashes(folder)
    except FileNotFoundError:
        return "its save did not finish"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {first_line(error)}"
    for name in wanted:
        if name not in found:
            return f"{name} is missing"
        if found[name] != wanted[name]:
            return f"{name} has changed since it was saved"
    return ""


def _agreed_problem(folder: Path) -> str:
    """Asks process 0 alone, so that all processes pick the same step."""
    return agreed(_problem(folder) if is_first() else "")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from printing tracebacks of the error that `save` raises anyway.

    After a failure its remaining writes end later, so the hook then stays.
    """
    log, before = logging.getLogger("absl"), sys.unraisablehook
    was_disabled, log.disabled = log.disabled, True

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        log.disabled = was_disabled
    sys.unraisablehook = before


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "no space left" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
