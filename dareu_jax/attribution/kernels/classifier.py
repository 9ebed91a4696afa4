"""Kernel `classifier`: DA(i, y) = p(i | y) from a small causal LM (DareU, 4.1).

The owner head reads *every* position, so one forward pass of the response gives
DA(i, y[:t]) for every prefix t.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dareu_jax import models
from dareu_jax.attribution.kernel import (
    Kernel,
    OwnerBatch,
    Setup,
    from_prefixes,
    last_valid,
    read_once,
)
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder
from dareu_jax.registry import KERNELS
from dareu_jax.training.accumulation import accumulated
from dareu_jax.training.optimiser import optimiser_of, updated

Array = jax.Array
LossOf = Callable[[dict, OwnerBatch, Array], tuple[Array, Array]]
"""``(parameters, batch, key) -> (loss, accuracy)``, float32 scalars."""


class ClassifierState(NamedTuple):
    """A classifier in training: parameters, optimiser, step, dropout key."""

    params: dict
    opt_state: optax.OptState
    step: Array  # [] int32
    key: Array


@dataclasses.dataclass(frozen=True)
class LossWith:
    """A loss with its first arguments; equal to that of equal ones."""

    equation: Callable[..., tuple[Array, Array]]
    first: tuple[Any, ...]

    def __call__(
        self, params: dict, batch: OwnerBatch, key: Array
    ) -> tuple[Array, Array]:
        """Return loss and accuracy."""
        return self.equation(*self.first, params, batch, key)


def owner_logits(
    model: Decoder, owners: int, params: dict, queries: TokenBatch, key=None
) -> Array:
    """Return owner logits ``[B, T, O]`` after every response token, prompts unread."""
    hidden = models.hidden_states(
        model, params["decoder"], queries.response, queries.response_mask, key=key
    )
    return models.apply_head(owners, params["owner_head"], hidden)


def owner_loss(
    logits: Array, owner: Array, mask: Array, train_on: str
) -> tuple[Array, Array]:
    """Return -log p(i | y), or its mean over prefixes, and the accuracy of whole y.

    Args:
      logits: ``[B, T, O]``; owner: ``[B]`` int32, negative = no class, which weighs 0.
      mask: ``[B, T]`` bool; train_on: ``whole`` response or ``prefixes``.
    """
    label = jnp.maximum(owner, 0)
    weight = (owner >= 0).astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weight), 1.0)
    whole = last_valid(logits, mask)
    hit = (jnp.argmax(whole, axis=-1) == label).astype(jnp.float32)
    if train_on == "whole":
        loss = optax.softmax_cross_entropy_with_integer_labels(whole, label)
    else:
        labels = jnp.broadcast_to(label[:, None], mask.shape)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        count = jnp.maximum(jnp.sum(mask.astype(jnp.float32), axis=1), 1.0)
        loss = jnp.sum(jnp.where(mask, each, 0.0), axis=1) / count
    return jnp.sum(loss * weight) / total, jnp.sum(hit * weight) / total


def classes_of(setup: Setup) -> int:
    """Return the classes: O, and one more where nobody's text has one."""
    return setup.owners + int(setup.classifier.nobody)


def trained(
    setup: Setup, *, heads: Callable[[Array], dict], loss_of: LossOf, **parts: Any
) -> Kernel:
    """Return a kernel that trains ``setup.backbone`` under heads of its own.

    Args:
      heads: ``key -> parameters`` by name.
      loss_of: of batches whose owner is a class ``[B]``, -1 = none.
      parts: more fields of `Kernel`.
    """
    cfg, owners = setup.classifier, setup.owners

    @read_once
    def start() -> tuple[Any, Any]:
        """Return the decoder's parameters that are trained, and those that are not."""
        whole = setup.start()
        return (None, {}) if whole is None else models.split(whole)

    optimiser = optimiser_of(cfg, setup.steps)

    def init(params, *, key: Array) -> ClassifierState:
        body, drop = jax.random.split(key)
        decoder = start()[0] or models.init_decoder(setup.backbone, key=body)
        own = {"decoder": decoder, **heads(body)}
        return ClassifierState(own, optimiser.init(own), jnp.int32(0), drop)

    def update(params, batch: OwnerBatch, acc: ClassifierState):
        none, size = owners if cfg.nobody else -1, cfg.microbatch_size
        return fit(loss_of, optimiser, start()[1], batch, acc, size, none)

    def finalize(params, acc: ClassifierState) -> dict:
        decoder = models.join(start()[1], acc.params["decoder"])
        return {**acc.params, "decoder": decoder}

    return from_prefixes(
        owners=owners,
        init=init,
        update=update,
        finalize=finalize,
        is_fitted=True,
        goes_on=lambda: start()[0] is not None,
        is_probability=True,
        **parts,
    )


def labelled(batch: OwnerBatch, none: int, *, key: Array) -> OwnerBatch:
    """Return a batch whose owner is a class ``[B]``, ``none`` where it has none."""
    owner = batch.owner
    if owner.ndim == 2:
        owner = one_owner(owner, key)
    return batch._replace(owner=jnp.where(owner < 0, none, owner))


