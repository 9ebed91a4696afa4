"""The probe: per-example gradients, contracted inside the backward pass.

For a product y = x W the gradient of example b is g_b = sum_t x_bt^T e_bt, e the
cotangent of y. A dense op with its own backward rule forms g_b one layer at a time,
contracts it with what its slot holds (an owner matrix, a projection, weights) and hands
the result out as the cotangent of the slot. It needs no hooks, and it composes with
``scan``, ``remat``, ``jit`` and shardings. The gradient of every example at once, which
``vmap(grad)`` makes, never exists.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.attribution.measures import log_likelihood, log_likelihoods
from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.models import Decoder, join, split
from dareu_jax.models.layers import DenseOp, dense
from dareu_jax.models.lora import A, B, leaves_where

Array = jax.Array
MATRICES = ("kernel", A, B)
Contract = Callable[[Array, Array, Any], Any]
Measure = Callable[..., Array]


class Slot(NamedTuple):
    """What one attributed product reads, and zeros whose cotangent it writes."""

    held: Any
    out: Any


def example_gradients(x: Array, e: Array) -> Array:
    """g_b = sum_t x_bt^T e_bt ``[B, D, F]`` of ``x [B, T, D]``, ``e [B, T, F]``."""
    return jnp.einsum("btd,btf->bdf", x, e, preferred_element_type=jnp.float32)


@functools.cache
def probe_op(contract: Contract) -> DenseOp:
    """A dense op whose slot gets ``contract(x, e, held)`` as its cotangent.

    Args:
      contract: from ``x [B, T, D]``, float32 ``e [B, T, F]`` and what the slot holds to
        a tree like the slot's ``out``.
    """

    @jax.custom_vjp
    def probed(x: Array, kernel: Array, slot: Slot) -> Array:
        return dense(x, kernel)

    def forward(x: Array, kernel: Array, slot: Slot):
        return dense(x, kernel), (x, kernel, slot.held)

    def backward(saved, e: Array):
        x, kernel, held = saved
        into = jnp.einsum("...f,df->...d", e.astype(x.dtype), kernel)
        written = Slot(jax.tree.map(jnp.zeros_like, held), contract(x, e, held))
        return into.astype(x.dtype), jnp.zeros_like(kernel), written

    probed.defvjp(forward, backward)

    def op(x: Array, kernel: Array, slot: Slot | None = None) -> Array:
        return dense(x, kernel) if slot is None else probed(x, kernel, slot)

    return op


def attributed(params: Any) -> Any:
    """The attributed matrices of a decoder: adapters, or every kernel of its blocks.

    Embeddings, norms and biases are left out.
    """
    trainable, _ = split(params["layers"])
    return {"layers": leaves_where(trainable, lambda name: name in MATRICES)}


def probe(
    model: Decoder,
    contract: Contract,
    params: Any,
    batch: TokenBatch,
    weight: Array,
    slots: Any,
    measure: Measure = log_likelihoods,
) -> tuple[Array, Any]:
    """Runs one backward pass; returns the measurement and what every slot was given.

    Args:
      model, params: the attributed decoder; batch: B responses with their prompts.
      contract: see `probe_op`; weight: ``[B]`` float32, 0 for padding.
      slots: a tree of `Slot` in the place of the matrices in `attributed`.
      measure: one of `measures`.

    Returns:
      The sum of the measurements, and the tree of `slots` with the contraction in
      place of each.
    """
    probing = dataclasses.replace(model, op=probe_op(contract))

    def is_slot(x: Any) -> bool:
        return isinstance(x, Slot)

    def measured(outs):
        filled = jax.tree.map(
            lambda slot, out: Slot(slot.held, out), slots, outs, is_leaf=is_slot
        )
        return jnp.sum(measure(probing, params, batch, weight, filled))

    outs = jax.tree.map(lambda slot: slot.out, slots, is_leaf=is_slot)
    return jax.value_and_grad(measured)(outs)


def gradients(model: Decoder, params: Any, batch: TokenBatch, weight: Array) -> Any:
    """The per-example gradients themselves, by ``vmap(grad)``: the oracle of the probe.

    Returns:
      The tree of `attributed` with leaves ``[B, L, D, F]`` float32.
    """

    def of_one(example: TokenBatch, weight: Array):
        one = jax.tree.map(lambda x: x[None], example)

        def measured(matrices):
            whole = join(params, matrices)
            return log_likelihood(model, whole, one, weight[None])

        return jax.grad(measured)(attributed(params))

    grads = jax.vmap(of_one)(batch, weight)
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads)


def along(
    model: Decoder, params: Any, batch: TokenBatch, weight: Array, direction: Any
) -> Array:
    """d/dt of w_b log p(response_b) at params + t direction, ``[B]``: one ``jvp``.

    With direction = sum_o r_o G_o these are sum_o r_o <g_b, G_o>: a reward that is
    linear in the owners' scores needs one forward-mode pass whatever O is.

    Args:
      direction: the tree of `attributed`, in the parameters' dtypes.
    """

    def measured(matrices: Any) -> Array:
        return log_likelihoods(model, join(params, matrices), batch, weight)

    return jax.jvp(measured, (attributed(params),), (direction,))[1]
