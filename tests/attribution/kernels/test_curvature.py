"""Kernels with a curvature against NumPy on the gradient of every example."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dareu_jax.attribution import OwnerBatch, Setup, build_index
from dareu_jax.attribution.calibration import margin_weights
from dareu_jax.attribution.gradients.bilinear import by_name, in_places, projected
from dareu_jax.attribution.gradients.measures import (
    log_likelihoods,
    log_odds,
    mean_probability,
    sampled_log_likelihoods,
    token_weight,
)
from dareu_jax.attribution.gradients.probe import Slot, attributed, probe
from dareu_jax.attribution.kernels.tracin import ensemble
from dareu_jax.config import ClassifierConfig, attribution_config
from dareu_jax.data import TokenBatch, take
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    init_adapters,
    init_decoder,
    join,
    logits_of,
    response_hidden,
    whole_text,
)
from dareu_jax.registry import KERNELS

pytestmark = pytest.mark.slow

V, P, OWNERS = 20, 3, 4
MODEL = Decoder(
    DecoderConfig(vocab=V, layers=2, embed=8, heads=2, kv_heads=1, head_dim=4, ffn=12)
)
CURVED = ["ekfac", "datainf", "trak", "arnoldi"]


@functools.cache
def params(seed=0):
    return jax.jit(lambda key: init_decoder(MODEL, key=key))(jax.random.key(seed))


def texts(rows, length, seed=0):
    """Ragged responses with junk behind them, left-padded prompts."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, rows)
    before = rng.integers(1, P + 1, rows)
    return TokenBatch(
        rng.integers(0, V, (rows, P)).astype(np.int32),
        np.arange(P)[None] >= P - before[:, None],
        rng.integers(0, V, (rows, length)).astype(np.int32),
        np.arange(length)[None] < lengths[:, None],
        np.arange(rows, dtype=np.int32),
    )


def records():
    """Ten records of four owners, one of nobody, one row of padding alone."""
    text, owner = texts(12, 7), np.arange(12, dtype=np.int32) % OWNERS
    text.prompt_mask[11], text.response_mask[11] = False, False
    owner[10:] = -1
    return OwnerBatch(text, owner)


def half(batch, rows):
    return OwnerBatch(take(batch.text, np.asarray(rows)), batch.owner[rows])


RECORDS, QUERIES = records(), texts(5, 6, seed=1)
BATCHES = [half(RECORDS, np.arange(6)), half(RECORDS, np.arange(6, 12))]
KEY = jax.random.key(1)


def kernel_of(name, model=MODEL, owners=OWNERS, snapshots=((0, 1.0),), **cfg):
    return KERNELS.get(name)(
        Setup(
            model=model,
            owners=owners,
            cfg=attribution_config(**cfg),
            classifier=ClassifierConfig(),
            steps=10,
            backbone=MODEL,
            snapshots=lambda: [(params(seed), rate) for seed, rate in snapshots],
        )
    )


def scores_of(kernel, batches, queries, params, key=KEY):
    """The kernel's index and its scores in float64."""
    index = build_index(kernel, params, batches, key=key)
    scores = jax.jit(kernel.score)(params, index, queries)
    return index, np.asarray(scores, np.float64)


@functools.partial(jax.jit, static_argnames=("measure", "model"))
def jacobian(measure, model, params, batch, weight):
    def measured(matrices):
        return measure(model, join(params, matrices), batch, weight)

    return jax.jacrev(measured)(attributed(params))


def every(measure, batch, seed=0):
    """The gradient of every example, by matrix, ``[B, L, D, F]`` float64."""
    batch = jax.tree.map(jnp.asarray, batch)
    weight = token_weight(batch, "mean")
    tree = jacobian(measure, MODEL, params(seed), batch, weight)
    named = by_name(params(seed), tree)
    return {path: np.asarray(g, np.float64) for path, g in named.items()}


def means_of(grads, owner=RECORDS.owner):
    """The mean over every owner's records, ``[O, ..]``."""
    return np.stack([grads[owner == o].mean(axis=0) for o in range(OWNERS)])


