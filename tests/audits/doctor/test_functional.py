"""The doctor's checks of a loss: a good one passes, each fault fails its check."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.audits.doctor import examine_gradients
from dareu_jax.audits.doctor.checks import failed
from dareu_jax.errors import UserError

N, D, H = 8, 6, 16
RNG = np.random.default_rng(0)
PARAMS = {
    "w": jnp.asarray(RNG.normal(size=(D, H)) / D**0.5, jnp.float32),
    "v": jnp.asarray(RNG.normal(size=H) / H**0.5, jnp.float32),
}
EXAMPLES = {
    "x": RNG.normal(size=(N, D)).astype(np.float32),
    "y": RNG.normal(size=N).astype(np.float32),
}


def squared_error(params, example):
    hidden = jax.nn.relu(example["x"] @ params["w"])
    return 0.5 * (hidden @ params["v"] - example["y"]) ** 2


def without_a_leaf(params, example):
    return squared_error(params | {"w": jax.lax.stop_gradient(params["w"])}, example)


def rounded(params, example):
    return jnp.round(100.0 * squared_error(params, example)) / 100.0


@jax.custom_vjp
def root(x):
    return jnp.sqrt(x)


root.defvjp(lambda x: (jnp.sqrt(x), x), lambda x, g: (g / jnp.sqrt(x),))  # half missing


def with_a_wrong_rule(params, example):
    return root(1.0 + squared_error(params, example))


def with_a_root_of_zero(params, example):
    return squared_error(params, example) + jnp.sqrt(0.0 * params["v"][0])


def examined(loss_fn, params=PARAMS, **how):
    return examine_gradients(loss_fn, params, EXAMPLES, key=jax.random.key(0), **how)


def named(report):
    return {check.name: check for check in report.all}


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_plain_model_can_be_trusted(chunk):
    report = examined(squared_error, chunk=chunk)
    assert report.trusted, report.verdict
    assert report.model == "squared_error" and report.dtype == "float32"
    assert list(named(report)) == [
        *("finite", "vmap = loop", "slope", "rank agreement", "relative error"),
        *("batch", "repeat", "projection"),
    ]
    assert all(check.passed for check in report.all)
    assert named(report)["vmap = loop"].value < 1e-5
    assert named(report)["slope"].value < 0.01


@pytest.mark.parametrize("loss_fn", [without_a_leaf, rounded, with_a_wrong_rule])
def test_a_gradient_that_is_not_the_losss_slope_fails(loss_fn):
    report = examined(loss_fn)
    assert not report.trusted
    assert named(report)["slope"].passed is False
    assert "finite differences" in named(report)["slope"].meaning


def test_a_gradient_that_is_no_number_fails():
    check = named(examined(with_a_root_of_zero))["finite"]
    assert check.passed is False and check.value == 1.0
    assert "root of zero" in check.remedy


def test_a_loss_that_traces_otherwise_fails():
    def depends_on_tracing(params, example):
        traced = isinstance(example["y"], jax.core.Tracer)
        return squared_error(params, example) * (2.0 if traced else 1.0)

    assert named(examined(depends_on_tracing))["vmap = loop"].passed is False


def test_half_precision_is_told_apart():
    def loss_fn(params, example):
        x = example["x"].astype(params["w"].dtype)
        out = jax.nn.relu(x @ params["w"]) @ params["v"]
        return 0.5 * (out.astype(jnp.float32) - example["y"]) ** 2

    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    report = examined(loss_fn, half)
    assert report.dtype == "bfloat16"
    error = named(report)["relative error"]
    assert error.value > 1e-3 and error.scope == "bfloat16"
    assert named(report)["vmap = loop"].passed and named(report)["slope"].passed


def test_too_small_a_projection_fails():
    check = named(examined(squared_error, size=1))["projection"]
    assert check.passed is False and check.value > 0.1
    assert named(examined(squared_error, size=D * H))["projection"].value < 1e-5


def test_few_examples_are_refused():
    few = jax.tree.map(lambda x: x[:2], EXAMPLES)
    with pytest.raises(UserError, match="examples: got 2, give 3 or more"):
        examine_gradients(squared_error, PARAMS, few, key=jax.random.key(0))


def test_failed_checks_say_what_to_do():
    for check in failed(examined(rounded).all):
        assert check.remedy and check.meaning
