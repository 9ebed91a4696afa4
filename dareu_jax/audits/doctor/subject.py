"""What `dareu doctor` examines: a model, its kernels, text for them, and an oracle."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dareu_jax import data
from dareu_jax.attribution import Kernel, OwnerBatch, Setup, build_index, init_on
from dareu_jax.attribution.gradients.measures import token_weight
from dareu_jax.attribution.gradients.probe import attributed, gradients
from dareu_jax.attribution.kernel import owner_weights
from dareu_jax.config import AttributionConfig, ClassifierConfig
from dareu_jax.data import TokenBatch, Tokenizer
from dareu_jax.data.sources.jsonl import read_rows
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, decoder_config, generate
from dareu_jax.models.loaded import LoadedModel
from dareu_jax.parallel import batch_sharding, make_mesh, shard
from dareu_jax.registry import KERNELS

Array = jax.Array
HIGHEST = "highest"
"""The precision of float32 products that are not rounded to TF32 or bfloat16."""
LONGEST = 128
"""Tokens of a prompt, and of a response, that are read."""
OWNERS, SHORTEST, NEW_TOKENS, PROMPT = 8, 4, 16, 12
"""Of the text that the model makes itself."""


class Text(NamedTuple):
    """Owned records, queries, and pads: the tokenizer's id and another one."""

    records: OwnerBatch
    queries: TokenBatch
    owners: int
    fills: tuple[int, int]


def as_dtype(model: LoadedModel, dtype: str) -> LoadedModel:
    """The same parameters, kept and computed with in ``dtype``."""
    cfg = model.decoder.cfg
    if cfg.param_dtype == cfg.compute_dtype == dtype:
        return model
    cfg = dataclasses.replace(cfg, param_dtype=dtype, compute_dtype=dtype)
    params = optax.tree.cast(model.params, dtype)
    return model._replace(decoder=Decoder(cfg), params=params)


def on_one(model: LoadedModel) -> LoadedModel:
    """The same model on the first device alone."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return model._replace(params=shard(model.params, mesh), mesh=mesh)


def placed(batch: Any, mesh: Mesh) -> Any:
    """Host arrays ``[B, ...]`` on the mesh: split along B, or whole if B is odd."""
    rows, split = len(jax.tree.leaves(batch)[0]), batch_sharding(mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.device_put(batch, whole if rows % mesh.size else split)


def kernel_of(model: LoadedModel, name: str, owners: int) -> Kernel:
    """A kernel with the options that a run has by default."""
    classifier = ClassifierConfig()
    shape = decoder_config(classifier.model, model.decoder.cfg.vocab)
    setup = Setup(
        model=model.decoder,
        owners=owners,
        cfg=AttributionConfig(),
        classifier=classifier,
        steps=1,
        backbone=Decoder(shape),
        snapshots=lambda: [(model.params, 1.0)],
    )
    return KERNELS.get(name)(setup)


class Scorer:
    """A kernel with its index of the records: a `Score` of host arrays."""

    def __init__(
        self, model: LoadedModel, name: str, text: Text, precision: str | None = None
    ):
        self.model, self.precision = model, precision
        kernel, mesh = kernel_of(model, name, text.owners), model.mesh
        self._score = jax.jit(kernel.score)
        with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
            self.index = build_index(
                kernel,
                model.params,
                [placed(text.records, mesh)],
                key=jax.random.key(0),
                init=functools.partial(init_on, kernel, mesh),
            )

    def __call__(self, queries: TokenBatch, params: Any = None) -> np.ndarray:
        """Scores ``[B, O]`` float32, by other parameters where some are given."""
        params, mesh = params or self.model.params, self.model.mesh
        with jax.set_mesh(mesh), jax.default_matmul_precision(self.precision):
            scores = self._score(params, self.index, placed(queries, mesh))
        return np.asarray(scores, np.float32)


def jiggled(params: Any) -> Any:
    """Parameters with their last bit changed, up or down by chance."""

    def change(path: Any, leaf: Array) -> Array:
        key = jax.random.fold_in(
            jax.random.key(0), zlib.crc32(jax.tree_util.keystr(path).encode())
        )
        sign = jax.random.rademacher(key, leaf.shape, leaf.dtype)
        return leaf + leaf * sign * jnp.finfo(leaf.dtype).eps

    return jax.jit(lambda tree: jax.tree_util.tree_map_with_path(change, tree))(params)


def oracle(
    model: LoadedModel, text: Text, queries: TokenBatch
) -> tuple[np.ndarray, ...]:
    """Scores ``[B, O]`` and gradient norms ``[B]`` by ``vmap(grad)``, float32."""
    weights = owner_weights(text.records, text.owners)
    counts = jnp.maximum(weights.sum(axis=0), 1.0)
    with jax.set_mesh(model.mesh), jax.default_matmul_precision(HIGHEST):
        sums = _sums(model.decoder, model.params, text.records.text, weights)
        means = jax.tree.map(lambda x: x / counts.reshape(-1, 1, 1, 1), sums)
        found = _against(model.decoder, model.params, means, queries)
    return tuple(map(np.asarray, found))


def _gradient(model: Decoder, params: Any, one: TokenBatch) -> Any:
    """The gradient of one text, leaves ``[L, D, F]`` float32."""
    batch = jax.tree.map(lambda x: x[None], one)
    tree = gradients(model, params, batch, token_weight(batch, "mean"))
    return jax.tree.map(lambda g: g[0], tree)


@functools.partial(jax.jit, static_argnames="model")
def _sums(model: Decoder, params: Any, text: TokenBatch, weights: Array) -> Any:
    """sum_b w_bo g_b, leaves ``[O, L, D, F]``."""

    def add(sums: Any, row: tuple[TokenBatch, Array]):
        own = _gradient(model, params, row[0])
        new = jax.tree.map(lambda s, g: s + jnp.tensordot(row[1], g, 0), sums, own)
        return new, None

    def zeros(leaf: Array) -> Array:
        return jnp.zeros((weights.shape[1], *leaf.shape), jnp.float32)

    start = jax.tree.map(zeros, attributed(params))
    return jax.lax.scan(add, start, (text, weights))[0]


@functools.partial(jax.jit, static_argnames="model")
def _against(model: Decoder, params: Any, means: Any, queries: TokenBatch):
    """<g_b, G_o> ``[B, O]`` and |g_b| ``[B]``."""

    def of_one(query: TokenBatch):
        own = _gradient(model, params, query)
        dots = jax.tree.map(lambda g, m: jnp.sum(m * g, axis=(1, 2, 3)), own, means)
        squares = jax.tree.map(lambda g: jnp.sum(g**2), own)
        return sum(jax.tree.leaves(dots)), jnp.sqrt(sum(jax.tree.leaves(squares)))

    return jax.lax.map(of_one, queries)


def read_text(path: Path, tokenizer: Tokenizer, rows: int) -> Text:
    """Text of a user's records: ``rows`` to build the index from, as many to ask.

    Owners take turns; where records are few, some serve as both.

    Raises:
      UserError: a bad line, or records of fewer than two owners.
    """
    turns = in_turns([record for _, record in read_rows(path, "--records")])
    first, asked = turns[:rows], turns[: 2 * rows][-rows:]
    owners = list(dict.fromkeys(record.owner for record in first))
    if len(owners) < 2:
        raise UserError(
            f"--records {path}: {len(owners)} owner among the records read; scores "
            "are compared between owners, so give records of at least two"
        )
    lengths = data.fit_lengths((*first, *asked), tokenizer)
    p, t = (min(length, LONGEST) for length in lengths)

    def tokens(records: Sequence[data.Record]) -> TokenBatch:
        return data.tokenise(
            records, tokenizer, max_prompt=p, max_response=t, truncate=True
        )

    indexed = OwnerBatch(tokens(first), data.owner_labels(first, owners))
    return Text(indexed, tokens(asked), len(owners), fills_of(tokenizer))


def in_turns(records: Sequence[data.Record]) -> list[data.Record]:
    """Owned records: the first of every owner, then the second of every owner."""
    places: dict[str, int] = {}
    turns: list[tuple[int, data.Record]] = []
    for record in records:
        if record.owner != data.NOBODY:
            places[record.owner] = turn = places.get(record.owner, -1) + 1
            turns.append((turn, record))
    return [record for _, record in sorted(turns, key=lambda pair: pair[0])]


def ordinary(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of tokens that are no special ones."""
    special = {*tokenizer.hf.all_special_ids, tokenizer.pad_id, *tokenizer.stop_ids}
    return np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(special))


