"""Attribution of a model known by its loss alone, against loops of `jax.grad`."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dareu_jax.attribution.functional import (
    drawn,
    grad_cos,
    grad_dot,
    gradient_kernel,
    per_example_gradients,
    project,
    projected_gradients,
)
from dareu_jax.attribution.gradients.bilinear import trigonometric_projections
from dareu_jax.attribution.index import build_index
from dareu_jax.attribution.kernel import OwnerBatch
from dareu_jax.attribution.owners import extend, merge, select

D, H, C, N, Q, OWNERS = 5, 7, 3, 11, 4, 3
CHUNKS = [None, 1, 4, 11, 32]
RNG = np.random.default_rng(0)
OWNER = np.asarray([0, 1, 2, 0, 1, 2, 0, -1, 1, 0, 2], np.int32)
WAYS = [{}, {"size": 6, "cosine": True}]


@pytest.fixture(autouse=True)
def _no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def examples_of(rows):
    x = RNG.normal(size=(rows, D)).astype(np.float32)
    return {"x": x, "label": RNG.integers(0, C, rows).astype(np.int32)}


PARAMS = {
    "into": {"w": RNG.normal(size=(D, H)).astype(np.float32), "b": jnp.zeros(H)},
    "out": RNG.normal(size=(H, C)).astype(np.float32),
    "scale": jnp.float32(1.5),
}
EXAMPLES, QUERIES = examples_of(N), examples_of(Q)


def loss_fn(params, example):
    hidden = jnp.tanh(example["x"] @ params["into"]["w"] + params["into"]["b"])
    logps = jax.nn.log_softmax(params["scale"] * (hidden @ params["out"]))
    return -logps[example["label"]]


def row(tree, n):
    return jax.tree.map(lambda x: x[n], tree)


def rows(tree, chosen):
    return jax.tree.map(lambda x: x[chosen], tree)


def by_loop(params, examples):
    """Flat gradients ``[N, P]`` in float64, one `jax.grad` at a time."""
    count = len(examples["label"])
    each = (jax.grad(loss_fn)(params, row(examples, n)) for n in range(count))
    return np.stack([np.asarray(ravel_pytree(g)[0], np.float64) for g in each])


QUERY_GRADS, EXAMPLE_GRADS = (by_loop(PARAMS, x) for x in (QUERIES, EXAMPLES))
DOTS = QUERY_GRADS @ EXAMPLE_GRADS.T
MEANS = np.stack([EXAMPLE_GRADS[o == OWNER].mean(axis=0) for o in range(OWNERS)])


def close(found, wanted):
    assert found.dtype == jnp.float32 and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def index_of(kernel, examples=EXAMPLES, owner=OWNER):
    batches = [OwnerBatch(examples, owner)]
    return build_index(kernel, PARAMS, batches, key=jax.random.key(0))


def scores_of(kernel):
    return kernel.score(PARAMS, index_of(kernel), QUERIES)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradients_of_every_example_are_those_of_a_loop(chunk):
    found = per_example_gradients(loss_fn, PARAMS, EXAMPLES, chunk=chunk)
    assert jax.tree.structure(found) == jax.tree.structure(PARAMS)
    close(jax.vmap(lambda g: ravel_pytree(g)[0])(found), EXAMPLE_GRADS)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_grad_dot_is_the_inner_product_of_two_gradients(chunk):
    close(grad_dot(loss_fn, PARAMS, QUERIES, EXAMPLES, chunk=chunk), DOTS)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_grad_cos_is_the_cosine_of_two_gradients(chunk):
    norms = [np.linalg.norm(g, axis=1) for g in (QUERY_GRADS, EXAMPLE_GRADS)]
    found = grad_cos(loss_fn, PARAMS, QUERIES, EXAMPLES, chunk=chunk)
    close(found, DOTS / np.outer(*norms))
    alone = np.diag(grad_cos(loss_fn, PARAMS, EXAMPLES, EXAMPLES))
    np.testing.assert_allclose(alone, 1.0, rtol=1e-5)


def test_a_query_without_a_gradient_has_cosine_zero():
    def flat(params, example):
        return jnp.float32(0.0) * loss_fn(params, example)

    assert not grad_cos(flat, PARAMS, QUERIES, EXAMPLES).any()


def test_a_positive_score_says_that_a_step_on_the_example_lowers_the_querys_loss():
    step = 1e-3
    for n in range(N):
        own = jax.grad(loss_fn)(PARAMS, row(EXAMPLES, n))
        down, up = (
            jax.tree.map(lambda p, g, s=s: p + s * g, PARAMS, own)
            for s in (-step, step)
        )
        each = jax.vmap(loss_fn, in_axes=(None, 0))
        gain = (each(up, QUERIES) - each(down, QUERIES)) / (2 * step)
        np.testing.assert_allclose(gain, DOTS[:, n], rtol=0.02, atol=0.01)


def test_gradients_of_half_precision_parameters_are_float32():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    half = {**EXAMPLES, "x": jnp.asarray(EXAMPLES["x"], jnp.bfloat16)}
    found = grad_dot(loss_fn, params, half, half)
    assert found.dtype == jnp.float32
    exact = EXAMPLE_GRADS @ EXAMPLE_GRADS.T
    np.testing.assert_allclose(found, exact, atol=0.1 * np.abs(exact).max())
    trees = per_example_gradients(loss_fn, params, half)
    assert {x.dtype for x in jax.tree.leaves(trees)} == {jnp.dtype("float32")}


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(TypeError, match="scalar"):
        grad_dot(lambda params, z: z["x"] * params["scale"], PARAMS, QUERIES, EXAMPLES)


@pytest.mark.parametrize("chunk", [None, 4])
def test_projected_gradients_have_the_inner_products_on_average(chunk):
    def once(seed):
        left, right = (
            projected_gradients(loss_fn, PARAMS, x, size=8, seed=seed, chunk=chunk)
            for x in (QUERIES, EXAMPLES)
        )
        return left @ right.T

    found = np.asarray(jax.lax.map(once, jnp.arange(400)), np.float64)
    error = found.std(axis=0, ddof=1) / len(found) ** 0.5
    assert (error > 0.0).all()  # a random estimate, not the exact product
    assert np.abs((found.mean(axis=0) - DOTS) / error).max() < 4.5


def test_a_large_projection_ranks_examples_as_the_gradients_do():
    found = [
        projected_gradients(loss_fn, PARAMS, x, size=24) for x in (QUERIES, EXAMPLES)
    ]
    assert found[0].shape == (Q, 24 + 7 + 21 + 1)
    products = np.asarray(found[0] @ found[1].T)
    assert np.corrcoef(products.ravel(), DOTS.ravel())[0, 1] > 0.9
    other = projected_gradients(loss_fn, PARAMS, QUERIES, size=24, seed=1)
    assert not np.allclose(found[0], other)


def test_a_projection_at_least_as_large_as_every_leaf_changes_nothing():
    found = projected_gradients(loss_fn, PARAMS, EXAMPLES, size=D * H)
    close(found, EXAMPLE_GRADS)


def test_the_projection_is_the_packages_own_without_its_matrix():
    leaf = {"w": jnp.asarray(RNG.normal(size=(10, 9)), jnp.float32)}
    draws = drawn(leaf, 8, 3)
    key = jax.random.fold_in(jax.random.key(3), zlib.crc32(b"w"))
    matrix = trigonometric_projections(1, 90, 8, key=key)[0]
    found = project(leaf, draws)["w"]
    np.testing.assert_allclose(found, leaf["w"].ravel() @ matrix, atol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_owners_are_scored_by_their_mean_gradient(chunk):
    close(
        scores_of(gradient_kernel(loss_fn, OWNERS, chunk=chunk)), QUERY_GRADS @ MEANS.T
    )


def test_owners_are_scored_by_the_cosine_to_their_mean_gradient():
    norms = [np.linalg.norm(g, axis=1) for g in (QUERY_GRADS, MEANS)]
    found = scores_of(gradient_kernel(loss_fn, OWNERS, cosine=True))
    close(found, QUERY_GRADS @ MEANS.T / np.outer(*norms))


@pytest.mark.parametrize("chunk", [None, 4])
def test_projected_owners_are_means_of_projected_examples(chunk):
    kernel = gradient_kernel(loss_fn, OWNERS, size=6, seed=2, chunk=chunk)
    left, right = (
        np.asarray(projected_gradients(loss_fn, PARAMS, x, size=6, seed=2))
        for x in (QUERIES, EXAMPLES)
    )
    means = np.stack([right[o == OWNER].mean(axis=0) for o in range(OWNERS)])
    close(scores_of(kernel), left @ means.T)


def test_examples_of_several_owners_have_weights():
    weights = RNG.uniform(0.1, 1.0, (N, OWNERS)).astype(np.float32)
    kernel = gradient_kernel(loss_fn, OWNERS)
    found = kernel.score(PARAMS, index_of(kernel, owner=weights), QUERIES)
    means = weights.T @ EXAMPLE_GRADS / weights.sum(axis=0)[:, None]
    close(found, QUERY_GRADS @ means.T)


def test_update_tells_the_mean_loss():
    kernel = gradient_kernel(loss_fn, OWNERS, chunk=4)
    start = kernel.init(PARAMS, key=jax.random.key(0))
    _, metrics = kernel.update(PARAMS, OwnerBatch(EXAMPLES, OWNER), start)
    each = [float(loss_fn(PARAMS, row(EXAMPLES, n))) for n in range(N)]
    assert float(metrics["loss"]) == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_permuted_owners_give_permuted_columns(way):
    kernel = gradient_kernel(loss_fn, OWNERS, **way)
    order = np.asarray([2, 0, 1])
    renamed = np.where(OWNER < 0, -1, np.argsort(order)[OWNER]).astype(np.int32)
    found = kernel.score(PARAMS, index_of(kernel, owner=renamed), QUERIES)
    close(found, np.asarray(scores_of(kernel))[:, order])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_indices_are_merged_cut_and_extended(way):
    kernel = gradient_kernel(loss_fn, OWNERS, **way)
    whole, wanted = index_of(kernel), scores_of(kernel)
    parts = [(rows(EXAMPLES, r), OWNER[r]) for r in (slice(0, 5), slice(5, N))]
    first, second = (index_of(kernel, *part) for part in parts)
    merged = merge(kernel, first, second)
    close(kernel.score(PARAMS, merged, QUERIES), wanted)
    grown = extend(kernel, PARAMS, first, [OwnerBatch(*parts[1])])
    close(kernel.score(PARAMS, grown, QUERIES), wanted)
    cut = select(kernel, whole, [2, -1])
    found = np.asarray(kernel.score(PARAMS, cut, QUERIES))
    np.testing.assert_allclose(found[:, 0], wanted[:, 2], rtol=1e-5, atol=1e-5)
    assert not found[:, 1].any()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_order_of_examples_and_queries_changes_nothing(way):
    kernel = gradient_kernel(loss_fn, OWNERS, **way)
    order, asked = RNG.permutation(N), RNG.permutation(Q)
    index = index_of(kernel, rows(EXAMPLES, order), OWNER[order])
    found = kernel.score(PARAMS, index, rows(QUERIES, asked))
    close(found, np.asarray(scores_of(kernel))[asked])
    alone = [kernel.score(PARAMS, index, rows(QUERIES, [q])) for q in range(Q)]
    close(jnp.concatenate(alone), np.asarray(scores_of(kernel)))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_jit_changes_nothing(way):
    kernel = gradient_kernel(loss_fn, OWNERS, **way)
    wanted = np.asarray(scores_of(kernel))
    with jax.disable_jit():
        found = scores_of(kernel)
    close(found, wanted)
