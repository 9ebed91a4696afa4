"""Every attack by hand, against NumPy, and the properties that all of them share."""

import functools
import math
import zlib as compression

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.data.batches import over_records
from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.membership import (
    ATTACKS,
    gradnorm,
    loss,
    min_k,
    min_k_plus,
    reference,
    tensor_norms,
    zlib,
)
from dareu_jax.evaluation.metrics.token_stats import token_stats
from dareu_jax.models import logits_of, response_hidden
from dareu_jax.parallel import make_mesh, on_host, put_batch, shard

pytestmark = pytest.mark.slow

LOGPS = np.array([[-1.0, -4.0, -2.0, -3.0, -5.0], [-6.0, -2.0, 0.0, 0.0, 0.0]])
MASK = np.array([[True] * 5, [True, True, False, False, False]])
LONG = "He was born in Lima. " * 20
STATS = ("logps", "mean", "std")


def inputs(told, batch, params) -> dict:
    """All that any attack needs to score a batch under some parameters."""
    stats = on_host(token_stats(told.model, params, batch))
    texts = [str(row[keep]) for row, keep in zip(batch.response, batch.response_mask)]
    return {
        **{name: getattr(stats, name) for name in STATS},
        "reference_logps": np.full(stats.logps.shape, -math.log(64.0)),
        "mask": batch.response_mask,
        "texts": texts,
        "model": told.model,
        "params": params,
        "batch": batch,
    }


def scored(name: str, have: dict) -> np.ndarray:
    attack = ATTACKS[name]
    return np.asarray(attack.score(**{need: have[need] for need in attack.needs}))


@pytest.fixture(scope="module")
def have(told):
    return inputs(told, told.batch, told.params)


@pytest.fixture(scope="module", params=ATTACKS)
def attack(request):
    return request.param


def test_loss_by_hand():
    assert loss(LOGPS, MASK).tolist() == [3.0, 4.0]


def test_zlib_by_hand():
    sizes = [len(compression.compress(text.encode())) for text in ("Lima", LONG)]
    assert sizes[1] < len(LONG) / 5
    found = zlib(LOGPS, MASK, ["Lima", LONG])
    np.testing.assert_allclose(found, [3.0 / sizes[0], 4.0 / sizes[1]], rtol=1e-12)


def test_zlib_asks_for_as_many_texts_as_rows():
    with pytest.raises(ValueError, match="zlib attack: 1 texts for 2 rows"):
        zlib(LOGPS, MASK, ["Lima"])


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.4, [4.5, 6.0]),  # the lowest 2 of 5; int(0.8) = 0, but at least 1 of 2
        (0.2, [5.0, 6.0]),
        (0.59, [4.5, 6.0]),
        (0.6, [4.0, 6.0]),
        (1.0, [3.0, 4.0]),
        (0.001, [5.0, 6.0]),
    ],
)
def test_min_k_by_hand(share, expected):
    assert min_k(LOGPS, MASK, share).tolist() == expected


def test_min_k_plus_by_hand():
    """(log p - mu) / sigma = 1, -0.5, 0, -1, -3 and -2, 1."""
    mean = np.array([[-2.0, -3.0, -2.0, -1.0, -2.0], [-4.0, -3.0, 0.0, 0.0, 0.0]])
    std = np.array([[1.0, 2.0, 1.0, 2.0, 1.0], [1.0, 1.0, 0.0, 0.0, 0.0]])
    assert min_k_plus(LOGPS, mean, std, MASK, 0.4).tolist() == [2.0, 2.0]
    assert min_k_plus(LOGPS, mean, std, MASK, 1.0).tolist() == [0.7, 0.5]


def test_min_k_plus_where_the_model_is_certain():
    nothing = np.zeros((1, 3))
    assert min_k_plus(nothing, nothing, nothing, np.ones((1, 3), bool)).tolist() == [0]


def test_reference_by_hand():
    assert reference(LOGPS, LOGPS / 2.0, MASK).tolist() == [1.5, 2.0]


def test_a_model_against_itself_has_no_reference_score(have):
    scores = reference(have["logps"], have["logps"], have["mask"])
    assert scores.tolist() == [0.0] * 8


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match=r"min-k attack: share .* outside \(0, 1\]"):
        min_k(LOGPS, MASK, share)


def test_norms_of_tensors_by_hand():
    """A stack of two layers is two tensors: norms 3, 4 and 5."""
    stack = jnp.asarray([[[1.0, 2.0, 2.0]], [[0.0, 0.0, 4.0]]])
    grads = {"embed": {"e": jnp.asarray([[3.0], [4.0]])}, "layers": {"w": stack}}
    assert sorted(tensor_norms(grads).tolist()) == [3.0, 4.0, 5.0]