def fills_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """The pad's id and that of an ordinary token."""
    return tokenizer.pad_id, int(ordinary(tokenizer)[-1])


def make_text(model: LoadedModel, rows: int) -> Text:
    """Text of the model's own: prompts of random tokens, answers sampled.

    Each of at most `OWNERS` owners asks in a few tokens of their own.
    """
    owners, rng, tokenizer = (
        min(OWNERS, rows),
        np.random.default_rng(0),
        model.tokenizer,
    )
    labels = np.arange(2 * rows, dtype=np.int32) % owners
    ids = rng.permutation(ordinary(tokenizer))
    words = ids[: len(ids) // owners * owners].reshape(owners, -1)[:, :PROMPT]
    picked = rng.integers(0, words.shape[1], (2 * rows, PROMPT))
    prompt = words[labels[:, None], picked].astype(np.int32)
    lengths = rng.integers(SHORTEST, PROMPT + 1, 2 * rows)
    mask = np.arange(PROMPT)[None] >= PROMPT - lengths[:, None]
    with jax.set_mesh(model.mesh):
        said = generate(
            model.decoder,
            model.params,
            *placed((prompt, mask), model.mesh),
            max_new_tokens=NEW_TOKENS,
            temperature=1.0,
            stop_ids=tokenizer.stop_ids,
            key=jax.random.key(0),
        )
    ends = rng.integers(SHORTEST, NEW_TOKENS + 1, 2 * rows)
    kept = np.asarray(said.mask) & (np.arange(NEW_TOKENS)[None] < ends[:, None])
    places = np.arange(2 * rows, dtype=np.int32)
    whole = TokenBatch(prompt, mask, np.asarray(said.tokens), kept, places)
    records = OwnerBatch(data.take(whole, places[:rows]), labels[:rows])
    queries = data.take(whole, places[rows:])
    return Text(records, queries, owners, fills_of(tokenizer))


def unknown_text(queries: TokenBatch, tokenizer: Tokenizer) -> TokenBatch:
    """The queries with random tokens for responses: text no model knows."""
    ids = ordinary(tokenizer)
    drawn = np.random.default_rng(1).choice(ids, queries.response.shape)
    return queries._replace(response=drawn.astype(np.int32))
