"""Say whose data an answer comes from, with one kernel over one imported model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple

import jax
import numpy as np

from dareu_jax import data
from dareu_jax.attribution.echo import Echo, echo_of, make_kernel
from dareu_jax.attribution.finite import check_scores
from dareu_jax.attribution.index import BatchesOf
from dareu_jax.attribution.kernel import Kernel, Setup
from dareu_jax.attribution.owners import both, columns_of, filled, owner_axes, slice_of
from dareu_jax.attribution.single import single_scores
from dareu_jax.config import AttributionConfig, ClassifierConfig, attribution_config
from dareu_jax.data import ownership
from dareu_jax.data.batches import PLAIN
from dareu_jax.errors import UserError, did_you_mean
from dareu_jax.models import Decoder, decoder_config
from dareu_jax.models.context import lengths_of, warn_beyond
from dareu_jax.models.loaded import LoadedModel, as_tokens
from dareu_jax.parallel import on_host
from dareu_jax.registry import KERNELS
from dareu_jax.storage.fingerprint import fingerprint
from dareu_jax.training.finetune import training_steps

Queries = Sequence[tuple[str, str]]
"""``(prompt, response)`` of every answer."""


Snapshots = Sequence[tuple[Any, float]]
"""Parameters of checkpoints and their weights, for ``tracin``."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How text is read and what a kernel is made with.

    Attributes:
      kernel: of ``dareu list kernels``.
      attribution: options of kernels, see `attribution_config`; classifier: of one that
        is trained.
      wording: how a prompt and its response become one text.
      batch_size: texts at a time, rounded up to a multiple of the devices; a
        classifier is trained with its own. seed: of what is drawn.

    Raises:
      UserError: an unknown kernel, or an option that cannot be used.
    """

    kernel: str = "grad_dot"
    attribution: AttributionConfig = field(default_factory=attribution_config)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    wording: data.Wording = PLAIN
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        KERNELS.get(self.kernel)
        if self.batch_size < 1:
            raise UserError(f"batch_size = {self.batch_size} must be at least 1")
        if self.classifier.model.path or self.classifier.lora:
            raise UserError(
                "classifier.model.path and classifier.lora are for dareu run; here a "
                "classifier is trained from scratch, classifier.model.preset its shape"
            )

    def read_by_kernel(self) -> dict[str, Any]:
        """Return what scores depend on: no batch size, no options of other kernels."""
        attribution = self.attribution.model_dump(
            mode="json", include={*AttributionConfig.model_fields, self.kernel}
        )
        return {
            "kernel": self.kernel,
            "attribution": attribution,
            "classifier": self.classifier.model_dump(mode="json"),
            "wording": dataclasses.asdict(self.wording),
            "seed": self.seed,
        }


class Named(NamedTuple):
    """A record that an answer is attributed to."""

    record: data.Record
    score: float


@dataclasses.dataclass(frozen=True, eq=False)
class Attributor:
    """A kernel's index over owners by name, and the model that it scores with.

    Attributes:
      model, options: see `load_model` and `Options`.
      owners: O names, the index's columns; index: see `Kernel`.
      held: what every owner has in it, see `digests`.
      records: what it was built from; none where they are not at hand.
      snapshots: parameters and weights of checkpoints, for ``tracin``.
      owners_at_once: owners whose index is on the devices at a time; None: all.
    """

    model: LoadedModel
    options: Options
    owners: tuple[str, ...]
    index: Any
    held: Mapping[str, str]
    records: tuple[data.Record, ...] = ()
    snapshots: Snapshots = ()
    owners_at_once: int | None = None

    @functools.cached_property
    def kernel(self) -> Kernel:
        """The kernel for these owners."""
        return self.kernel_of(len(self.owners))

    @functools.cached_property
    def _score(self) -> Callable[..., jax.Array]:
        return jax.jit(self.kernel.score)

    def kernel_of(self, owners: int, steps: int = 1) -> Kernel:
        """Return the kernel for so many owners, fitted in ``steps`` if it is.

        Raises:
          UserError: the kernel reads snapshots and there are none.
        """
        options, vocab = self.options, self.model.decoder.cfg.vocab
        shape = decoder_config(options.classifier.model, vocab)
        backbone = dataclasses.replace(shape, dropout=options.classifier.dropout)
        setup = Setup(
            model=self.model.decoder,
            owners=owners,
            cfg=options.attribution,
            classifier=options.classifier,
            steps=steps,
            backbone=Decoder(backbone),
            snapshots=lambda: self.snapshots,
        )
        kernel = make_kernel(options.kernel, setup, self._echo)
        if kernel.reads_snapshots and not self.snapshots:
            raise UserError(
                f"kernel {options.kernel} needs checkpoints of the model's training: "
                "in Python, attribute(..., snapshots=[(params, weight)]); or take "
                "grad_dot"
            )
        return kernel

    @functools.cached_property
    def _echo(self) -> Echo | None:
        vocab = self.model.decoder.cfg.vocab
        return echo_of(self.options.attribution, self.model.tokenizer, vocab)

    def tokens(self, records: Sequence[data.Record]) -> data.TokenBatch:
        """Return records as tokens, marked for the kernel, see `as_tokens`."""
        tokens = as_tokens(self.model, records, self.options.wording)
        warn_beyond(self.model.context, lengths_of(tokens))
        return self.kernel.mark(tokens)

    def answer(self, prompts: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """Return the model's own greedy answers."""
        model = self.model._replace(wording=self.options.wording)
        return model.generate(prompts, max_new_tokens, self.options.batch_size)

    def score(self, queries: Queries) -> np.ndarray:
        """Return scores ``[Q, O]`` float32 of ``(prompt, response)``, in its unit.

        Higher: more of the owner's. Compare owners within a row, not rows.
        """
        asked, size = self._asked(queries), self.options.batch_size
        widths, model = data.fitted_widths(asked, self.model.rows(size)), self.model
        count = len(self.owners)
        at_once = min(self.owners_at_once or count, count)
        parts = []
        for first in range(0, count, at_once):
            # the last slice is as wide as the others: one program
            start, index = min(first, count - at_once), self.index
            if at_once < count:
                index = slice_of(self.kernel, index, start, at_once, model.mesh)
            score = functools.partial(self._score, model.params, index)
            scores = model.over(asked, size, score, widths)
            parts.append(scores[:, first - start :])
        return np.concatenate(parts, axis=1)

    def in_slices(self, owners_at_once: int) -> "Attributor":
        """Return the attributor with its index in the memory of the host.

        Scores are made with ``owners_at_once`` owners of it on the devices at a time.

        Raises:
          UserError: the owners of this kernel are not independent of each other.
        """
        self.check_additive("cannot be scored a few owners at a time")
        index = on_host(self.index)
        return dataclasses.replace(self, index=index, owners_at_once=owners_at_once)

    def _asked(self, queries: Queries) -> data.TokenBatch:
        return self.tokens([data.Record("", "", *pair) for pair in queries])

    def batches(self, records: Sequence[data.Record]) -> BatchesOf:
        """Return the owner batches of one pass, or of a kernel's whole training."""
        options, fitted = self.options, self.kernel.is_fitted
        size = options.classifier.batch_size if fitted else options.batch_size
        tokens, size = self.tokens(records), self.model.rows(size)
        passes = options.classifier.epochs if fitted else self.kernel.passes
        widths = data.fitted_widths(tokens, size, passes=passes)
        stream = data.BatchStream(tokens, size, options.seed, widths=widths)
        steps = training_steps(options.classifier, stream.steps_per_epoch)
        owner = ownership.ownership(records, self.owners)
        return BatchesOf(stream, owner, fitted, steps)

    def top_records(
        self, queries: Queries, count: int = 5, owner: str | None = None
    ) -> list[list[Named]]:
        """Return the records that each answer is most attributed to, best first.

        They are those of ``owner``, or anybody's.

        Raises:
          UserError: no such owner, the records are not at hand, or the kernel knows
            owners alone.
        """
        self.check_single()
        rows = np.arange(len(self.records))
        if owner is not None:
            self.check_owner(owner)
            shares = map(ownership.shares_of, self.records)
            rows = np.flatnonzero([owner in dict(each) for each in shares])
        scores = single_scores(
            self.model,
            self.kernel,
            self.index,
            kernel_of=self.kernel_of,
            tokens=self.tokens(self.records),
            asked=self._asked(queries),
            rows=rows,
            batch_size=self.options.batch_size,
        )
        names = [f"answer {n}" for n in range(1, len(scores) + 1)]
        single = [self.records[row].id for row in rows]
        check_scores(f"{self.kernel.name} of single records", scores, names, single)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return [
            [Named(self.records[rows[at]], float(row[at])) for at in places]
            for row, places in zip(scores, best, strict=True)
        ]

    def check_single(self) -> None:
        """Raise `UserError` when single records cannot be scored."""
        self.check_additive("cannot score single records")
        if not self.records:
            raise UserError("the records of this index are not at hand; give them too")

    def add(self, records: Sequence[data.Record]) -> "Attributor":
        """Return the attributor with more records, of owners known or new.

        What all owners share, such as a fitted curvature, stays as it is.

        Raises:
          UserError: an owner has just these records in it already, or the kernel must
            be built again for that.
        """
        self.check_additive("cannot take in more records")
        records = tuple(record for record in records if ownership.shares_of(record))
        held = self._joined(ownership.digests(records))
        more = self._widened((*self.owners, *ownership.owners_of(records)))
        kernel, mesh, batches = more.kernel, self.model.mesh, more.batches(records)
        with jax.set_mesh(mesh):
            empty = columns_of(kernel, more.index, (-1,) * len(more.owners), mesh)
            each = map(self.model.place, batches)
            new = filled(kernel, self.model.params, empty, each)
            index = both(kernel, more.index, new, mesh)
        known = (*self.records, *records) if self.records else ()
        return dataclasses.replace(more, index=index, held=held, records=known)

    def remove(self, owner: str) -> "Attributor":
        """Return the attributor without an owner's column and records.

        Of a shared record the others keep their part. What all owners share, such as a
        curvature fitted to the owner's records too, stays as it is.

        Raises:
          UserError: no such owner, the last one, or the kernel must be built again.
        """
        self.check_additive("cannot leave an owner out")
        self.check_owner(owner)
        if len(self.owners) == 1:
            raise UserError(f"{owner!r} is the only owner of this index")
        stay = tuple(n for n, name in enumerate(self.owners) if name != owner)
        return dataclasses.replace(
            self,
            owners=tuple(self.owners[column] for column in stay),
            index=columns_of(self.kernel, self.index, stay, self.model.mesh),
            held={name: d for name, d in self.held.items() if name != owner},
            records=ownership.without(self.records, owner),
        )

    def merge(self, other: "Attributor") -> "Attributor":
        """Return the attributor of the records of both, which were indexed apart.

        Raises:
          UserError: another model or other options, an owner with the same records in
            both, or a kernel whose indices do not add up.
        """
        self.check_additive("cannot be merged")
        self._check_like(other)
        held = self._joined(other.held)
        mine = self._widened((*self.owners, *other.owners))
        theirs = other._widened(mine.owners)
        index = both(mine.kernel, mine.index, theirs.index, self.model.mesh)
        known = self.records and other.records and (*self.records, *other.records)
        return dataclasses.replace(mine, index=index, held=held, records=known)

    def _widened(self, names: Sequence[str]) -> "Attributor":
        """Return the attributor with a column for each of ``names``, new ones empty."""
        place = {owner: column for column, owner in enumerate(self.owners)}
        names = tuple(dict.fromkeys(names))
        columns = tuple(place.get(name, -1) for name in names)
        index = columns_of(self.kernel, self.index, columns, self.model.mesh)
        return dataclasses.replace(self, owners=names, index=index)

    def _joined(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return what every owner has in the index, with ``more``."""
        for owner in more:
            if self.held.get(owner) == more[owner]:
                raise UserError(
                    f"the records of {owner!r} are in this index already; "
                    "they would count twice"
                )
        return ownership.joined(self.held, more)

    def _check_like(self, other: "Attributor") -> None:
        """Raise `UserError` unless both indices are of one model and kernel."""

        def described(one: Attributor) -> tuple[Any, ...]:
            weights = [weight for _, weight in one.snapshots]
            return one.model.fingerprint, one.options.read_by_kernel(), weights

        if described(self) != described(other):
            raise UserError(
                "indices of different models or options cannot be merged; build both "
                "with the same ones"
            )
        if fingerprint(self._shared()) != fingerprint(other._shared()):
            raise UserError(
                f"kernel {self.kernel.name} fits something to all records, and these "
                "two indices were fitted to different ones; build one, then add to it"
            )

    def _shared(self) -> list[Any]:
        """Return the arrays of the index that belong to all owners together."""
        axes = jax.tree.leaves(owner_axes(self.kernel, self.index))
        leaves = jax.tree.leaves(self.index)
        return [x for axis, x in zip(axes, leaves, strict=True) if axis < 0]

    def check_owner(self, owner: str) -> None:
        """Raise `UserError` when the index has no such owner."""
        if owner not in self.owners:
            known = ", ".join(self.owners[:8]) + ", ..." * (len(self.owners) > 8)
            near = did_you_mean(owner, self.owners)
            raise UserError(f"no owner {owner!r} in this index{near}; it has {known}")

    def check_additive(self, what: str) -> None:
        """Raise `UserError` where the kernel cannot do ``what`` needs a sum for."""
        if not self.kernel.is_additive:
            raise UserError(
                f"kernel {self.kernel.name} {what}: its index does not add up over "
                "owners; build it again, or take one such as grad_dot or ekfac"
            )
