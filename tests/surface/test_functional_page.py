"""The page's part on one's own model runs; other libraries' models do as NNX's."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax.flatten_util import ravel_pytree

from dareu_jax.attribution import OwnerBatch, build_index
from dareu_jax.attribution.functional import grad_dot, gradient_kernel

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "dareu_jax" / "README.md"
PART = PAGE.read_text().split("## Your own JAX model")[1].split("\n## ")[0]
MODEL, DOCTOR, EQUATIONS = re.findall(r"```python\n(.*?)```", PART, re.DOTALL)
D, H, C, N, Q = 4, 6, 3, 9, 2
RNG = np.random.default_rng(0)
OWNER = np.arange(N, dtype=np.int32) % 3
EXAMPLES = {
    "x": RNG.normal(size=(N, D)).astype(np.float32),
    "label": RNG.integers(0, C, N).astype(np.int32),
}
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def flat_gradients(loss_fn, params, examples):
    """``[N, P]`` by a loop of `jax.grad`."""

    def one(n):
        own = jax.grad(loss_fn)(params, jax.tree.map(lambda x: x[n], examples))
        return np.asarray(ravel_pytree(own)[0], np.float64)

    return np.stack([one(n) for n in range(len(examples["label"]))])


def assert_as_a_loop(loss_fn, params, examples, queries, owner, per_example, per_owner):
    theirs = flat_gradients(loss_fn, params, examples)
    asked = flat_gradients(loss_fn, params, queries)
    means = np.stack([theirs[owner == o].mean(axis=0) for o in range(max(owner) + 1)])
    np.testing.assert_allclose(per_example, asked @ theirs.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(per_owner, asked @ means.T, rtol=1e-5, atol=1e-5)
    assert per_example.dtype == per_owner.dtype == jnp.float32


def test_the_program_is_short_and_equals_a_loop_of_grad(capsys):
    assert len(MODEL.splitlines()) <= 25
    page = {}
    exec(MODEL + DOCTOR, page)
    names = ("loss_fn", "params", "examples", "queries", "owner")
    arguments = [page[name] for name in names]
    assert_as_a_loop(*arguments, page["per_example"], page["per_owner"])
    assert page["report"].trusted, page["report"].verdict
    assert "can be trusted" in capsys.readouterr().out


def test_the_equations_take_plain_arrays():
    page = {}
    exec(EQUATIONS, page)
    one = 0.5 / (0.5**0.5 + 1e-4)  # 0.5 above the mean; an sd of sqrt(0.5)
    wanted = [one, -one, 0.0, 0.0]
    np.testing.assert_allclose(page["advantages"][:, 0], wanted, rtol=1e-5)
    assert float(page["loss"]) == pytest.approx(0.0, abs=1e-6)


def of_a_function():
    params = {
        "into": RNG.normal(size=(D, H)).astype(np.float32),
        "out": RNG.normal(size=(H, C)).astype(np.float32),
    }

    def loss_fn(params, example):
        hidden = jax.nn.relu(example["x"] @ params["into"])
        return cross_entropy(hidden @ params["out"], example["label"])

    return loss_fn, params


class Mlp(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(C)(linen.relu(linen.Dense(H)(x)))


def of_linen():
    model = Mlp()
    params = model.init(jax.random.key(0), jnp.zeros(D))

    def loss_fn(params, example):
        return cross_entropy(model.apply(params, example["x"]), example["label"])

    return loss_fn, params


def of_linen_with_statistics():
    model = linen.Sequential([linen.Dense(H), linen.BatchNorm(True), linen.Dense(C)])
    state = model.init(jax.random.key(0), jnp.zeros((1, D)))

    def loss_fn(statistics, params, example):
        logits = model.apply({"params": params, **statistics}, example["x"][None])[0]
        return cross_entropy(logits, example["label"])

    statistics = {"batch_stats": state["batch_stats"]}
    return functools.partial(loss_fn, statistics), state["params"]


def of_equinox():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    model = eqx.nn.MLP(D, C, H, depth=1, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, example):
        return cross_entropy(eqx.combine(params, rest)(example["x"]), example["label"])

    return loss_fn, params


@pytest.mark.parametrize(
    "make", [of_a_function, of_linen, of_linen_with_statistics, of_equinox]
)
def test_other_models_equal_a_loop_of_grad(make):
    loss_fn, params = make()
    queries = jax.tree.map(lambda x: x[:Q], EXAMPLES)
    kernel = gradient_kernel(loss_fn, owners=3, chunk=4)
    batches = [OwnerBatch(EXAMPLES, OWNER)]
    index = build_index(kernel, params, batches, key=jax.random.key(0))
    assert_as_a_loop(
        loss_fn,
        params,
        EXAMPLES,
        queries,
        OWNER,
        per_example=grad_dot(loss_fn, params, queries, EXAMPLES, chunk=4),
        per_owner=kernel.score(params, index, queries),
    )
