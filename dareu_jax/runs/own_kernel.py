"""Try a kernel of the user's own before anything is trained."""

import jax
import numpy as np

from dareu_jax import data
from dareu_jax.attribution import Kernel
from dareu_jax.attribution.finite import check_scores
from dareu_jax.attribution.index import BatchesOf, build_index, init_on
from dareu_jax.data.batches import over_records
from dareu_jax.models import init_decoder, parameters
from dareu_jax.parallel import put_batch
from dareu_jax.registry import KERNELS
from dareu_jax.runs.inputs import Inputs

LARGEST = 10_000_000
"""Parameters of a model that is made only to try a kernel."""


def check_own_kernel(one: Inputs, kernel: Kernel) -> None:
    """Raise `UserError` where a user's kernel gives a score that is no number.

    It is tried on one record or more of every owner, with fresh parameters. Kernels of
    this package are not tried, nor those that are trained or that read checkpoints, nor
    any where the model is large: their scores are checked when their index is built.
    """
    factory = KERNELS.get(one.cfg.reward.kernel)
    is_ours = factory.__module__.partition(".")[0] == __name__.partition(".")[0]
    if is_ours or kernel.is_fitted or kernel.reads_snapshots or is_large(one):
        return
    size = one.cfg.classifier.batch_size
    records = of_every_owner(one.corpus, size)
    tokens, owners = one.tokens(records), one.corpus.owners
    labels = data.owner_labels(records, owners)
    stream = data.BatchStream(tokens, size, one.seed)
    each = BatchesOf(stream, labels, is_fitted=False, steps=0)
    with jax.set_mesh(one.mesh):
        params = one.made(lambda key: init_decoder(one.model, key=key), one.key("try"))
        batches = [put_batch(batch, one.mesh) for batch in each]
        index = build_index(
            kernel,
            params,
            batches,
            key=one.key("try"),
            init=lambda params, key: init_on(kernel, one.mesh, params, key=key),
        )
        score = jax.jit(lambda batch: kernel.score(params, index, batch))
        scores = over_records(tokens, size, one.place, score)
    names = [f"record {record.id!r}" for record in records]
    check_scores(kernel.name, scores, names, owners)


def is_large(one: Inputs) -> bool:
    """Return whether the run's model has more than `LARGEST` parameters."""
    return parameters(one.model.cfg) > LARGEST


def of_every_owner(corpus: data.Corpus, count: int) -> tuple[data.Record, ...]:
    """Return the first records of every owner, ``count`` or one of each at least."""
    owned = [r for r in corpus.train if r.owner != data.NOBODY]
    seen: dict[str, int] = {}
    places = []
    for record in owned:
        seen[record.owner] = seen.get(record.owner, 0) + 1
        places.append(seen[record.owner])
    order = np.argsort(places, kind="stable")[: max(count, len(corpus.owners))]
    return tuple(owned[place] for place in order)
