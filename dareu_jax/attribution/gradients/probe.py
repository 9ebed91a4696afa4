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
import optax

from dareu_jax.attribution.gradients.measures import log_likelihood, log_likelihoods
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder, join, split, with_all_derivatives
from dareu_jax.models.layers import HELD, SLOTS, DenseOp, dense
from dareu_jax.models.lora import A, B, leaves_where

Array = jax.Array
MATRICES = ("kernel", A, B)
Contract = Callable[[Array, Array, Any], Any]
Measure = Callable[..., Array]


class Slot(NamedTuple):
    """What one attributed product reads, and zeros whose cotangent it writes."""

    held: Any
    out: Any


class Whole(NamedTuple):
    """An array ``[L, O, D, F]`` too large to be cut out layer by layer.

    A contraction reads `rows` of it where it needs them; ``layer`` is filled in.
    """

    array: Array
    layer: Any = None

    def rows(self, start: Array | int, count: int) -> Array:
        """Return ``[O, count, F]`` float32 of the layer, from row ``start`` of D on."""
        _, owners, _, f = self.array.shape
        place = (self.layer, 0, start, 0)
        own = jax.lax.dynamic_slice(self.array, place, (1, owners, count, f))[0]
        return own.astype(jnp.float32)


def own_layer(held: Any, layer: Array) -> Any:
    """Return what is held of one layer; a `Whole` stays whole."""

    def cut(x: Any) -> Any:
        return x._replace(layer=layer) if isinstance(x, Whole) else x[layer]

    return jax.tree.map(cut, held, is_leaf=lambda x: isinstance(x, Whole))


def example_gradients(x: Array, e: Array) -> Array:
    """Return sum_t x_bt^T e_bt ``[B, D, F]`` of ``x [B, T, D]``, ``e [B, T, F]``."""
    return jnp.einsum("btd,btf->bdf", x, e, preferred_element_type=jnp.float32)