def one_owner(weights: Array, key: Array) -> Array:
    """Return an owner of every record ``[B]``, drawn by ``weights [B, O]``; -1: none.

    A loss on who is drawn is, over the draws, the mean of the owners' losses, each by
    its share of the record.
    """
    drawn = jax.random.categorical(jax.random.fold_in(key, 1), jnp.log(weights))
    return jnp.where(jnp.sum(weights, axis=1) > 0.0, drawn.astype(jnp.int32), -1)


@functools.partial(
    jax.jit,
    static_argnames=("loss_of", "optimiser", "microbatch_size", "none"),
    donate_argnames=("state",),
)
def fit(
    loss_of: LossOf,
    optimiser: optax.GradientTransformation,
    frozen: Any,
    batch: OwnerBatch,
    state: ClassifierState,
    microbatch_size: int | None = None,
    none: int = -1,
) -> tuple[ClassifierState, dict[str, Array]]:
    """Return the state after one update down a loss, and the metrics.

    ``microbatch_size`` rows are read at a time; None: all. ``none`` is the class of
    text that no owner has, -1 where it has none.
    """
    noise = jax.random.fold_in(state.key, state.step)
    batch = labelled(batch, none, key=noise)

    def loss_fn(own, rows, *, key):
        whole = {**own, "decoder": models.join(frozen, own["decoder"])}
        loss, accuracy = loss_of(whole, rows, key)
        return loss, {"loss": loss, "accuracy": accuracy}

    grads, metrics = accumulated(
        loss_fn,
        state.params,
        batch,
        size=microbatch_size,
        weight=lambda rows: jnp.count_nonzero(rows.owner >= 0),
        key=noise,
    )
    own, opt_state = updated(optimiser, state.params, state.opt_state, grads)
    return ClassifierState(own, opt_state, state.step + 1, state.key), metrics


@dataclasses.dataclass(frozen=True)
class OwnerProbabilities:
    """p(i | y[:t]) as `Kernel.prefix_score`; equal ones share a program.

    Attributes:
      classes: of the owner head; owners: those of them that are owners.
    """

    backbone: Decoder
    classes: int
    owners: int

    def __call__(self, params: Any, index: Any, queries: TokenBatch) -> Array:
        """Return probabilities ``[B, T, O]`` float32."""
        logits = owner_logits(self.backbone, self.classes, index, queries)
        return jax.nn.softmax(logits, axis=-1)[..., : self.owners]


@dataclasses.dataclass(frozen=True)
class BranchProbabilities:
    """p(i | y_<t v) as `Kernel.branch_score`, by one pass over text and branches.

    Attributes: as those of `OwnerProbabilities`.
    """

    backbone: Decoder
    classes: int
    owners: int

    def __call__(
        self, params: Any, index: Any, queries: TokenBatch, branches: Array
    ) -> Array:
        """Return probabilities ``[B, T, A, O]`` float32."""
        text, mask = queries.response, queries.response_mask
        hidden = models.branch_states(
            self.backbone, index["decoder"], text, mask, branches
        )
        logits = models.apply_head(self.classes, index["owner_head"], hidden)
        return jax.nn.softmax(logits, axis=-1)[..., : self.owners]


def classifier_loss(
    model: Decoder,
    classes: int,
    train_on: str,
    params: dict,
    batch: OwnerBatch,
    key: Array,
) -> tuple[Array, Array]:
    """Return `owner_loss` of labelled responses; dropout is on."""
    logits = owner_logits(model, classes, params, batch.text, key=key)
    return owner_loss(logits, batch.owner, batch.text.response_mask, train_on)


@KERNELS.register("classifier", "p(owner | response) of a small causal LM, any prefix")
def make_classifier(setup: Setup) -> Kernel:
    """Return the classifier kernel: ``setup.classifier`` over ``setup.backbone``.

    With ``nobody`` one more class holds the text that no owner has.
    """
    backbone, classes = setup.backbone, classes_of(setup)

    def heads(key: Array) -> dict:
        return {"owner_head": models.init_head(classes, backbone.cfg.embed, key=key)}

    how = backbone, classes, setup.classifier.train_on
    branching = BranchProbabilities(backbone, classes, setup.owners)
    return trained(
        setup,
        name="classifier",
        heads=heads,
        loss_of=LossWith(classifier_loss, how),
        prefix_score=OwnerProbabilities(backbone, classes, setup.owners),
        branch_score=branching if models.can_branch(backbone) else None,
    )


@functools.partial(jax.jit, static_argnames="kernel")
def attribution_accuracy(kernel: Kernel, params, index, queries: TokenBatch) -> Array:
    """Return whether the best owner is right, for every prefix, ``[B, T]`` float32.

    Entry t looks at the first t + 1 tokens, or the whole response where it is
    shorter; ``queries.index`` holds the owner's column.
    """
    assert kernel.prefix_score is not None
    best = jnp.argmax(kernel.prefix_score(params, index, queries), axis=-1)
    last = jnp.sum(queries.response_mask.astype(jnp.int32), axis=1, keepdims=True) - 1
    t = jnp.arange(best.shape[1], dtype=jnp.int32)[None]
    best = jnp.take_along_axis(best, jnp.minimum(t, last), axis=1)
    return (best == queries.index[:, None]).astype(jnp.float32)
