"""Kernel `classifier`: DA(i, y) = p(i | y) from a small causal LM (DareU, 4.1).

The owner head reads *every* position, so one forward pass of the response gives
DA(i, y[:t]) for every prefix t.
"""

import functools
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
)
from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.models import (
    Decoder,
    apply_head,
    hidden_states,
    init_decoder,
    init_head,
    join,
    split,
)
from dareu_jax.models.optimiser import make_optimiser
from dareu_jax.registry import KERNELS

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
    """Owner logits ``[B, T, O]`` after every response token; prompts are not read."""
    hidden = hidden_states(
        model, params["decoder"], queries.response, queries.response_mask, key=key
    )
    return apply_head(owners, params["owner_head"], hidden)


def owner_loss(
    logits: Array, owner: Array, mask: Array, train_on: str
) -> tuple[Array, Array]:
    """-log p(i | y), or its mean over prefixes; records without a class weigh 0.

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


@KERNELS.register("classifier", "p(owner | response) of a small causal LM, any prefix")
def make_classifier(setup: Setup) -> Kernel:
    """Returns the classifier kernel: ``setup.classifier`` over ``setup.backbone``.

    With ``nobody`` one more class holds the text that no owner has.
    """
    cfg, backbone, owners = setup.classifier, setup.backbone, setup.owners
    start, classes = setup.start(), setup.owners + int(cfg.nobody)
    given, frozen = (None, {}) if start is None else split(start)
    optimiser = make_optimiser(
        cfg.learning_rate,
        setup.steps,
        warmup=cfg.warmup,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
    )

    def init(params, *, key: Array) -> ClassifierState:
        body, drop = jax.random.split(key)
        own = {
            "decoder": given or init_decoder(backbone, key=body),
            "owner_head": init_head(classes, backbone.cfg.embed, key=body),
        }
        return ClassifierState(own, optimiser.init(own), jnp.int32(0), drop)

    def update(params, batch: OwnerBatch, acc: ClassifierState):
        label = jnp.where(batch.owner < 0, owners if cfg.nobody else -1, batch.owner)
        batch = batch._replace(owner=label)
        rest = (classes, optimiser, cfg.train_on)
        return fit_classifier(backbone, *rest, frozen, batch, acc)

    def finalize(params, acc: ClassifierState) -> dict:
        return {**acc.params, "decoder": join(frozen, acc.params["decoder"])}

    def prefix_score(params, index, queries) -> Array:
        logits = owner_logits(backbone, classes, index, queries)
        return jax.nn.softmax(logits, axis=-1)[..., :owners]

    return from_prefixes(
        name="classifier",
        owners=owners,
        init=init,
        update=update,
        finalize=finalize,
        prefix_score=prefix_score,
        is_fitted=True,
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
    """One step of the classifier, beside what is frozen, on labelled responses."""
    key = jax.random.fold_in(state.key, state.step)

    def loss_fn(own):
        whole = {**own, "decoder": join(frozen, own["decoder"])}
        logits = owner_logits(model, classes, whole, batch.text, key)
        return owner_loss(logits, batch.owner, batch.text.response_mask, train_on)

    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    own = optax.apply_updates(state.params, updates)
    state = ClassifierState(own, opt_state, state.step + 1, state.key)
    return state, {"loss": loss, "accuracy": accuracy}


@functools.partial(jax.jit, static_argnames="kernel")
def attribution_accuracy(kernel: Kernel, params, index, queries: TokenBatch) -> Array:
    """Whether the best-scoring owner is right, for every prefix, ``[B, T]`` float32.

    Entry t looks at the first t + 1 tokens, or the whole response where it is
    shorter; ``queries.index`` holds the owner's column.
    """
    assert kernel.prefix_score is not None
    best = jnp.argmax(kernel.prefix_score(params, index, queries), axis=-1)
    last = jnp.sum(queries.response_mask.astype(jnp.int32), axis=1, keepdims=True) - 1
    t = jnp.arange(best.shape[1], dtype=jnp.int32)[None]
    best = jnp.take_along_axis(best, jnp.minimum(t, last), axis=1)
    return (best == queries.index[:, None]).astype(jnp.float32)
