"""The page on adding a kernel: its blocks run, and their kernels do what it says."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.attribution import Kernel, OwnerBatch, Setup, build_index, last_valid
from dareu_jax.attribution.gradients.measures import log_likelihoods, token_weight
from dareu_jax.attribution.kernel import placed_index
from dareu_jax.attribution.owners import merge, select
from dareu_jax.config import AttributionConfig, ClassifierConfig
from dareu_jax.data import TokenBatch, take
from dareu_jax.models import Decoder, DecoderConfig, init_decoder
from dareu_jax.parallel import make_mesh, put_batch, shard
from dareu_jax.registry import KERNELS

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
PAGE = REPO / "dareu_jax" / "attribution" / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
LIST = next(x for x in PAGE.read_text().splitlines() if x.startswith("dareu list"))
NAMES = ("unigram", "grad_bias")
OWNERS, V, B, P, T = 3, 12, 8, 2, 6
MODEL = Decoder(
    DecoderConfig(
        vocab=V,
        layers=2,
        embed=8,
        heads=1,
        kv_heads=1,
        head_dim=8,
        ffn=16,
        qkv_bias=True,
    )
)


@pytest.fixture(scope="module")
def page(kernels_kept):
    """What the blocks register."""
    for block in BLOCKS:
        exec(block, {"__name__": "page"})
    return SimpleNamespace(**{name: KERNELS.get(name) for name in NAMES})


@pytest.fixture(scope="module")
def world():
    """A random model; two batches of owned text, whose heads are the queries."""
    params = jax.jit(lambda key: init_decoder(MODEL, key=key))(jax.random.key(0))
    rng, batches = np.random.default_rng(0), []
    owner = np.asarray([0, 1, 2, 0, 1, 2, 0, -1], np.int32)
    for _ in range(2):
        low = 4 * np.maximum(owner, 0)[:, None]
        tokens = low + rng.integers(0, 4, (B, P + T))
        other = rng.integers(0, V, (B, P + T))
        tokens = np.where(rng.random((B, P + T)) < 0.8, tokens, other).astype(np.int32)
        mask = np.arange(T) < rng.integers(2, T, B)[:, None]
        prompt_mask = np.ones((B, P), bool)
        index = np.arange(B, dtype=np.int32)
        text = TokenBatch(tokens[:, :P], prompt_mask, tokens[:, P:], mask, index)
        batches.append(OwnerBatch(text, owner))
    return SimpleNamespace(params=params, batches=batches, queries=batches[0].text)


class Made:
    """A kernel of the page with its index and jitted score."""

    def __init__(self, kernel: Kernel, world):
        self.kernel, self.world = kernel, world
        self.index = self.built(world.batches)
        self.score = jax.jit(kernel.score)
        self.scores = np.asarray(self.of(self.index))

    def built(self, batches):
        return build_index(self.kernel, self.world.params, batches, key=None)

    def of(self, index, queries=None):
        queries = self.world.queries if queries is None else queries
        return self.score(self.world.params, index, queries)


@pytest.fixture(scope="module")
def both(page, world) -> dict[str, Made]:
    setup = Setup(MODEL, OWNERS, AttributionConfig(), ClassifierConfig(), 1, MODEL)
    return {name: Made(getattr(page, name)(setup), world) for name in NAMES}


@pytest.fixture(params=NAMES)
def made(request, both) -> Made:
    return both[request.param]


@pytest.fixture
def unigram(both) -> Made:
    return both["unigram"]


def test_unigram_is_what_its_formula_says(unigram):
    terms = np.zeros((OWNERS, V))
    for text, owner in unigram.world.batches:
        for tokens, mask, column in zip(
            text.response, text.response_mask, owner, strict=True
        ):
            if column >= 0:
                np.add.at(terms[column], tokens[mask], 1.0)
    np.testing.assert_array_equal(unigram.index["uses"], terms)
    everybody = (terms.sum(0) + 1.0) / (terms.sum() + V)
    own = (terms + 100.0 * everybody) / (terms.sum(1, keepdims=True) + 100.0)
    queries = unigram.world.queries
    for row, (tokens, mask) in enumerate(
        zip(queries.response, queries.response_mask, strict=True)
    ):
        wanted = np.log(own / everybody)[:, tokens[mask]].mean(axis=1)
        np.testing.assert_allclose(unigram.scores[row], wanted, atol=1e-6)


def test_unigram_by_hand(page):
    setup = Setup(MODEL, 2, AttributionConfig(), ClassifierConfig(), 1, MODEL)
    kernel = page.unigram(setup)
    rows = np.zeros((2, 2), np.int32) + np.asarray([[3], [5]], np.int32)
    real = np.ones((2, 2), bool)
    text = TokenBatch(rows, real, rows, real, np.arange(2, dtype=np.int32))
    batch = OwnerBatch(text, np.arange(2, dtype=np.int32))
    index = build_index(kernel, None, [batch], key=None)
    # p(3) = 3/16: owner 0 gives (2 + 18.75) / 102, owner 1 gives 18.75 / 102
    gains = np.log(np.asarray([20.75, 18.75]) / 102.0 * 16.0 / 3.0)
    scores = kernel.score(None, index, text)
    np.testing.assert_allclose(scores, [gains, gains[::-1]], atol=1e-6)


def test_grad_bias_sums_the_gradients_of_the_biases_that_there_are(both, world):
    def likelihood(params, batch):
        text = jax.tree.map(jnp.asarray, batch.text)
        of_two = jnp.asarray((batch.owner == 2).astype(np.float32))
        each = log_likelihoods(MODEL, params, text, token_weight(text, "mean"))
        return jnp.sum(of_two * each)

    gradient = jax.jit(jax.grad(likelihood))
    summed = jax.tree.map(
        jnp.add, *(gradient(world.params, batch) for batch in world.batches)
    )
    sums = both["grad_bias"].index.owner_sums
    for name in "qkv":
        wanted = summed["layers"]["attention"][name]["bias"]
        found = sums[f"layers.attention.{name}.kernel"][:, 2, 0]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert abs(wanted).max() > 1e-3
    assert abs(both["grad_bias"].scores).max() <= 1.0


def test_scores_are_float32_and_finite(made):
    assert made.scores.shape == (B, OWNERS) and made.scores.dtype == np.float32
    assert np.isfinite(made.scores).all()


def test_padding_changes_nothing(made):
    q = made.world.queries
    wide = q._replace(
        response=np.pad(
            np.where(q.response_mask, q.response, 11).astype(np.int32),
            ((0, 0), (0, 3)),
            constant_values=7,
        ),
        response_mask=np.pad(q.response_mask, ((0, 0), (0, 3))),
    )
    np.testing.assert_allclose(made.of(made.index, wide), made.scores, atol=1e-5)


def test_a_query_alone_scores_as_among_others(made):
    few = take(made.world.queries, np.asarray([5]))
    np.testing.assert_allclose(made.of(made.index, few), made.scores[5:6], atol=1e-5)


def test_permuted_owners_give_permuted_columns(made):
    perm = np.asarray([2, 0, 1], np.int32)
    moved = [
        b._replace(owner=np.where(b.owner >= 0, perm[b.owner], -1).astype(np.int32))
        for b in made.world.batches
    ]
    out = np.asarray(made.of(made.built(moved)))
    np.testing.assert_allclose(out[:, perm], made.scores, atol=1e-5)


def test_parts_merge_to_the_whole_and_an_owner_can_go(made):
    parts = (made.built([batch]) for batch in made.world.batches)
    whole = merge(made.kernel, *parts)
    np.testing.assert_allclose(made.of(whole), made.scores, atol=1e-5)
    gone = made.of(select(made.kernel, made.index, [0, 1, -1]))
    never = made.of(
        made.built(
            [
                b._replace(owner=np.where(b.owner == 2, np.int32(-1), b.owner))
                for b in made.world.batches
            ]
        )
    )
    np.testing.assert_allclose(gone, never, atol=1e-5)


def test_a_prefix_in_one_pass_scores_as_it_does_alone(unigram):
    q = unigram.world.queries
    every = unigram.kernel.prefix_score(None, unigram.index, q)
    np.testing.assert_allclose(
        last_valid(every, jnp.asarray(q.response_mask)), unigram.scores, atol=1e-6
    )
    short = q._replace(response_mask=q.response_mask & (np.arange(T) < 2))
    np.testing.assert_allclose(every[:, 1], unigram.of(unigram.index, short), atol=1e-6)


def test_an_index_lies_on_eight_devices(made):
    mesh = make_mesh()
    assert mesh.size == 8
    out = made.score(
        shard(made.world.params, mesh),
        placed_index(made.kernel, made.index, mesh),
        put_batch(made.world.queries, mesh),
    )
    np.testing.assert_allclose(out, made.scores, atol=1e-5)


def test_owners_are_named(unigram):
    owner = unigram.world.batches[0].owner
    best = unigram.scores.argmax(axis=1)
    assert (best == owner)[owner >= 0].all()


def test_a_command_knows_the_kernel_of_a_plugin(tmp_path):
    (tmp_path / "unigram.py").write_text(BLOCKS[0])
    out = subprocess.check_output(
        [sys.executable, "-m", "dareu_jax", *LIST.split()[1:]], cwd=tmp_path, text=True
    )
    assert re.search(r"unigram +log p\(token \| owner\)", out)
    assert re.search(r"watermark +p\(", out)


def test_the_example_has_about_thirty_lines():
    code = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert 30 <= len(code) <= 45