def rows_at_once(b: int, d: int, f: int) -> int:
    """Return how many of D rows of B gradients exist at a time; it divides D."""
    numbers = 2**18 if jax.default_backend() == "cpu" else 2**24
    fit = max(1, numbers // (b * f))
    return max(rows for rows in range(1, d + 1) if d % rows == 0 and rows <= fit)


def over_rows(
    x: Array, e: Array, add: Callable[[Any, Array, Any], Any], total: Any
) -> Any:
    """Fold per-example gradients, a few rows of D at a time, into ``total``.

    By ``add(total, gradients [B, rows, F], first row)``, of ``x [B, T, D]`` and float32
    ``e [B, T, F]``.
    """
    d = x.shape[-1]
    count = rows_at_once(len(x), d, e.shape[-1])

    def some(n: Array, total: Any) -> Any:
        rows = jax.lax.dynamic_slice_in_dim(x, n * count, count, axis=2)
        return add(total, example_gradients(rows, e), n * count)

    if count == d:
        return add(total, example_gradients(x, e), 0)
    return jax.lax.fori_loop(0, d // count, some, total)


@functools.cache
def probe_op(contract: Contract) -> DenseOp:
    """Return a dense op whose slot gets ``contract(x, e, held)`` as its cotangent.

    It is a tree like the slot's ``out``, of ``x [B, T, D]`` and float32
    ``e [B, T, F]``.
    """

    @jax.custom_vjp
    def probed(x: Array, kernel: Array, held: Any, layer: Array, out: Any) -> Array:
        return dense(x, kernel)

    def forward(x: Array, kernel: Array, held: Any, layer: Array, out: Any):
        return dense(x, kernel), (x, kernel, held, layer)

    def backward(saved, e: Array):
        x, kernel, held, layer = saved
        into = jnp.einsum("...f,df->...d", e.astype(x.dtype), kernel)
        written = contract(x, e, own_layer(held, layer))
        return into.astype(x.dtype), None, None, None, written

    probed.defvjp(forward, backward)

    def op(x: Array, kernel: Array, slot: Any = None) -> Array:
        if slot is None:
            return dense(x, kernel)
        held, (layer, out) = slot
        return probed(x, kernel, held, layer, out)

    return op


@jax.custom_jvp
def folded_dense(x: Array, kernel: Array, owners: Array, weights, layer, step) -> Array:
    """Return y = x (W + step sum_o r_o G_o) at step 0, differentiable by step.

    Args:
      x: ``[B, T, D]``; kernel: ``[D, F]``; owners: G ``[L, O, D, F]``.
      weights: r ``[O]``; layer: which of L; step: a float32 scalar, 0.
    """
    del owners, weights, layer, step
    return dense(x, kernel)


@folded_dense.defjvp
def _folded_tangent(primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, kernel, owners, weights, layer, _ = primals
    dx, step = tangents[0], tangents[-1]

    def add(o: Array, total: Array) -> Array:  # one at a time: no copy of the layer
        return total + weights[o] * owners[layer, o].astype(jnp.float32)

    zeros = jnp.zeros(kernel.shape, jnp.float32)
    direction = jax.lax.fori_loop(0, len(weights), add, zeros, unroll=4)
    moved = step * dense(x, direction.astype(x.dtype))
    return dense(x, kernel), dense(dx, kernel) + moved


def folded_op(x: Array, kernel: Array, slot: Any = None) -> Array:
    """Compute `folded`'s dense op, whose slot holds the owners' sums and weights."""
    if slot is None:
        return dense(x, kernel)
    (owners, weights), (layer, step) = slot
    return folded_dense(x, kernel, owners, weights, layer, step)


def attributed(params: Any) -> Any:
    """Return the attributed matrices of a decoder: adapters, or its blocks' kernels.

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
    """Run one backward pass over B responses with their prompts.

    Args:
      contract: see `probe_op`; weight: ``[B]`` float32, 0 for padding.
      slots: a tree of `Slot` in the place of the matrices in `attributed`.

    Returns:
      The sum of the measurements, and the contractions in the places of the slots.
    """
    probing, numbers = dataclasses.replace(model, op=probe_op(contract)), layers(params)
    held = jax.tree.map(lambda _, slot: slot.held, numbers, slots)
    outs = jax.tree.map(lambda _, slot: slot.out, numbers, slots)

    def measured(outs):
        own = jax.tree.map(lambda number, out: (number, out), numbers, outs)
        given = {HELD: held, SLOTS: own}
        return jnp.sum(measure(probing, params, batch, weight, slots=given))

    return jax.value_and_grad(measured)(outs)


def layers(params: Any) -> Any:
    """Return the numbers of the layers, ``[L]`` int32, in the place of every matrix."""

    def numbers(leaf: Array) -> Array:
        return jnp.arange(len(leaf), dtype=jnp.int32)

    return jax.tree.map(numbers, attributed(params))


def gradients(model: Decoder, params: Any, batch: TokenBatch, weight: Array) -> Any:
    """Return per-example gradients by ``vmap(grad)``: the oracle of the probe.

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
    return optax.tree.cast(grads, jnp.float32)


def folded(
    model: Decoder,
    params: Any,
    batch: TokenBatch,
    weight: Array,
    owners: Any,
    weights: Array,
) -> Array:
    """Return sum_o r_o <g_b, G_o> ``[B]`` by one ``jvp`` whatever O is.

    These are d/dt of w_b log p(response_b) at params + t sum_o r_o G_o; that direction
    is summed up one layer at a time.

    Args:
      weight: w ``[B]`` float32; weights: r ``[O]`` float32.
      owners: G in the place of every matrix of `attributed`, ``[L, O, D, F]``.
    """
    forward = dataclasses.replace(with_all_derivatives(model), op=folded_op)
    numbers = layers(params)
    held = jax.tree.map(lambda g: (g, weights), owners)

    def measured(step: Array) -> Array:
        own = jax.tree.map(lambda n: (n, jnp.broadcast_to(step, n.shape)), numbers)
        given = {HELD: held, SLOTS: own}
        return log_likelihoods(forward, params, batch, weight, slots=given)

    return jax.jvp(measured, (jnp.float32(0.0),), (jnp.float32(1.0),))[1]