def test_against_numpy(told, have):
    mask, picked = told.batch.response_mask, told.picked
    p = np.exp(told.logps)
    mean = (p * told.logps).sum(-1)
    std = np.sqrt((p * told.logps**2).sum(-1) - mean**2)
    for row, keep in enumerate(mask):
        nll = -picked[row, keep]
        size = max(1, int(0.4 * len(nll)))
        packed = len(compression.compress(have["texts"][row].encode()))
        z = ((picked - mean) / std)[row, keep]
        expected = {
            "loss": nll.mean(),
            "zlib": nll.mean() / packed,
            "min_k": np.sort(nll)[::-1][:size].mean(),
            "min_k_plus_plus": -np.sort(z)[:size].mean(),
            "reference": nll.mean() - math.log(64.0),
        }
        for name, value in expected.items():
            assert scored(name, have)[row] == pytest.approx(value, abs=1e-5), name


def test_gradnorm_against_the_gradient_of_every_row_alone(told, have):
    @jax.jit
    def gradient(row):
        def mean_loss(params):
            hidden = response_hidden(told.model, params, row)
            logps = jax.nn.log_softmax(logits_of(told.model, params, hidden))
            said = jnp.take_along_axis(logps, row.response[..., None], -1)[..., 0]
            mask = row.response_mask.astype(jnp.float32)
            return -jnp.sum(said * mask) / jnp.sum(mask)

        return jax.grad(mean_loss)(told.params)

    found = scored("gradnorm", have)
    for number, value in enumerate(found):
        grads = gradient(jax.tree.map(lambda x, n=number: x[n : n + 1], told.batch))
        layers = [x[i] for x in jax.tree.leaves(grads.pop("layers")) for i in (0, 1)]
        tensors = [np.asarray(x, np.float64) for x in layers + jax.tree.leaves(grads)]
        expected = np.mean([np.sqrt((x**2).sum()) for x in tensors])
        assert value == pytest.approx(expected, rel=1e-5)


def test_gradnorm_in_batches_of_three(told, have):
    score = functools.partial(gradnorm, told.model, told.params)
    found = over_records(told.batch, 3, lambda batch: batch, score)
    np.testing.assert_allclose(found, scored("gradnorm", have), rtol=1e-5)


def test_gradnorm_on_eight_devices(told, have):
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        params, batch = shard(told.params, mesh=mesh), put_batch(told.batch, mesh)
        found = on_host(gradnorm(told.model, params, batch))
    np.testing.assert_allclose(found, scored("gradnorm", have), rtol=1e-5)


def test_an_attack_gives_a_finite_number_per_text(attack, have):
    scores = scored(attack, have)
    assert scores.shape == (8,) and np.isfinite(scores).all()
    assert len(set(scores.tolist())) == 8


def test_an_attack_says_nothing_new_of_a_padded_text(attack, told, have, pad):
    wide = inputs(told, pad(told.batch, left=5, right=4), told.params)
    texts = {"texts": have["texts"]}
    np.testing.assert_allclose(
        scored(attack, wide | texts), scored(attack, have), rtol=1e-4, atol=1e-5
    )


def test_an_attack_scores_what_the_model_would_say_lower(attack, told, have):
    """Higher is less likely a member: likely texts are low, unlikely ones high."""
    likely, unlikely = told.batch.response.copy(), told.batch.response.copy()
    for t in range(likely.shape[1]):
        for texts, pick in ((likely, np.argmax), (unlikely, np.argmin)):
            batch = told.batch._replace(response=texts)
            texts[:, t] = pick(told.logits(batch)[:, t], axis=-1)
    low, high = (
        scored(
            attack,
            inputs(told, told.batch._replace(response=texts), told.params)
            | {"texts": have["texts"]},
        )
        for texts in (likely, unlikely)
    )
    assert low.mean() < high.mean()


def test_an_attack_flags_a_broken_model(attack, told, broken):
    have = inputs(told, told.batch, broken)
    try:
        scores = scored(attack, have)
    except UserError as error:
        assert "nan at index (0, 0)" in str(error)
    else:
        assert np.isnan(scores).all()


def test_an_attack_flags_an_empty_text(attack, told, have):
    mask = told.batch.response_mask.copy()
    mask[2] = False
    batch = told.batch._replace(response_mask=mask)
    try:
        scores = scored(attack, have | {"mask": mask, "batch": batch})
    except UserError as error:
        assert "row 2 has no response token" in str(error)
    else:
        assert np.flatnonzero(np.isnan(scores)).tolist() == [2]
