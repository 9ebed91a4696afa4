"""What identifies arrays: a hash made on the devices, a sha256 of the bytes."""

import hashlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.parallel import named_leaves, on_host

Array = jax.Array
PLACE, FIRST, SECOND = 2_654_435_761, 2_246_822_519, 3_266_489_917


def leaf_hash(x: Array) -> Array:
    """Return a hash of every entry and its place, summed modulo 2**32, ``[]`` uint32.

    Integer sums have no order, so that any sharding gives the same.
    """
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
    bits = jax.lax.bitcast_convert_type(x, kind[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place * jnp.uint32(size) + along
    mixed = bits ^ (place * jnp.uint32(PLACE) + jnp.uint32(1))
    mixed = (mixed ^ (mixed >> jnp.uint32(16))) * jnp.uint32(FIRST)
    mixed = (mixed ^ (mixed >> jnp.uint32(13))) * jnp.uint32(SECOND)
    return jnp.sum(mixed ^ (mixed >> jnp.uint32(16)), dtype=jnp.uint32)


@jax.jit
def leaf_hashes(tree: Any) -> Any:
    """Return `leaf_hash` of every leaf."""
    return jax.tree.map(leaf_hash, tree)


def params_fingerprint(params: Any) -> str:
    """Return eight hexadecimal digits of parameters: paths, dtypes, shapes, bits."""
    kinds = [f"{p} {x.dtype} {tuple(x.shape)}" for p, x in named_leaves(params)]
    sums = on_host(jax.tree.leaves(leaf_hashes(params)))
    text = "\n".join(f"{a} {int(b)}" for a, b in zip(kinds, sums, strict=True))
    return f"{zlib.crc32(text.encode()):08x}"


def fingerprint(tree: Any) -> str:
    """Returns the sha256 over every leaf's path, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for path, leaf in named_leaves(tree):
        digest.update(f"{path} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        digest.update(np.asarray(on_host(leaf)).tobytes())
    return digest.hexdigest()
