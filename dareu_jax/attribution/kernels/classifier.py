"""Kernel `classifier`: DA(i, y) = p(i | y) from a small causal LM (DareU, 4.1).

The owner head reads *every* position, so one forward pass of the response gives
DA(i, y[:t]) for every prefix t.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dareu_jax.attribution.kernel import (
    Kernel,
    OwnerBatch,
    Setup,
    from_prefixes,
    last_valid,
    read_once,
)
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import (
    Decoder,
    apply_head,
    hidden_states,
    init_decoder,
    init_head,
    join,
    split,
)
from dareu_jax.registry import KERNELS
from dareu_jax.training.optimiser import make_optimiser

Array = jax.Array


class ClassifierState(NamedTuple):
    """A classifier in training: parameters, optimiser, step, dropout key."""

    params: dict
    opt_state: optax.OptState
    step: Array  # [] int32
    key: Array


def owner_logits(
    model: Decoder, owners: int, params: dict, queries: TokenBatch, key=None
) -> Array:
    """Return owner logits ``[B, T, O]`` after every response token, prompts unread."""
    hidden = hidden_states(
        model, params["decoder"], queries.response, queries.response_mask, key=key
    )
    return apply_head(owners, params["owner_head"], hidden)


def owner_loss(
    logits: Array, owner: Array, mask: Array, train_on: str
) -> tuple[Array, Array]:
    """Return -log p(i | y), or its mean over prefixes; records without a class weigh 0.

    Args:
      logits: ``[B, T, O]``; owner: ``[B]`` int32, negative = no class.
      mask: ``[B, T]`` bool.
      train_on: ``whole`` response or ``prefixes``.

    Returns:
      ``(loss, accuracy)`` of the whole responses, float32 scalars.
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


class Training(NamedTuple):
    """How ``setup.backbone`` is trained under heads of its own.

    Attributes:
      classes: O, and one more where nobody's text has a class.
      optimiser: of what is trained; frozen: returns the rest of the decoder.
      init, finalize, goes_on: see `Kernel`.
      labelled: ``(batch, state) -> batch`` whose owner is a class ``[B]``, -1 = none.
    """

    classes: int
    optimiser: optax.GradientTransformation
    frozen: Callable[[], Any]
    init: Callable[..., ClassifierState]
    finalize: Callable[[Any, ClassifierState], dict]
    labelled: Callable[[OwnerBatch, ClassifierState], OwnerBatch]
    goes_on: Callable[[], bool]


def training_of(setup: Setup, heads: Callable[[int, Array], dict]) -> Training:
    """Return the training of ``setup.classifier`` with heads by name.

    Args:
      setup: what the kernel is made from; heads: ``(classes, key) -> parameters``.
    """
    cfg, owners = setup.classifier, setup.owners
    classes = owners + int(cfg.nobody)

    @read_once
    def start() -> tuple[Any, Any]:
        """Return the decoder's parameters that are trained, and those that are not."""
        whole = setup.start()
        return (None, {}) if whole is None else split(whole)

    optimiser = make_optimiser(
        cfg.learning_rate,
        setup.steps,
        warmup=cfg.warmup,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
    )

    def init(params, *, key: Array) -> ClassifierState:
        body, drop = jax.random.split(key)
        decoder = start()[0] or init_decoder(setup.backbone, key=body)
        own = {"decoder": decoder, **heads(classes, body)}
        return ClassifierState(own, optimiser.init(own), jnp.int32(0), drop)

    def finalize(params, acc: ClassifierState) -> dict:
        return {**acc.params, "decoder": join(start()[1], acc.params["decoder"])}

    def labelled(batch: OwnerBatch, acc: ClassifierState) -> OwnerBatch:
        owner, none = batch.owner, owners if cfg.nobody else -1
        if owner.ndim == 2:
            owner = one_owner(owner, jax.random.fold_in(acc.key, acc.step))
        return batch._replace(owner=jnp.where(owner < 0, none, owner))

    return Training(
        classes=classes,
        optimiser=optimiser,
        frozen=lambda: start()[1],
        init=init,
        finalize=finalize,
        labelled=labelled,
        goes_on=lambda: start()[0] is not None,
    )


def one_owner(weights: Array, key: Array) -> Array:
    """Return an owner of every record, ``[B]`` int32, drawn by weight; -1: it has none.

    A loss on who is drawn is, over the draws, the mean of the owners' losses, each by
    its share of the record.

    Args:
      weights: ``[B, O]`` float32.
    """
    drawn = jax.random.categorical(jax.random.fold_in(key, 1), jnp.log(weights))
    return jnp.where(jnp.sum(weights, axis=1) > 0.0, drawn.astype(jnp.int32), -1)


def descend(
    loss_of: Callable[[dict, Array], tuple[Array, Array]],
    optimiser: optax.GradientTransformation,
    frozen: Any,
    state: ClassifierState,
) -> tuple[ClassifierState, dict[str, Array]]:
    """Return the state after one update down a loss, and the metrics.

    Args:
      loss_of: ``(parameters, key) -> (loss, accuracy)``.
    """
    key = jax.random.fold_in(state.key, state.step)

    def loss_fn(own):
        return loss_of({**own, "decoder": join(frozen, own["decoder"])}, key)

    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    own = optax.apply_updates(state.params, updates)
    state = ClassifierState(own, opt_state, state.step + 1, state.key)
    return state, {"loss": loss, "accuracy": accuracy}


@KERNELS.register("classifier", "p(owner | response) of a small causal LM, any prefix")
def make_classifier(setup: Setup) -> Kernel:
    """Return the classifier kernel: ``setup.classifier`` over ``setup.backbone``.

    With ``nobody`` one more class holds the text that no owner has.
    """
    backbone, owners = setup.backbone, setup.owners

    def heads(classes: int, key: Array) -> dict:
        return {"owner_head": init_head(classes, backbone.cfg.embed, key=key)}

    how = training_of(setup, heads)

    def update(params, batch: OwnerBatch, acc: ClassifierState):
        return fit_classifier(
            backbone,
            how.classes,
            how.optimiser,
            setup.classifier.train_on,
            frozen=how.frozen(),
            batch=how.labelled(batch, acc),
            state=acc,
        )

    def prefix_score(params, index, queries) -> Array:
        logits = owner_logits(backbone, how.classes, index, queries)
        return jax.nn.softmax(logits, axis=-1)[..., :owners]

    return from_prefixes(
        name="classifier",
        owners=owners,
        init=how.init,
        update=update,
        finalize=how.finalize,
        prefix_score=prefix_score,
        is_fitted=True,
        goes_on=how.goes_on,
        is_probability=True,
    )


@functools.partial(
    jax.jit,
    static_argnames=("model", "classes", "optimiser", "train_on"),
    donate_argnames=("state",),
)
def fit_classifier(
    model: Decoder,
    classes: int,
    optimiser: optax.GradientTransformation,
    train_on: str,
    frozen: Any,
    batch: OwnerBatch,
    state: ClassifierState,
) -> tuple[ClassifierState, dict[str, Array]]:
    """Return the state after one step on labelled responses, and its metrics."""

    def loss_of(params: dict, key: Array) -> tuple[Array, Array]:
        logits = owner_logits(model, classes, params, batch.text, key=key)
        return owner_loss(logits, batch.owner, batch.text.response_mask, train_on)

    return descend(loss_of, optimiser, frozen, state)


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
