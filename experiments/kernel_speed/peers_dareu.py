"""The library's own part of `peers`: what the peers are given, and its CPU time.

See `peers` for the commands.
"""

import argparse
from functools import partial
from pathlib import Path

import benchmark  # sets XLA's flags, so it comes before jax
import jax
import numpy as np
from peers import Job

from dareu_jax.attribution.gradients.bilinear import (
    How,
    add_records,
    exact,
    owner_scores,
)
from dareu_jax.attribution.gradients.measures import token_weight
from dareu_jax.attribution.gradients.probe import attributed, gradients
from dareu_jax.attribution.kernel import OwnerBatch
from dareu_jax.models.scoring import whole_text
from dareu_jax.parallel import named_leaves


def setting():
    """The decoder, its parameters, 32 queries and 32 other records of `benchmark`."""
    model = benchmark.Decoder(benchmark.SMALL)
    params = benchmark.init_decoder(model, key=jax.random.key(0))
    both = benchmark.queries(2 * benchmark.B, benchmark.T)
    train = jax.tree.map(lambda x: x[benchmark.B :], both)
    index = benchmark.index_for("probe", params, benchmark.OWNERS, jax.random.key(0))
    return model, params, index, benchmark.queries(benchmark.B, benchmark.T), train


def pairwise(how, params, queries, train):
    """Scores of queries against an index with an owner for every record."""
    owners, key = train.index - train.index[0], jax.random.key(0)
    full = benchmark.index_of(params, how.features, len(owners), key)
    empty = jax.tree.map(jax.numpy.zeros_like, full)
    index, _ = add_records(how, params, OwnerBatch(train, owners), empty)
    return owner_scores(how, params, index, queries)


def export(folder: Path) -> None:
    """Writes weights, texts, index and the exact scores by `gradients`."""
    model, params, index, queries, train = setting()
    flat = {"p/" + name: leaf for name, leaf in named_leaves(params)}
    flat |= {"o/" + name: leaf for name, leaf in index.owner_sums.items()}
    each = []
    for name, batch in (("queries", queries), ("train", train)):
        flat[name], flat[f"{name}_mask"] = whole_text(batch)
        each.append(gradients(model, params, batch, token_weight(batch, "mean")))
    flat["owners"] = sum(
        jax.numpy.einsum(
            "bldf,lodf->bo", leaf, index.owner_sums[name.replace("/", ".")]
        )
        for name, leaf in named_leaves(each[0])
    )
    flat["pairwise"] = sum(
        jax.numpy.einsum("bldf,nldf->bn", *both)
        for both in zip(*map(jax.tree.leaves, each))
    )
    flat["attributed"] = sum(x.size for x in jax.tree.leaves(attributed(params)))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "arrays.npz", **{k: np.asarray(v) for k, v in flat.items()})
    print(flat["attributed"], "attributed numbers")


def measure(folder: Path) -> None:
    """Measures this library."""
    model, params, index, queries, train = setting()
    job, runs = Job("dareu", folder, ("jax", "jaxlib")), benchmark.programs(model)
    how = How(model, exact(), "mean")
    pairs = jax.jit(partial(pairwise, how))

    def ready(run, *args):
        return jax.block_until_ready(run(*args))

    for row, run, args, wanted in (
        ("summed gradient", runs["summed gradient"], (params, index, queries), ""),
        ("owners: vmap(grad)", runs["vmap(grad)"], (params, index, queries), "owners"),
        ("owners: probe", runs["probe"], (params, index, queries), "owners"),
        ("pairwise: index, then scores", pairs, (params, queries, train), "pairwise"),
    ):
        job.measure(row, partial(ready, run, *args), wanted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["export", "measure"])
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    {"export": export, "measure": measure}[given.what](given.folder)
