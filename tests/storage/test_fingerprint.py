"""The fingerprint of parameters: any change of any bit, and no sharding, matters."""

import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.parallel import make_mesh, shard
from dareu_jax.storage.fingerprint import params_fingerprint

SHAPES = {
    "embed/embedding": (16, 8),
    "layers/attention/q/kernel": (2, 8, 8),
    "layers/attention_norm/scale": (2, 8),
    "final_norm/scale": (8,),
}


def tree_of(arrays):
    """Nested dictionaries from ``/``-joined paths."""
    tree = {}
    for path, array in arrays.items():
        *parents, last = path.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = jnp.asarray(array)
    return tree


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def before(arrays):
    return params_fingerprint(tree_of(arrays))


def test_it_is_eight_digits_and_the_same_every_time(arrays, before):
    assert len(before) == 8 and int(before, 16) >= 0
    assert params_fingerprint(tree_of(dict(reversed(arrays.items())))) == before


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_any_sharding_gives_the_same(arrays, before, sizes):
    assert params_fingerprint(shard(tree_of(arrays), make_mesh(*sizes))) == before


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("bit", [0, 15, 31])
def test_one_bit_matters(arrays, before, path, bit):
    copy = arrays[path].copy()
    copy.view(np.uint32).flat[-1] ^= np.uint32(1 << bit)
    assert params_fingerprint(tree_of({**arrays, path: copy})) != before


@pytest.mark.parametrize("path", SHAPES)
def test_two_entries_swapped_matter(arrays, before, path):
    copy = arrays[path].copy()
    copy.flat[0], copy.flat[3] = arrays[path].flat[3], arrays[path].flat[0]
    assert params_fingerprint(tree_of({**arrays, path: copy})) != before


def test_two_layers_swapped_matter(arrays, before):
    path = "layers/attention/q/kernel"
    swapped = tree_of({**arrays, path: arrays[path][::-1]})
    assert params_fingerprint(swapped) != before


def test_names_shapes_and_dtypes_matter(arrays, before):
    path = "final_norm/scale"
    rest = {p: x for p, x in arrays.items() if p != path}
    renamed = tree_of({**rest, "last_norm/scale": arrays[path]})
    reshaped = tree_of({**rest, path: arrays[path].reshape(2, 4)})
    as_bits = tree_of({**rest, path: arrays[path].view(np.int32)})
    half = tree_of({**rest, path: jnp.asarray(arrays[path], jnp.bfloat16)})
    found = [params_fingerprint(tree) for tree in (renamed, reshaped, as_bits, half)]
    assert len({before, *found}) == 5


def test_zeros_of_both_signs_differ():
    zero = jnp.zeros((4,), jnp.bfloat16)
    assert params_fingerprint({"a": zero}) != params_fingerprint({"a": -zero})
