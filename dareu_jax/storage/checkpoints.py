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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from dareu_jax import parallel
from dareu_jax.errors import TrainingError, UserError, first_line
from dareu_jax.parallel import agreed, is_first, named_leaves, path_name, wait_for_all
from dareu_jax.storage import integrity

LARGE = 2**28
"""Bytes above which arrays in the memory of the host are written at once: donated
while they are being read, they would be there twice."""
SMALL = 2**16
"""Bytes of a part below which one device writes all of an array: to cut an array takes
a copy on each device, and pays only where processes share much to write."""
Found = tuple[int, Any, dict[str, Any]]
"""A step, its tree and its meta."""


class Checkpoints:
    """The newest and the best steps of one stage in `folder`; use it in a `with`.

    On disk stay the newest `keep` steps and the `keep_best` of the lowest metric;
    `warn` is called with one line for every step that cannot be used.
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
        model: Any = None,
    ) -> None:
        """Copies `tree` (arrays) and `meta` (JSON); both are written in the background.

        The arrays may be donated as soon as it returns; large ones in the memory of the
        host are on disk by then, see `LARGE`. Steps at or after `step` belong to an
        abandoned run and are removed first. `keep_best` goes by the `metric`, lower is
        better; none: never among the best. `model` has parameters of `tree` as nested
        dictionaries, for `read_model`. Raises `TrainingError` on a full disk.
        """
        self.settle()
        self._remove([old for old in agreed(self.steps()) if old >= step])
        with self._discarding(step):
            self._saving = step, self._write(step, tree, meta, metric, model)
            if _host_bytes(tree) > LARGE:
                self._saving[1].result()

    def settle(self) -> None:
        """Wait until the last save is whole; raise `TrainingError` on a full disk."""
        if self._saving is None:
            return
        step, written = self._saving
        with self._discarding(step):
            written.result()
        self._saving = None
        wait_for_all(f"saved {step}")
        self._remove(agreed(self._replaced() if is_first() else []))

    def latest(self, abstract_tree: Any) -> Found | None:
        """Return `(step, tree, meta)` of the newest step that can be trusted, if any.

        The shardings of `abstract_tree` decide where the result lives, whatever mesh it
        was saved from. Raises `UserError` for a leaf of another shape or dtype on disk.
        """
        self.settle()
        passed_over: list[tuple[int, str]] = []
        found = None
        for step in reversed(agreed(self.steps())):
            reason = _problem(self._path(step))
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
        """Return one step as `latest` does; raise `UserError` where it cannot be."""
        self.settle()
        _check_there(self.folder, step, agreed(self.steps()))
        reason = _problem(self._path(step))
        found, why = (None, reason) if reason else self._restore(step, abstract_tree)
        if found is None:
            raise UserError(
                f"checkpoint {self.folder} step {step} is unreadable ({why}); "
                "take another step"
            )
        return found

    def steps(self) -> list[int]:
        """Return the steps with a folder on disk, oldest first, unverified."""
        return steps_in(self.folder)

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
        self,
        step: int,
        tree: Any,
        meta: dict[str, Any],
        metric: float | None,
        model: Any,
    ) -> Future[None]:
        import orbax.checkpoint as ocp

        leaves = integrity.describe(tree)
        manifest: dict[str, Any] = {"leaves": leaves, "metric": metric}
        # Orbax copies arrays of other devices before it returns, and reads JSON after.
        items = {"meta": ocp.args.JsonSave(copy.deepcopy(meta))}
        if model is not None:
            shared = _shared(tree, model)
            manifest |= {"model": integrity.describe(model), "shared": shared}
            items["model"] = ocp.args.PyTreeSave(_kept(model))
            tree = _without(tree, shared)
        if jax.tree.leaves(tree):
            items["state"] = ocp.args.PyTreeSave(_kept(tree))
        manager = self._manager()
        manager.save(step, args=ocp.args.Composite(**items), force=True)
        worker = ThreadPoolExecutor(1, "manifest")
        written = worker.submit(self._finish, manager, step, manifest)
        worker.shutdown(wait=False)
        return written

    def _finish(self, manager: Any, step: int, manifest: dict[str, Any]) -> None:
        """Runs beside the main thread, so nothing here waits for other processes."""
        manager.wait_until_finished()
        if is_first():
            integrity.write_manifest(self._path(step), manifest)

    def _restore(self, step: int, abstract_tree: Any) -> tuple[Found | None, str]:
        import orbax.checkpoint as ocp

        target = _targets(abstract_tree)
        manifest = integrity.read_manifest(self._path(step))
        integrity.check_leaves(
            f"checkpoint {self.folder} step {step}", manifest["leaves"], target
        )
        shared = manifest.get("shared", {})
        rest = _without(target, shared)
        items: dict[str, Any] = {"meta": ocp.args.JsonRestore()}
        if jax.tree.leaves(rest):
            items["state"] = _reading(rest)
        if shared:
            leaves = named_leaves(target)
            known = {shared[path]: x for path, x in leaves if path in shared}
            model = _model_target(manifest["model"], known)
            items["model"] = _reading(model)
        try:
            out = self._manager().restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, first_line(error)
        found = dict(named_leaves(out["state"])) if "state" in items else {}
        apart = dict(named_leaves(out["model"])) if shared else {}
        found |= {path: apart[place] for path, place in shared.items()}
        tree = jax.tree_util.tree_map_with_path(
            lambda path, _: found[path_name(path)], target
        )
        return (step, tree, out["meta"]), ""

    def _replaced(self) -> list[int]:
        """Return the steps that are neither among the newest nor among the best.

        Orbax's manager cannot do it: it deletes by its policy as soon as its own files
        are written, and a step may go only after the newest has its manifest.
        """
        steps = self.steps()
        metrics = {step: integrity.read_metric(self._path(step)) for step in steps}
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
            self._open = ocp.CheckpointManager(
                self.folder, options=options, handler_registry=_handlers(names)
            )
            # JAX counts the steps at which it is asked for a preemption; the run asks,
            # and a manager that asked too would reset that count.
            self._open.reached_preemption = lambda step: False
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
            drafts = self.folder.glob("*.orbax-checkpoint-tmp*")
            for path in [self._path(step), *drafts]:
                shutil.rmtree(path, ignore_errors=True)


def _handlers(names: Any) -> Any:
    """Return Orbax's handlers of a step's trees; `names` are those of its barriers."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint._src.metadata.array_metadata_store import Store

    kinds = ocp.type_handlers
    # Without a store it refuses keys of random numbers.
    arrays = kinds.ArrayHandler(
        min_slice_bytes_for_replica_parallel=SMALL, array_metadata_store=Store()
    )
    types = kinds.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, kinds.NumpyHandler())
    )
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ("state", "model"):
        handler = ocp.PyTreeCheckpointHandler(
            multiprocessing_options=names, type_handler_registry=types
        )
        handlers.add(item, ocp.args.PyTreeSave, handler)
        handlers.add(item, ocp.args.PyTreeRestore, handler)
    return handlers


