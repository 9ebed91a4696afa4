"""Save and load an index: arrays in Orbax, and what they depend on in spec.json."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import dareu_jax
from dareu_jax.attribution.attributor import Attributor, Options, Snapshots
from dareu_jax.attribution.gradients.probe import attributed
from dareu_jax.attribution.index import abstract_index
from dareu_jax.attribution.kernel import shapes_on
from dareu_jax.config import ClassifierConfig, attribution_config
from dareu_jax.data import NOBODY, Record
from dareu_jax.data.ownership import digests, shares_of
from dareu_jax.data.wording import Wording
from dareu_jax.errors import UserError
from dareu_jax.models.loaded import LoadedModel, load_model
from dareu_jax.parallel import is_first, named_leaves
from dareu_jax.registry import KERNELS
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.storage.files import new_folder
from dareu_jax.storage.fingerprint import params_fingerprint

SPEC, ARRAYS = "spec.json", "index"
SIGN = "higher: more of the owner's; compare owners within one answer"


class Spec(BaseModel):
    """Everything that the numbers of an index depend on.

    Attributes:
      format: of these files; dareu_jax: the version that wrote them.
      kernel, classifier, wording, seed: see `Options`.
      attribution: options of kernels: what several share and the kernel's own section.
      owners: the columns; records: `digests` of what it was built from.
      model, tokenizer: their fingerprints; compute_dtype: the model's.
      measurement: what is differentiated, see `Kernel.differentiates`.
      selection: the matrices whose gradients are seen, with their shapes; empty where
        nothing is differentiated.
      snapshots: fingerprints and weights of checkpoints; sign: of a score.
      batch_size: texts at a time while it was built.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal[3] = 3
    dareu_jax: str
    kernel: str
    owners: tuple[str, ...]
    records: dict[str, str]
    model: str
    tokenizer: str
    compute_dtype: str
    measurement: str | None
    selection: dict[str, tuple[int, ...]]
    sign: str
    attribution: dict[str, Any]
    classifier: ClassifierConfig
    wording: dict[str, Any]
    seed: int
    snapshots: tuple[tuple[str, float], ...]
    batch_size: int

    def options(self, batch_size: int) -> Options:
        """Return the options that it was built with, for so many texts at a time.

        Raises:
          UserError: an unknown kernel, or options that it does not have.
        """
        KERNELS.get(self.kernel)
        return Options(
            kernel=self.kernel,
            attribution=attribution_config(**self.attribution),
            classifier=self.classifier,
            wording=Wording(**self.wording),
            batch_size=batch_size,
            seed=self.seed,
        )


def spec_of(made: Attributor) -> Spec:
    """Return what an index of ``made`` depends on."""
    model, measurement = made.model, made.kernel.differentiates
    matrices = named_leaves(attributed(model.params)) if measurement else ()
    return Spec(
        **made.options.read_by_kernel(),
        dareu_jax=dareu_jax.__version__,
        owners=made.owners,
        records=dict(made.held),
        model=model.fingerprint,
        tokenizer=model.tokenizer.fingerprint,
        compute_dtype=model.decoder.cfg.compute_dtype,
        measurement=measurement,
        selection={path: tuple(leaf.shape) for path, leaf in matrices},
        sign=SIGN,
        snapshots=tuple((params_fingerprint(p), float(w)) for p, w in made.snapshots),
        batch_size=made.options.batch_size,
    )


def save(made: Attributor, folder: Path | str) -> None:
    """Write the index to a new folder, whole or not at all.

    Raises:
      UserError: ``folder`` exists.
    """
    spec = spec_of(made).model_dump(mode="json")
    with new_folder(Path(folder)) as draft:
        with Checkpoints(draft / ARRAYS) as saved:
            saved.save(0, made.index, spec)
        if is_first():
            text = json.dumps(spec, indent=1, ensure_ascii=False) + "\n"
            (draft / SPEC).write_text(text, encoding="utf-8")


def load(
    folder: Path | str,
    model: Path | str | LoadedModel,
    records: Sequence[Record] = (),
    snapshots: Snapshots = (),
    batch_size: int = 8,
) -> Attributor:
    """Read an index for the model that it was built with, onto that model's devices.

    Args:
      folder: what `save` wrote; model, snapshots: as for `attribute`.
      records: what it was built from, for `Attributor.top_records`.

    Raises:
      UserError: no index there, or it was built with another model, other records or
        snapshots.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    if records:
        check_records(folder, spec, records)
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    options = spec.options(batch_size)
    known = tuple(record for record in records if shares_of(record))
    made = Attributor(
        model=loaded,
        options=options,
        owners=spec.owners,
        index=None,
        held=spec.records,
        records=known,
        snapshots=snapshots,
    )
    check_fits(folder, spec, spec_of(made))
    shapes = abstract_index(made.kernel, loaded.params)
    there = shapes_on(made.kernel, shapes, loaded.mesh)
    with Checkpoints(folder / ARRAYS, warn=lambda message: None) as saved:
        found = saved.latest(there)
    if found is None or Spec.model_validate(found[2]) != spec:
        what = ARRAYS if found is None else SPEC
        raise UserError(
            f"{folder / what} is damaged or was changed; build the index again"
        )
    return dataclasses.replace(made, index=found[1])


def read_spec(folder: Path) -> Spec:
    """Return what an index says of itself; raise `UserError` where there is none."""
    try:
        return Spec.model_validate_json((folder / SPEC).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        raise UserError(
            f"{folder} holds no index that this version can read ({SPEC} is missing "
            "or damaged); give a folder that dareu attribute --index wrote"
        ) from None


def check_records(folder: Path, spec: Spec, records: Sequence[Record]) -> None:
    """Raise `UserError` unless ``records`` are those the index was built from."""
    owned_alone = NOBODY not in spec.records
    found = digests([r for r in records if not owned_alone or shares_of(r)])
    for owner in {**spec.records, **found}:
        if found.get(owner) != spec.records.get(owner):
            raise UserError(
                f"{folder} was built from other records: those of "
                f"{owner or 'nobody'!r} differ; build another index"
            )


def check_fits(folder: Path, built: Spec, now: Spec) -> None:
    """Raise `UserError` unless the index is of this model, dtype and selection."""
    about = {
        "model": "a model of fingerprint",
        "tokenizer": "a tokenizer of fingerprint",
        "compute_dtype": "a model computing in",
        "measurement": "the measurement",
        "selection": "the matrices",
        "snapshots": "the snapshots",
    }
    for name, what in about.items():
        before, after = getattr(built, name), getattr(now, name)
        if before != after:
            raise UserError(
                f"{folder} was built with {what} {before!s:.60}, not {after!s:.60}; "
                "give what it was built with, or build the index again"
            )
