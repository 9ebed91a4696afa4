"""int8, int4 and NF4 against hand-rounded numbers and the published levels; Q."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from dareu_jax.audits.stress.quantise import (
    BLOCK,
    FORMATS,
    NF4,
    brought_back,
    int4,
    int8,
    nf4,
    quantisation_robustness,
    quantised,
)


@pytest.mark.parametrize(
    ("after", "before", "q"),
    [(0.2, 0.4, 0.5), (0.4, 0.4, 1.0), (0.8, 0.4, 1.0), (0.0, 0.4, 0.0), (0.1, 0, 1)],
)
def test_q(after, before, q):
    assert quantisation_robustness(after, before) == pytest.approx(q)


def test_what_rounding_brings_back_is_said():
    said = brought_back([0.3, 0.5, 0.4], [0.1, 0.1, 0.2])  # .2, .4, .2
    assert said == " Rounding alone brings 0.267 ± 0.067 back."
    assert brought_back([0.3, 0.1], [0.1, 0.3]) == ""
    assert brought_back([0.1, 0.1], [0.2, 0.2]) == ""


def test_the_nf4_levels_are_normal_quantiles():
    """As QLoRA makes them: 8 negative, 0 and 8 positive quantiles, over the largest."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0.0], below]))
    np.testing.assert_allclose(NF4, levels / levels.max(), atol=2e-7)


def test_the_nf4_levels_are_the_published_ones():
    published = (
        "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 "
        "-0.28444138169288635 -0.18477343022823334 -0.09105003625154495 0.0 "
        "0.07958029955625534 0.16093020141124725 0.24611230194568634 "
        "0.33791524171829224 0.44070982933044434 0.5626170039176941 "
        "0.7229568362236023 1.0"
    )
    assert list(NF4) == [float(level) for level in published.split()]


def test_int8_has_a_scale_for_every_output_channel():
    kernel = jnp.asarray([[1.0, -2.0], [0.5, 0.3]], jnp.float32)
    wanted = [[1.0, -2.0], [64 / 127, 19 * 2 / 127]]
    np.testing.assert_allclose(int8(kernel), wanted, rtol=1e-6)


def test_nf4_takes_the_nearest_level_of_each_block():
    column = np.zeros((BLOCK, 1), np.float32)
    column[:5, 0] = [2.0, -2.0, 0.30, 0.75, -0.03]
    found = np.asarray(nf4(jnp.asarray(column)))[:5, 0]
    # by hand, in units of the largest, 2: 1, -1, .150, .375, -.015
    wanted = [2.0, -2.0, 2 * NF4[9], 2 * NF4[11], 0.0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_int4_rounds_to_sevenths_of_the_largest():
    column = np.zeros((BLOCK, 1), np.float32)
    column[:4, 0] = [-7.0, 3.4, 3.6, 0.4]
    found = np.asarray(int4(jnp.asarray(column)))[:4, 0]
    np.testing.assert_allclose(found, [-7.0, 3.0, 4.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("rounding", [nf4, int4])
def test_blocks_run_along_the_inputs_of_one_output(rounding):
    kernel = np.linspace(-1, 1, 2 * BLOCK, dtype=np.float32).reshape(BLOCK, 2)
    one = np.asarray(rounding(jnp.asarray(kernel)))
    kernel[:, 1] *= 100
    two = np.asarray(rounding(jnp.asarray(kernel)))
    np.testing.assert_array_equal(one[:, 0], two[:, 0])
    np.testing.assert_allclose(100 * one[:, 1], two[:, 1], rtol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_again_changes_nothing_and_zero_stays_zero(name):
    rounding = FORMATS[name]
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(24, 5)), jnp.float32)  # a short last block
    once = rounding(kernel)
    np.testing.assert_allclose(rounding(once), once, atol=1e-6)
    assert np.abs(np.asarray(once - kernel)).max() < {"int8": 0.02}.get(name, 0.5)
    assert not np.asarray(rounding(jnp.zeros((24, 5), jnp.float32))).any()


@pytest.mark.parametrize("name", FORMATS)
def test_dense_layers_alone_are_rounded(tiny_inputs, name):
    before = tiny_inputs.reference
    after = quantised(before, FORMATS[name])
    up = ("layers", "mlp", "up", "kernel")
    changed, kept = after, before
    for part in up:
        changed, kept = changed[part], kept[part]
    assert changed.dtype == kept.dtype
    assert np.abs(np.asarray(changed - kept)).max() > 0
    for part in ("embed", "final_norm"):
        assert after[part] is before[part]
    norms = (tree["layers"]["attention_norm"]["scale"] for tree in (before, after))
    np.testing.assert_array_equal(*map(np.asarray, norms))