def by_layer(queries, *others):
    """Yields matching ``[.., D, F]`` arrays of every matrix and layer."""
    for path in queries:
        for layer in range(queries[path].shape[1]):
            yield (path, layer, *(x[path][:, layer] for x in (queries, *others)))


def relative(found, wanted):
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def drawn(key, step):
    """The measurement of the true Fisher in one batch of `BATCHES`."""
    return functools.partial(sampled_log_likelihoods, jax.random.fold_in(key, step))


@functools.cache
def fisher_gradients():
    """Gradients of drawn labels for the ten records, ``[10, L, D, F]`` by matrix."""
    parts = [every(drawn(KEY, n), batch.text) for n, batch in enumerate(BATCHES)]
    return {path: np.concatenate([p[path] for p in parts])[:10] for path in parts[0]}


@functools.cache
def likelihood_gradients():
    """Gradients of the queries and of the records, padding and all."""
    return every(log_likelihoods, QUERIES), every(log_likelihoods, RECORDS.text)


@pytest.mark.parametrize("damping", [0.1, 1e6])
def test_ekfac_from_the_gradients_of_drawn_labels(damping):
    index, found = scores_of(
        kernel_of("ekfac", damping=damping), BATCHES, QUERIES, params()
    )
    wanted, fit = 0.0, index.fitted
    layers = by_layer(*likelihood_gradients(), fisher_gradients())
    for path, layer, own, theirs, fisher in layers:
        u_in, u_out = (
            np.asarray(u[path][layer], np.float64)
            for u in (fit.vectors_in, fit.vectors_out)
        )
        lambdas = np.mean((u_in.T @ fisher @ u_out) ** 2, axis=0)
        turned, means = u_in.T @ own @ u_out, u_in.T @ means_of(theirs) @ u_out
        ridge = lambdas + damping * lambdas.mean()
        wanted = wanted + np.einsum("qdf,odf->qo", turned, means / ridge)
    assert float(fit.records) == 10.0
    assert relative(found, wanted) < 1e-5


def captured(batch, measure):
    """x ``[L, B, T, D]`` and e ``[L, B, T, F]`` of every matrix, float64."""
    rows, length = whole_text(batch)[0].shape

    def slot(leaf, path):
        layers, d, f = leaf.shape
        sizes = ((layers, rows, length, size) for size in (d, f))
        return Slot((), tuple(jnp.zeros(size, jnp.float32) for size in sizes))

    slots, weight = in_places(params(), slot), token_weight(batch, "mean")
    _, new = probe(
        MODEL, lambda x, e, _: (x, e), params(), batch, weight, slots, measure
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float64), by_name(params(), new))


def test_ekfac_turns_into_the_eigenvectors_of_its_covariances():
    index, _ = scores_of(kernel_of("ekfac"), BATCHES, QUERIES, params())
    text = [jax.tree.map(jnp.asarray, batch.text) for batch in BATCHES]
    seen = [captured(t, drawn(KEY, n)) for n, t in enumerate(text)]
    rows = slice(0, 10)  # the last two are nobody's and padding
    real = np.concatenate([np.asarray(whole_text(t)[1]) for t in text])[rows]
    for path, u_in in index.fitted.vectors_in.items():
        for side, u in enumerate((u_in, index.fitted.vectors_out[path])):
            all_rows = np.concatenate([s[path][side] for s in seen], axis=1)[:, rows]
            assert side == 0 or not all_rows[:, ~real].any()
            tokens = all_rows[:, real]
            turned = np.einsum("lnd,ldk->lnk", tokens, np.asarray(u, np.float64))
            grams = np.einsum("lnk,lnj->lkj", turned, turned)
            for gram in grams:
                off = gram - np.diag(np.diag(gram))
                assert np.abs(off).max() < 1e-5 * np.trace(gram)


