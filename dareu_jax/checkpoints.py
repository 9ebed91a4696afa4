"""Checkpoints of one stage: saved whole, verified before they are trusted.

Orbax writes a step in the background; a manifest is added when all of it is on disk. A
step counts only if its manifest verifies, so whatever a kill, a full disk or a flaky
file system leaves behind is passed over.
On several hosts the folder must be one that all of them see, and all must call the
same methods in the same order.
"""

import contextlib
import copy
import errno
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from dareu_jax.errors import TrainingError, UserError, first_line
from dareu_jax.integrity import (
    Leaves,
    check_leaves,
    describe,
    problem,
    read_leaves,
    read_metric,
    write_manifest,
)
from dareu_jax.parallel import agreed, is_first, wait_for_all

Found = tuple[int, Any, dict[str, Any]]
"""A step, its tree and its meta."""


class Checkpoints:
    """The newest and the best steps of one stage in `folder`; use it in a `with`.

    Args:
      folder: holds one sub-folder per step; made when first needed.
      keep: how many of the newest stay on disk.
      keep_best: how many with the lowest metric stay besides.
      warn: called with one line for every step that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        warn: Callable[[str], None] = warnings.warn,
        keep_best: int = 0,
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder).absolute()
        self._keep, self._keep_best = keep, keep_best
        self._warn = warn
        self._open: Any = None
        self._opened = contextlib.ExitStack()
        self._saving: tuple[int, Future[None]] | None = None

    def save(
        self,
        step: int,
        tree: Any,
        meta: dict[str, Any],
        metric: float | None = None,
    ) -> None:
        """Copies `tree` (arrays) and `meta` (JSON); both are written in the background.

        The arrays may be donated as soon as it returns. `settle` waits for the disk.
        Steps at or after `step` belong to an abandoned run and are removed first.

        Args:
          step: its number; tree, meta: what comes back from `latest`.
          metric: what `keep_best` goes by, lower is better; none: never among the best.

        Raises:
          TrainingError: no disk space is left, for this step or the one before; steps
            saved earlier stay usable.
        """
        self.settle()
        self._remove([old for old in agreed(self.steps()) if old >= step])
        with self._discarding(step):
            self._saving = step, self._write(step, tree, meta, metric)

    def settle(self) -> None:
        """Returns when the last save is whole on disk and what it replaces is gone.

        Raises:
          TrainingError: no disk space was left; steps saved before stay usable.
        """
        if self._saving is None:
            return
        step, written = self._saving
        with self._discarding(step):
            written.result()
        self._saving = None
        wait_for_all(f"saved {step}")
        self._remove(agreed(self._replaced() if is_first() else []))

    def latest(self, abstract_tree: Any) -> Found | None:
        """Returns `(step, tree, meta)` of the newest step that can be trusted, if any.

        Args:
          abstract_tree: `jax.ShapeDtypeStruct` or array leaves; the shardings found
            there decide where the result lives, whatever mesh it was saved from.

        Raises:
          UserError: a leaf on disk has another shape or dtype than the one wanted.
        """
        self.settle()
        passed_over: list[tuple[int, str]] = []
        found = None
        for step in reversed(agreed(self.steps())):
            reason = self._problem(step)
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

    def at(self, step: int, abstract_tree: Any) -> Found:
        """Returns `(step, tree, meta)` of one step, as `latest` does of the newest.

        Raises:
          UserError: it is not there or cannot be trusted; or as for `latest`.
        """
        self.settle()
        steps = agreed(self.steps())
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self.folder} has no step {step}; there are: {known}")
        found, reason = None, self._problem(step)
        if not reason:
            found, reason = self._restore(step, abstract_tree)
        if found is None:
            raise UserError(
                f"checkpoint {self.folder} step {step} is unreadable ({reason}); "
                "take another step"
            )
        return found

    def steps(self) -> list[int]:
        """Returns the steps with a folder on disk, oldest first, unverified."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def close(self) -> None:
        """Settles, and releases the threads Orbax holds; the object stays usable."""
        self.settle()
        self._release()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def _abandon(self) -> None:
        """Ends the last save alone: after an error, others may wait elsewhere."""
        if self._saving is not None:
            step, written = self._saving
            try:
                written.result()
            except Exception as error:
                self._discard(step)
                self._warn(
                    f"checkpoint {self.folder} step {step} was not saved "
                    f"({first_line(error)})"
                )
            self._saving = None
        with contextlib.suppress(Exception):
            self._release()

    def _release(self) -> None:
        manager, self._open = self._open, None
        if manager is not None:
            manager.close()
            self._opened.close()

    def _write(
        self, step: int, tree: Any, meta: dict[str, Any], metric: float | None
    ) -> Future[None]:
        import orbax.checkpoint as ocp

        # Orbax copies arrays before it returns, and reads JSON after.
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree),
            meta=ocp.args.JsonSave(copy.deepcopy(meta)),
        )
        manager = self._manager()
        manager.save(step, args=args, force=True)
        worker = ThreadPoolExecutor(1, "manifest")
        written = worker.submit(self._finish, manager, step, describe(tree), metric)
        worker.shutdown(wait=False)
        return written

    def _finish(
        self, manager: Any, step: int, leaves: Leaves, metric: float | None
    ) -> None:
        """Runs beside the main thread, so nothing here waits for other processes."""
        manager.wait_until_finished()
        if is_first():
            write_manifest(self._path(step), leaves, metric)

    def _restore(self, step: int, abstract_tree: Any) -> tuple[Found | None, str]:
        import orbax.checkpoint as ocp

        target = _targets(abstract_tree)
        found = read_leaves(self._path(step))
        check_leaves(f"checkpoint {self.folder} step {step}", found, target)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        )
        try:
            out = self._manager().restore(step, args=args)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, first_line(error)
        return (step, out["state"], out["meta"]), ""

    def _replaced(self) -> list[int]:
        """Return the steps that are neither among the newest nor among the best.

        Orbax's manager cannot do it: it deletes by its policy as soon as its own files
        are written, and a step may go only after the newest has its manifest.
        """
        steps = self.steps()
        metrics = {step: read_metric(self._path(step)) for step in steps}
        ranked = sorted((x, -step) for step, x in metrics.items() if x is not None)
        kept = {*steps[-self._keep :], *(-at for _, at in ranked[: self._keep_best])}
        return [step for step in steps if step not in kept]

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        if self._open is None:
            # It keeps all: an old step goes only after the newest verifies.
            policy = ocp.checkpoint_managers.preservation_policy.PreserveAll()
            # Two managers that write at once must not meet at each other's barriers.
            names = ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=agreed(str(self.folder))
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                multiprocessing_options=names,
                cleanup_tmp_directories=True,
            )
            self._opened.enter_context(_quiet())
            self._open = _deaf(ocp.CheckpointManager)(self.folder, options=options)
        return self._open

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _problem(self, step: int) -> str:
        """Asks process 0 alone, so that all processes pick the same step."""
        return agreed(problem(self._path(step)) if is_first() else "")

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

    @contextlib.contextmanager
    def _discarding(self, step: int) -> Iterator[None]:
        """Drops a step that cannot be saved, and names a full disk."""
        try:
            yield
        except Exception as error:
            self._discard(step)
            if not _is_disk_full(error):
                raise
            raise TrainingError(
                f"no disk space left while saving {self.folder} step {step}; "
                "free space and run the same command again"
            ) from error

    def _discard(self, step: int) -> None:
        """Drops a failed save; Orbax may still hold its error, so it is reopened."""
        manager, self._open, self._saving = self._open, None, None
        if manager is not None:
            with contextlib.suppress(Exception):
                manager.wait_until_finished()  # raises in every thread, but once
            with contextlib.suppress(Exception):
                manager.close()
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from printing tracebacks of the errors that are raised here anyway.

    After a failure its remaining writes end later, so the hook then stays.
    """
    log, before = logging.getLogger("absl"), sys.unraisablehook

    def is_of_others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    log.addFilter(is_of_others)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        log.removeFilter(is_of_others)
    if sys.unraisablehook is hook:
        sys.unraisablehook = before


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "no space left" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
