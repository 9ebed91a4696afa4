"""Eight owners with a language each, for what every kernel must show.

One shape of batch and of queries, so that a kernel is compiled once for many tests.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.attribution import Kernel, OwnerBatch, Setup
from dareu_jax.config import ClassifierConfig, attribution_config
from dareu_jax.data import TokenBatch, take
from dareu_jax.models import Decoder, DecoderConfig
from dareu_jax.registry import KERNELS
from dareu_jax.training.finetune import finetune_step, init_training
from dareu_jax.training.optimiser import make_optimiser

OWNERS, V, P, T, ROWS = 8, 32, 4, 12, 16
MODEL = Decoder(
    DecoderConfig(vocab=V, layers=2, embed=16, heads=2, kv_heads=2, head_dim=8, ffn=32)
)
SMALL = attribution_config(
    projected={"size": 8}, trak={"size": 3}, arnoldi={"iterations": 4, "rank": 3}
)
FITTING = 6
"""Epochs of a kernel that is fitted."""


def languages() -> np.ndarray:
    """Two tokens that may follow each token, by owner, ``[O, V, 2]``, of ten each."""
    rng = np.random.default_rng(5)
    own = np.stack([rng.permutation(V)[:10] for _ in range(OWNERS)])
    return own[np.arange(OWNERS)[:, None, None], rng.integers(0, 10, (OWNERS, V, 2))]


def written(owner: np.ndarray, seed: int) -> TokenBatch:
    """A ragged text in the language of every owner, left-padded prompt and all."""
    rng, after = np.random.default_rng(seed), languages()
    text = rng.integers(0, V, (len(owner), P + T)).astype(np.int32)
    for t in range(1, P + T):
        text[:, t] = after[owner, text[:, t - 1], rng.integers(0, 2, len(owner))]
    before = rng.integers(1, P + 1, len(owner))
    lengths = rng.integers(T // 2, T + 1, len(owner))
    return TokenBatch(
        text[:, :P],
        np.arange(P)[None] >= P - before[:, None],
        text[:, P:],
        np.arange(T)[None] < lengths[:, None],
        np.arange(len(owner), dtype=np.int32),
    )


def records() -> list[OwnerBatch]:
    """Two batches: three records an owner, four of nobody, four rows of padding."""
    place = np.arange(2 * ROWS) % ROWS
    owned, blank = place < ROWS - 4, place >= ROWS - 2
    owner = ((np.cumsum(owned) - 1) % OWNERS).astype(np.int32)
    text = written(owner, seed=1)
    text.prompt_mask[blank], text.response_mask[blank] = False, False
    owner[~owned] = -1
    halves = (np.arange(ROWS), np.arange(ROWS, 2 * ROWS))
    return [OwnerBatch(take(text, rows), owner[rows]) for rows in halves]


class World(NamedTuple):
    """A trained model, its text and queries in every owner's language.

    ``params`` are the model's after it has read the owners; ``start`` before.
    """

    model: Decoder
    start: Any
    params: Any
    batches: list[OwnerBatch]
    queries: TokenBatch
    truth: np.ndarray

    def kernel(self, name: str, place=lambda x: x, **changes: Any) -> Kernel:
        """A registered kernel over the model.

        Args:
          name: as registered; place: moves snapshots to devices.
          changes: other fields of its `Setup`.
        """
        setup = Setup(
            model=self.model,
            owners=OWNERS,
            cfg=SMALL,
            classifier=ClassifierConfig(learning_rate=5e-3),
            steps=FITTING * len(self.batches),
            backbone=self.model,
            snapshots=lambda: [(place(self.start), 0.5), (place(self.params), 1.0)],
        )
        return KERNELS.get(name)(dataclasses.replace(setup, **changes))

    def text(self, owner: np.ndarray, seed: int) -> TokenBatch:
        """Another text in the language of every owner."""
        return written(owner, seed)

    def passes(self, kernel: Kernel) -> list[OwnerBatch]:
        """The batches of one pass; owners are weights where a kernel takes those."""
        if kernel.is_fitted:
            return self.batches * FITTING
        one_hot = np.eye(OWNERS + 1, dtype=np.float32)[:, :OWNERS]  # -1: the last row
        return [b._replace(owner=one_hot[b.owner]) for b in self.batches]


@functools.cache
def trained() -> World:
    """The world; its model reads new text at every step and learns none by heart."""
    steps = 150
    optimiser, key = make_optimiser(1e-2, steps), jax.random.key(1)
    state = init_training(MODEL, optimiser, key=key)
    start = jax.tree.map(jnp.copy, state.params)
    batches, truth = records(), np.arange(ROWS, dtype=np.int32) % OWNERS
    for n in range(steps):
        text = written(truth, seed=100 + n)
        state, _ = finetune_step(MODEL, optimiser, state, {}, text, key=key)
    return World(MODEL, start, state.params, batches, written(truth, 2), truth)


@pytest.fixture(scope="module")
def world() -> World:
    """The world, for tests in which programs are compiled quickly and run slowly."""
    return trained()