@pytest.mark.parametrize("damping", [0.1, 1e6])
def test_datainf_from_the_gradients_of_every_record(damping):
    _, found = scores_of(
        kernel_of("datainf", damping=damping), BATCHES, QUERIES, params()
    )
    wanted = 0.0
    for _, _, own, theirs in by_layer(*likelihood_gradients()):
        own, means = own.reshape(5, -1), means_of(theirs).reshape(OWNERS, -1)
        g = theirs[:10].reshape(10, -1)
        ridge = damping * np.mean(g**2)
        inverse = np.mean(
            [
                np.linalg.inv(ridge * np.eye(g.shape[1]) + np.outer(row, row))
                for row in g
            ],
            axis=0,
        )
        wanted = wanted + own @ inverse @ means.T
    assert relative(found, wanted) < 1e-5


def trak_features(grads, seed=0, k=3):
    """P_in^T g P_out ``[B, k k]`` of every matrix and layer."""
    leaves = by_name(params(), attributed(params()))
    held = projected(k).held(leaves, jnp.uint32(seed))
    for path, layer, g in by_layer(grads):
        left, right = (np.asarray(side[layer], np.float64) for side in held[path])
        yield (left.T @ g @ right).reshape(len(g), -1)


def test_trak_from_projected_gradients_of_the_log_odds():
    kernel = kernel_of("trak", trak={"size": 3}, projection_seed=5)
    _, found = scores_of(kernel, BATCHES, QUERIES, params())
    own = trak_features(every(log_odds, QUERIES), seed=5)
    theirs = trak_features(every(log_odds, RECORDS.text), seed=5)
    p = np.asarray(mean_probability(MODEL, params(), RECORDS.text))[:10]
    wanted = 0.0
    for phi_q, phi in zip(own, theirs, strict=True):
        gram = phi[:10].T @ phi[:10] / 10
        whole = gram + 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram))
        doubtful = phi[:10] * (1.0 - p)[:, None]
        means = means_of(doubtful, RECORDS.owner[:10])
        wanted = wanted + phi_q @ np.linalg.solve(whole, means.T)
    assert relative(found, wanted) < 1e-5


def dense_hessian(model, whole):
    """The mean loss's Hessian over the owned records, and both sides' gradients."""
    point, unravel = ravel_pytree(attributed(whole))

    def measured(point, text):
        scale = token_weight(text, "mean")
        return log_likelihoods(model, join(whole, unravel(point)), text, scale)

    @jax.jit
    def found(point, text, queries):
        def loss(point):
            return -jnp.mean(measured(point, text))

        sides = (jax.jacrev(measured)(point, t) for t in (queries, text))
        return jax.hessian(loss)(point), *sides

    text = take(RECORDS.text, np.arange(10))
    given = jax.tree.map(jnp.asarray, (text, QUERIES))
    return [np.asarray(x, np.float64) for x in found(point, *given)]


def adapted(spread, rank=1, targets=("q",)):
    """The decoder with adapters on it, B zero at ``spread`` 0."""
    model = Decoder(dataclasses.replace(MODEL.cfg, lora_alpha=4.0))
    fresh = init_adapters(params(), rank, targets, key=KEY)
    moved = jax.tree.map(lambda x: x + spread * jax.random.normal(KEY, x.shape), fresh)
    return model, join(params(), moved)


ALL, ADAPTERS = (MODEL, params()), adapted(0.3)


@pytest.mark.parametrize(
    ("start", "iterations", "rank"),
    [(ALL, 60, 5), (ADAPTERS, 32, 32), (ADAPTERS, 48, 32)],
    ids=["960 numbers", "32 numbers", "more iterations than numbers"],
)
def test_arnoldi_from_the_dense_hessian(start, iterations, rank):
    model, whole = start
    kernel = kernel_of(
        "arnoldi", model, arnoldi={"iterations": iterations, "rank": rank}
    )
    index, found = scores_of(kernel, BATCHES, QUERIES, whole)
    hessian, own, theirs = dense_hessian(model, whole)
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    kept = values > 1e-5 * values[0]
    assert kept.sum() == (np.asarray(index.values) > 0).sum() > 4
    means = means_of(theirs, RECORDS.owner[:10])
    wanted = own @ vectors[:, kept] / values[kept] @ vectors[:, kept].T @ means.T
    assert relative(found, wanted) < 1e-4


