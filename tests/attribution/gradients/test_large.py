"""Indices of large models: projected by default, and of a chosen dtype."""

import dataclasses

import jax
import numpy as np
import pytest

from dareu_jax.attribution import Setup
from dareu_jax.attribution.gradients.bilinear import exact, projected
from dareu_jax.attribution.index import abstract_index, build_index
from dareu_jax.config import ClassifierConfig, attribution_config
from dareu_jax.models import Decoder, DecoderConfig, abstract_params
from dareu_jax.registry import KERNELS

MIB = 2**20
LARGE = DecoderConfig(  # SmolLM2-135M
    vocab=49152, layers=30, embed=576, heads=9, kv_heads=3, head_dim=64, ffn=1536
)
ON_GRADIENTS = ("grad_dot", "grad_cos", "tracin")


def kernel_of(name, shape, **options):
    model = Decoder(shape)
    cfg = attribution_config(**options)
    own = {"cfg": cfg, "classifier": ClassifierConfig(), "steps": 1}
    setup = Setup(model=model, owners=20, backbone=model, **own)
    return KERNELS.get(name)(setup)


def mib_an_owner(kernel, shape):
    index = abstract_index(kernel, abstract_params(shape))
    leaves = jax.tree.leaves(index.owner_sums)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 20 / MIB


def test_what_an_owner_of_a_model_of_135_million_parameters_takes():
    def size(**options):
        return mib_an_owner(kernel_of("grad_dot", LARGE, **options), LARGE)

    assert size(whole_gradients=True) == pytest.approx(405, abs=1)
    assert size() == pytest.approx(3.3, abs=0.05)
    assert size(index_dtype="bfloat16") == pytest.approx(size() / 2)


@pytest.mark.parametrize("name", ["grad_dot", "grad_cos"])
def test_gradients_of_a_large_model_are_projected_unless_told(name):
    small = dataclasses.replace(LARGE, layers=2)
    adapted = dataclasses.replace(LARGE, lora_alpha=16.0)
    by_itself = kernel_of(name, LARGE, projection_size=32)
    assert by_itself.how.features == projected(32)
    for kernel in (
        kernel_of(name, LARGE, whole_gradients=True),
        kernel_of(name, small),
        kernel_of(name, adapted),
    ):
        assert kernel.how.features == exact() and not kernel.note
    told = kernel_of(name, small, whole_gradients=False)
    assert told.how.features == projected(64) and not told.note


@pytest.mark.parametrize("name", ON_GRADIENTS)
def test_the_user_is_told_how_a_large_model_is_attributed(name):
    assert kernel_of(name, LARGE).note == (
        f"kernel {name}: gradients of 135 M parameters are projected to 64 x 64 "
        "numbers a matrix; attribution.whole_gradients=true keeps them whole"
    )


@pytest.mark.parametrize("name", ["grad_dot", "grad_cos"])
def test_scores_of_an_index_in_bfloat16(world, name):
    def scores(**options):
        kernel = world.kernel(name, cfg=attribution_config(**options))
        batches, key = world.passes(kernel), jax.random.key(0)
        index = build_index(kernel, world.params, batches, key=key)
        score = jax.jit(kernel.score)
        return np.asarray(score(world.params, index, world.queries))

    whole, half = scores(), scores(index_dtype="bfloat16")
    assert half.dtype == np.float32
    error = np.abs(half - whole).max() / np.abs(whole).max()
    assert 0 < error < 0.01
    np.testing.assert_array_equal(half.argmax(axis=1), whole.argmax(axis=1))