def _reading(target: Any) -> Any:
    """Return what Orbax needs to restore a tree of this structure and sharding."""
    import orbax.checkpoint as ocp

    leaves = ocp.checkpoint_utils.construct_restore_args(target)
    return ocp.args.PyTreeRestore(target, restore_args=leaves)


def _kept(tree: Any) -> Any:
    """Return ``tree`` with copies of the arrays that Orbax would read where they are.

    What several processes share stays: JAX itself copies what is donated and read.
    """
    if _host_bytes(tree) > LARGE:
        return tree

    def copy_of(leaf: Any) -> Any:
        if not _is_of_host(leaf) or not leaf.is_fully_addressable:
            return leaf
        return jax.device_put(leaf, leaf.sharding, may_alias=False)

    return jax.tree.map(copy_of, tree)


def _host_bytes(tree: Any) -> int:
    """Return the bytes of the arrays whose device is the host itself."""
    return sum(x.nbytes for x in jax.tree.leaves(tree) if _is_of_host(x))


def _is_of_host(leaf: Any) -> bool:
    """Return whether a leaf is an array whose device is the host itself."""
    is_array = isinstance(leaf, jax.Array)
    return is_array and next(iter(leaf.devices())).platform == "cpu"


def _problem(folder: Path) -> str:
    """Asks process 0 alone, so that all processes pick the same step."""
    return agreed(integrity.problem(folder) if is_first() else "")


