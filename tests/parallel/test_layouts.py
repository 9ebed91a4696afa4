"""The layout of a rollout: the same devices, parameters and answers, no gathering."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_steps import collectives

from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    abstract_params,
    generate,
    init_decoder,
)
from dareu_jax.parallel import Layouts, make_mesh, rollout_mesh, shard, shardings_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]

CFG = DecoderConfig(
    vocab=512, layers=4, embed=128, heads=8, kv_heads=8, head_dim=16, ffn=256
)
MODEL = Decoder(CFG)
MESHES = [(1, 8, 1), (2, 4, 1), (1, 2, 4), (2, 2, 2)]


@pytest.mark.parametrize(
    ("sizes", "heads", "tensor", "wanted"),
    [
        ((8, 1, 1), 8, None, (8, 1, 1)),
        ((1, 8, 1), 8, None, (1, 1, 8)),
        ((2, 2, 2), 8, None, (2, 1, 4)),
        ((1, 8, 1), 2, None, (4, 1, 2)),
        ((1, 8, 1), 8, 2, (4, 1, 2)),
        ((1, 8, 1), 3, None, (8, 1, 1)),
        ((1, 1, 8), 8, 4, (2, 1, 4)),
    ],
)
def test_a_rollout_splits_layers_over_all_that_split_parameters(
    sizes, heads, tensor, wanted
):
    mesh = make_mesh(*sizes)
    found = rollout_mesh(mesh, heads, tensor)
    assert tuple(found.shape.values()) == wanted
    np.testing.assert_array_equal(found.devices.ravel(), mesh.devices.ravel())


def test_the_devices_must_divide():
    with pytest.raises(UserError, match="rollout_tensor = 3 must divide the 8 devices"):
        rollout_mesh(make_mesh(1, 8, 1), 8, 3)


def test_rows_must_divide_by_the_devices_they_are_split_over():
    both = Layouts.of(make_mesh(1, 1, 8), 8, 2)
    with pytest.raises(UserError, match="batch 6 must divide by 4, the parts"):
        both.rows(jnp.zeros((6, 3)))


@pytest.fixture(scope="module")
def params():
    return init_decoder(MODEL, key=jax.random.key(0))


@pytest.mark.parametrize("sizes", MESHES)
def test_parameters_are_moved_unchanged_and_split_over_as_many_devices(params, sizes):
    both = Layouts.of(make_mesh(*sizes), CFG.kv_heads)
    there = both.params(shard(params, both.update))
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(there)):
        np.testing.assert_array_equal(before, after)
    kernel = there["layers"]["attention"]["q"]["kernel"]
    parts = both.rollout.shape["tensor"]
    assert kernel.addressable_shards[0].data.size == kernel.size // parts


@pytest.mark.parametrize("sizes", MESHES)
def test_moving_never_makes_a_matrix_whole(sizes):
    both, shapes = Layouts.of(make_mesh(*sizes), CFG.kv_heads), abstract_params(CFG)
    given = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
        shapes,
        shardings_for(shapes, both.update),
    )
    to = shardings_for(shapes, both.rollout)
    program = jax.jit(lambda tree: tree, out_shardings=to).lower(given).compile()
    gathered = [size for name, size in collectives(program) if name == "all-gather"]
    assert max(gathered, default=0) <= CFG.layers * CFG.embed  # norms alone


def decode(both, params, prompt, mask):
    with both.sampling():
        return generate(
            MODEL,
            both.params(params),
            *both.rows((prompt, mask)),
            max_new_tokens=12,
            temperature=1.0,
            stop_ids=(0,),
            key=jax.random.key(5),
        )


@pytest.mark.parametrize(
    ("sizes", "tensor"), [*((m, None) for m in MESHES), (MESHES[0], 2)]
)
def test_answers_are_those_of_one_device(params, sizes, tensor):
    prompt = np.random.default_rng(0).integers(1, CFG.vocab, (8, 6), dtype=np.int32)
    mask = np.arange(6)[None] >= np.arange(8)[:, None] % 4
    one = decode(Layouts(), params, prompt, mask)
    mesh = make_mesh(*sizes)
    both = Layouts.of(mesh, CFG.kv_heads, tensor)
    said = both.back(decode(both, shard(params, mesh), prompt, mask))
    np.testing.assert_array_equal(said.tokens, one.tokens)
    np.testing.assert_allclose(said.logps, one.logps, atol=2e-5)
    assert said.tokens.sharding.mesh == mesh


def programs(both, params, rows=8):
    ints = jax.ShapeDtypeStruct((rows, 6), jnp.int32)
    bools = jax.ShapeDtypeStruct((rows, 6), bool)
    how = {"max_new_tokens": 12, "temperature": 1.0, "stop_ids": (0,)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    with both.sampling():
        return generate.lower(MODEL, params, ints, bools, **how, key=key).compile()


def test_sampling_in_its_own_layout_gathers_no_parameter(params):
    mesh = make_mesh(1, 8, 1)
    matrix = CFG.embed * CFG.heads * CFG.head_dim
    there = Layouts.of(mesh, CFG.kv_heads)
    own = programs(there, there.params(shard(params, mesh)))
    one = dataclasses.replace(there, rollout=mesh)
    kept = programs(one, shard(params, mesh))
    sizes = [
        [size for name, size in collectives(p) if name == "all-gather"]
        for p in (own, kept)
    ]
    assert max(sizes[0], default=0) < matrix <= max(sizes[1])
