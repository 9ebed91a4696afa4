"""Influence against retraining: multinomial logistic regression in float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import influence
from jax.flatten_util import ravel_pytree

pytestmark = pytest.mark.slow

N, D, C, OWNERS, QUERIES = 200, 10, 3, 20, 40
L2 = 1e-2


class Case(NamedTuple):
    """The training set with its owners, the queries, and the model without weights."""

    x: jax.Array  # [N, D]
    label: jax.Array  # [N] int32
    owner: jax.Array  # [N] int32
    queries: tuple[jax.Array, jax.Array]
    params: dict[str, jax.Array]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def drawn(rng, rows, shift, truth):
    """Inputs around ``shift`` and labels drawn from the true model."""
    x = rng.normal(size=(rows, D)) + shift
    logits = x @ truth + rng.gumbel(size=(rows, C))
    return jnp.asarray(x), jnp.asarray(logits.argmax(1), jnp.int32)


@functools.cache
def case(seed):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(D, C))
    owner = np.arange(N, dtype=np.int32) % OWNERS
    x, label = drawn(rng, N, 0.3 * rng.normal(size=(OWNERS, D))[owner], truth)
    start = {"bias": jnp.zeros(C), "kernel": jnp.zeros((D, C))}
    queries = drawn(rng, QUERIES, 0.0, truth)
    return Case(x, label, jnp.asarray(owner), queries, start)


def likelihoods(params, x, label):
    """log p(label | x) ``[B]``."""
    logps = jax.nn.log_softmax(x @ params["kernel"] + params["bias"])
    return jnp.take_along_axis(logps, label[:, None], axis=1)[:, 0]


def loss(case, params, weights):
    """sum_n w_owner(n) l_n / N + L2 / 2 |params|^2."""
    each = -likelihoods(params, case.x, case.label) * weights[case.owner]
    size = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
    return jnp.sum(each) / N + L2 / 2 * size


def trained(case, weights):
    """The minimum of the loss by 20 steps of Newton's method."""
    start, unravel = ravel_pytree(case.params)

    def value(point):
        return loss(case, unravel(point), weights)

    def step(_, point):
        return point - jnp.linalg.solve(
            jax.hessian(value)(point), jax.grad(value)(point)
        )

    return unravel(jax.lax.fori_loop(0, 20, step, start))


def measured(case, weights):
    """Log-likelihoods of the queries ``[Q]`` after training with the weights."""
    return likelihoods(trained(case, weights), *case.queries)


def log_likelihoods(case, params):
    """What a response's measurement is here: log p of the queries' labels ``[Q]``."""
    return likelihoods(params, *case.queries)


def pearson(a, b):
    """Correlation over all queries and owners."""
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


@functools.cache
def scored(seed):
    """The case, its retrained measurements ``[.., Q]`` by weights, and influence."""
    world, ones = case(seed), jnp.ones(OWNERS)
    params = trained(world, ones)
    ways = functools.partial(loss, world), functools.partial(log_likelihoods, world)
    exact = influence(ways[0], params, ones, ways[1])
    return params, *ways, jax.jit(jax.vmap(functools.partial(measured, world))), exact


@pytest.mark.parametrize("seed", range(3))
def test_influence_is_the_slope_of_retraining_with_other_weights(seed):
    params, of, _, retrained, exact = scored(seed)
    ones, moves = jnp.ones(OWNERS), 1e-4 * jnp.eye(OWNERS)
    slope = ravel_pytree(jax.grad(of)(params, ones))[0]
    assert np.abs(slope).max() < 1e-14  # a minimum indeed
    assert exact.shape == (QUERIES, OWNERS) and exact.dtype == jnp.float64
    slopes = (retrained(ones + moves) - retrained(ones - moves)).T / 2e-4
    assert np.abs(exact - slopes).max() < 1e-6 * np.abs(slopes).max()


@pytest.mark.parametrize("seed", range(3))
def test_influence_predicts_leaving_an_owner_out_better_than_grad_dot(seed):
    params, of, measure, retrained, exact = scored(seed)
    ones = jnp.ones(OWNERS)
    lost = measure(params)[:, None] - retrained(ones - jnp.eye(OWNERS)).T
    own = jax.vmap(lambda row: ravel_pytree(row)[0])(jax.jacrev(measure)(params))
    theirs = jax.jacfwd(lambda w: -ravel_pytree(jax.grad(of)(params, w))[0])(ones)
    assert pearson(exact, lost) >= 0.98
    assert 0.5 < pearson(own @ theirs, lost) < pearson(exact, lost) - 0.03


def test_what_influence_misses_is_of_second_order():
    params, _, measure, retrained, exact = scored(0)

    def error(share):
        kept = retrained(jnp.ones(OWNERS) - share * jnp.eye(OWNERS)).T
        return jnp.linalg.norm(measure(params)[:, None] - kept - share * exact)

    assert float(error(0.1) / error(0.05)) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("damping", [0.0, 2.0])
def test_influence_on_a_weighted_mean_worked_out_by_hand(damping):
    x, weights = jnp.asarray([1.0, 2.0, 6.0]), jnp.asarray([1.0, 2.0, 1.0])

    def loss(params, weights):  # its minimum: the weighted mean, 2.75
        return jnp.sum(weights * (params["at"] - x) ** 2) / 2

    params = {"at": jnp.asarray([2.75])}
    out = influence(loss, params, weights, lambda p: 2.0 * p["at"], damping=damping)
    wanted = 2.0 * (x - 2.75)[None] / (4.0 + damping)
    np.testing.assert_allclose(out, wanted, rtol=1e-12)