def _check_there(folder: Path, step: int, steps: list[int]) -> None:
    """Raises `UserError` where a step has no folder."""
    if step not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{folder} has no step {step}; there are: {known}")


def read_model(
    folder: Path, mesh: Mesh, step: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return the model and the meta that a finished stage left; nothing is written.

    It is of a ``step`` on disk, by default the last. Raises `UserError` where there is
    none, it is damaged, or the stage is not finished.
    """
    import orbax.checkpoint as ocp

    steps = steps_in(folder)
    if step is None and finished_step(folder) is None:
        raise UserError(
            f"{folder} {_unfinished(folder)}; put it back, or delete the run's logs "
            "and let the same dareu run make it again"
        )
    at = steps[-1] if step is None else step
    _check_there(folder, at, steps)
    place = folder / str(at)
    if reason := _problem(place):
        raise UserError(f"checkpoint {folder} step {at} is unreadable ({reason})")
    leaves = integrity.read_manifest(place).get("model", {})
    target = parallel.abstract_on(_model_target(leaves, {}), mesh)
    with ocp.StandardCheckpointer() as reader:
        params = reader.restore((place / "model").absolute(), target)
    return params, integrity.read_meta(place)


def steps_in(folder: Path) -> list[int]:
    """Return the steps with a folder on disk, oldest first, unverified."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def finished_step(folder: Path) -> int | None:
    """Return the newest step of a stage, if it is whole and the stage is done."""

    def found() -> int | None:
        for step in steps_in(folder)[-1:]:
            place = folder / str(step)
            if not integrity.problem(place) and integrity.read_meta(place).get("done"):
                return step
        return None

    return agreed(found() if is_first() else None)


def newest_meta(folder: Path) -> dict[str, Any]:
    """Return the meta of a stage's newest step, unverified; empty where it has none."""
    newest = steps_in(folder)[-1:]
    try:
        return integrity.read_meta(folder / str(newest[0])) if newest else {}
    except (OSError, ValueError):
        return {}


def _unfinished(folder: Path) -> str:
    """Return why a stage's folder has nothing to read."""
    steps = steps_in(folder)
    if not steps:
        return "is missing"
    reason = integrity.problem(folder / str(steps[-1]))
    return f"is damaged: step {steps[-1]}: {reason}" if reason else "is not finished"


def _shared(tree: Any, model: Any) -> dict[str, str]:
    """Return path in ``tree`` -> path in ``model`` of the leaves that are one array."""
    places = {id(leaf): path for path, leaf in named_leaves(model)}
    leaves = named_leaves(tree)
    return {path: places[id(x)] for path, x in leaves if id(x) in places}


def _without(tree: Any, paths: Mapping[str, str]) -> Any:
    """Return ``tree`` with None in place of the leaves at ``paths``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: None if path_name(path) in paths else leaf, tree
    )


def _model_target(leaves: integrity.Leaves, known: Mapping[str, Any]) -> Any:
    """Return nested dictionaries of the shapes of a model's leaves."""
    out: dict[str, Any] = {}
    for path, (shape, dtype) in leaves.items():
        *above, name = path.split("/")
        inner = out
        for part in above:
            inner = inner.setdefault(part, {})
        inner[name] = known.get(path) or jax.ShapeDtypeStruct(tuple(shape), dtype)
    return _targets(out) if known else out


def _targets(abstract_tree: Any) -> Any:
    """Gives each leaf a sharding; leaves without one go wherever the others live."""
    leaves = jax.tree.leaves(abstract_tree)
    meshes = [s.mesh for s in map(_sharding, leaves) if isinstance(s, NamedSharding)]
    default: Any = SingleDeviceSharding(jax.local_devices()[0])
    if meshes:
        default = NamedSharding(meshes[0], PartitionSpec())

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
    if error is None:
        return False
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    above = error.__cause__ or error.__context__
    return is_full or "no space left" in str(error).lower() or _is_disk_full(above)