def test_arnoldi_hardly_depends_on_its_start():
    keys = jax.random.split(KEY, 4)
    kernel = kernel_of("arnoldi")
    ways = [scores_of(kernel, BATCHES, QUERIES, params(), key)[1] for key in keys]
    assert np.corrcoef([way.ravel() for way in ways]).min() > 0.8


def test_tracin_is_a_weighted_sum_of_grad_dot_at_its_checkpoints():
    rates = {0: 0.5, 3: 2.0}
    kernel = kernel_of("tracin", snapshots=tuple(rates.items()))
    _, found = scores_of(kernel, BATCHES, QUERIES, None)
    wanted = 0.0
    for seed, rate in rates.items():
        grads = (every(log_likelihoods, t, seed) for t in (QUERIES, RECORDS.text))
        for _, _, own, theirs in by_layer(*grads):
            wanted = wanted + rate * np.einsum("qdf,odf->qo", own, means_of(theirs))
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize("name", ["ekfac", "arnoldi"])
def test_an_ensemble_is_the_weighted_sum_of_its_members(name):
    kernel = kernel_of(name)
    whole = ensemble(kernel, lambda: [(params(), 0.5), (params(3), 2.0)])
    _, found = scores_of(whole, BATCHES, QUERIES, None)
    one, other = (scores_of(kernel, BATCHES, QUERIES, params(s))[1] for s in (0, 3))
    assert relative(found, 0.5 * one + 2.0 * other) < 1e-5


def test_trak_is_alike_both_ways_but_for_the_doubt_in_a_record():
    text, owner = texts(6, 7, seed=2), np.arange(6, dtype=np.int32)
    kernel = kernel_of("trak", owners=6)
    _, scores = scores_of(kernel, [OwnerBatch(text, owner)], text, params())
    scores = scores / (1.0 - np.asarray(mean_probability(MODEL, params(), text)))
    assert np.abs(scores - scores.T).max() < 1e-5 * np.abs(scores).max()
    assert (np.diag(scores) > 0.0).all()


@pytest.mark.parametrize("name", ["grad_cos", *CURVED])
def test_adapters_at_their_zero_start_are_scored(name):
    model, whole = adapted(0.0, rank=2, targets=("q", "up"))
    _, scores = scores_of(kernel_of(name, model), BATCHES, QUERIES, whole)
    assert np.isfinite(scores).all() and (np.ptp(scores, axis=1) > 0.0).all()


def test_kernels_linear_in_the_gradient_have_the_shorter_way():
    folding = {name for name in KERNELS.names() if kernel_of(name).fold is not None}
    assert folding >= {"grad_dot", "ekfac", "datainf"}


def test_margin_weights_worked_out_by_hand():
    np.testing.assert_array_equal(margin_weights(4, (2,))[:2], np.float32([-1 / 3] * 2))
    np.testing.assert_array_equal(margin_weights(4, (1, 3)), [-0.5, 0.5, -0.5, 0.5])
    np.testing.assert_array_equal(margin_weights(2, (0, 1)), [0.5, 0.5])
    assert margin_weights(5, (0,)).dtype == jnp.float32


def test_drawn_labels_are_distributed_as_the_model_says():
    text = jax.tree.map(jnp.asarray, texts(3, 1, seed=4))
    trunk = response_hidden(MODEL, params(), text)
    logps = np.asarray(jax.nn.log_softmax(logits_of(MODEL, params(), trunk)))[:, 0]
    draw = functools.partial(
        sampled_log_likelihoods, model=MODEL, params=params(), batch=text
    )
    many = jax.jit(jax.vmap(lambda key: draw(key, weight=jnp.ones(3))))
    draws = np.asarray(many(jax.random.split(KEY, 20_000)))
    for row, own in zip(draws.T, logps, strict=True):
        label = np.abs(row[:, None] - own).argmin(axis=1)
        seen, p = np.bincount(label, minlength=V) / len(row), np.exp(own)
        assert np.abs((seen - p) / np.sqrt(p * (1.0 - p) / len(row))).max() < 4.5
