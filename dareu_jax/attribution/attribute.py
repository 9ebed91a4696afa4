"""Build an attributor from records."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dareu_jax.attribution.attributor import Attributor, Options, Snapshots
from dareu_jax.attribution.index import build_index, init_on
from dareu_jax.attribution.kernel import OwnerBatch, placed_index
from dareu_jax.config import ClassifierConfig
from dareu_jax.data import Record
from dareu_jax.data.ownership import SharedRecord, digests, owners_of, shares_of
from dareu_jax.data.sources.jsonl import read_owned
from dareu_jax.errors import UserError
from dareu_jax.models.loaded import LoadedModel, load_model
from dareu_jax.training.progress import Progress


def attribute(
    model: Path | str | LoadedModel,
    records: Path | str | Sequence[Record],
    snapshots: Snapshots = (),
    progress: Progress | None = None,
    **options: Any,
) -> Attributor:
    """Build an attributor of ``records`` over an imported model.

    Args:
      model: a folder that ``dareu import`` wrote, or a loaded one.
      records: a JSONL file of them, those of `read_owned`, or made.
      snapshots: ``(parameters, weight)`` of checkpoints, for ``tracin``.
      options: fields of `Options`.

    Raises:
      UserError: no such model or kernel, or nobody owns anything.
    """
    chosen = Options(**options)
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    known = read_owned(records) if isinstance(records, Path | str) else records
    made = unbuilt(loaded, chosen, known, snapshots)
    return build(made, progress or Progress())


def unbuilt(
    model: LoadedModel,
    options: Options,
    records: Sequence[Record],
    snapshots: Snapshots = (),
) -> Attributor:
    """Return an attributor of ``records`` whose index is still to be built.

    What nobody owns, and the classifier's options, are for a kernel that is trained.

    Raises:
      UserError: nobody owns anything, or the kernel cannot take these records.
    """
    owners = owners_of(records)
    if not owners:
        raise UserError("no record has an owner; attribution needs at least one")
    made = Attributor(
        model=model,
        options=options,
        owners=owners,
        index=None,
        held={},
        snapshots=snapshots,
    )
    fitted = made.kernel.is_fitted
    shared = [r.id for r in records if isinstance(r, SharedRecord)]
    if fitted and shared:
        raise UserError(
            f"kernel {options.kernel} takes records of one owner each, and record "
            f"{shared[0]!r} is shared; take a kernel such as grad_dot"
        )
    if not fitted:
        options = dataclasses.replace(options, classifier=ClassifierConfig())
    kept = tuple(record for record in records if fitted or shares_of(record))
    return dataclasses.replace(made, options=options, held=digests(kept), records=kept)


def build(made: Attributor, progress: Progress) -> Attributor:
    """Return the attributor with the index of its records."""
    model, batches = made.model, made.batches(made.records)
    kernel = made.kernel_of(len(made.owners), len(batches))
    if kernel.note:
        progress.say(kernel.note)
    title, steps = f"index of {kernel.name}", kernel.passes * len(batches)
    with jax.set_mesh(model.mesh), progress.stage(title, steps) as advance:
        done = itertools.count(1)

        def update(params: Any, batch: OwnerBatch, acc: Any):
            updated = kernel.update(params, model.place(batch), acc)
            advance(next(done), "")
            return updated

        index = build_index(
            dataclasses.replace(kernel, update=update),
            model.params,
            batches,
            key=jax.random.key(made.options.seed),
            init=functools.partial(init_on, kernel, model.mesh),
        )
        index = placed_index(kernel, index, model.mesh)
    return dataclasses.replace(made, index=index)
