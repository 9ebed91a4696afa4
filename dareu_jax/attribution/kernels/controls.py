"""Kernels `constant` and `random`: controls, which every other kernel must beat."""

import jax
import jax.numpy as jnp

from dareu_jax.attribution.kernel import OWNERS, Kernel, OwnerBatch, Setup
from dareu_jax.data.batches import TokenBatch
from dareu_jax.registry import KERNELS

Array = jax.Array


def control(name: str, owners: int, score) -> Kernel:
    """Return a kernel that learns nothing from its records."""

    def update(params, batch: OwnerBatch, acc: dict[str, Array]):
        return acc, {"loss": jnp.float32(0.0)}

    return Kernel(
        name=name,
        owners=owners,
        init=lambda params, *, key: {"counts": jnp.zeros(owners, jnp.float32)},
        update=update,
        score=score,
        axes=lambda index: {"counts": (OWNERS,)},
        is_control=True,
    )


@KERNELS.register("constant", "control: the same score for every owner")
def make_constant(setup: Setup) -> Kernel:
    """Return the kernel whose every score is 1."""

    def score(params, index, queries: TokenBatch) -> Array:
        return jnp.ones((len(queries.response), setup.owners), jnp.float32)

    return control("constant", setup.owners, score)


@KERNELS.register("random", "control: a number drawn for every response and owner")
def make_random(setup: Setup) -> Kernel:
    """Return the kernel of normal scores, drawn by the response's tokens alone."""
    seed = setup.cfg.projection_seed

    def of_one(tokens: Array, mask: Array) -> Array:
        def fold(key, at):
            token, real = at
            return jnp.where(real, jax.random.fold_in(key, token), key), None

        key, _ = jax.lax.scan(fold, jax.random.key(seed), (tokens, mask))
        return jax.random.normal(key, (setup.owners,), jnp.float32)

    def score(params, index, queries: TokenBatch) -> Array:
        return jax.vmap(of_one)(queries.response, queries.response_mask)

    return control("random", setup.owners, score)
