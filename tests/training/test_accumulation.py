"""The gradient of a batch, read a part at a time, is that of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.models import DecoderConfig
from dareu_jax.parallel import make_mesh, put_batch
from dareu_jax.rl import masked_mean
from dareu_jax.training.accumulation import accumulated, after, parts_of, rows_by_size

ROWS, T, D = 16, 5, 3


@pytest.fixture(scope="module")
def batch():
    """Inputs, targets and masks of rows that are 0 to T tokens long."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, T, D)).astype(np.float32)
    y = rng.normal(size=(ROWS, T)).astype(np.float32)
    return x, y, np.arange(T) < rng.integers(0, T + 1, (ROWS, 1))


def squares(w, rows):
    x, y, mask = rows
    loss = 0.5 * masked_mean((x @ w - y) ** 2, mask)
    return loss, {"loss": loss}


def tokens(rows):
    return jnp.count_nonzero(rows[2])


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 4, 1)])
@pytest.mark.parametrize("size", [None, 8, 2])
def test_the_gradient_is_the_mean_over_all_tokens(batch, size, sizes):
    """By NumPy: a mean of the parts' means would be another number."""
    x, y, mask = batch
    w = np.asarray([0.5, -1.0, 2.0], np.float32)
    error = np.where(mask, x @ w - y, 0.0)
    wanted = np.einsum("bt,btd->d", error, x) / mask.sum()
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    with jax.set_mesh(mesh):
        grads, metrics = jax.jit(
            lambda w, rows: accumulated(squares, w, rows, size=size, weight=tokens)
        )(jnp.asarray(w), put_batch(batch, mesh))
    np.testing.assert_allclose(grads, wanted, rtol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(
        0.5 * (error**2).sum() / mask.sum(), rel=1e-6
    )


def test_each_part_is_read_with_a_key_of_its_own():
    def noise(w, rows, *, key):
        drawn = jax.random.normal(key)
        return w * drawn, {"square": drawn**2}

    given = jnp.zeros(4), jnp.zeros((4, 1)), jnp.ones((4, 1), bool)
    how = {"size": 2, "weight": tokens, "key": jax.random.key(0)}
    mean, metrics = accumulated(noise, jnp.float32(1.0), given, **how)
    again, _ = accumulated(noise, jnp.float32(1.0), given, **how)
    assert float(mean) == float(again)
    assert float(metrics["square"]) > float(mean) ** 2 + 1e-3  # the draws differ


@pytest.mark.parametrize(
    ("vocab", "rows", "length", "wanted"),
    [
        (50_000, 16, 152, 4),  # 608 tokens of 512
        (50_000, 20, 80, 10),
        (50_000, 17, 152, 17),  # a part of one row would be too small
        (50_000, 16, 2048, 1),
        (50_000, 4, 16, 4),
        (40_000, 16, 2048, 16),  # a small model
    ],
)
def test_a_large_model_reads_as_few_rows_as_keep_a_cpu_busy(
    vocab, rows, length, wanted
):
    cfg = DecoderConfig(
        vocab=vocab, layers=1, embed=1024, heads=2, kv_heads=2, head_dim=8, ffn=8
    )
    assert rows_by_size(cfg, rows, length) == wanted


def test_sums_of_bfloat16_gradients_are_float32():
    w = jnp.ones(2, jnp.bfloat16)

    def loss(w, rows):
        total = jnp.sum(w.astype(jnp.float32) * rows[0])
        return total, {}

    rows = (jnp.asarray([[1.0], [2.0**-10]]), None, jnp.ones((2, 1), bool))
    grads, _ = accumulated(loss, w, rows, size=1, weight=tokens)
    assert grads.dtype == jnp.float32
    np.testing.assert_array_equal(grads, 0.5 + 2.0**-11)


def test_every_device_has_rows_of_every_part():
    mesh = make_mesh(4, 2, 1)
    with jax.set_mesh(mesh):
        parts = jax.jit(parts_of, static_argnums=1)(
            put_batch(np.arange(32, dtype=np.int32), mesh), 4
        )
    assert parts.shape == (4, 8)
    assert {s.data.shape for s in parts.addressable_shards} == {(4, 1)}
    assert sorted(np.asarray(parts).ravel()) == list(range(32))


def test_two_gradients_in_turn_share_memory_and_are_the_same():
    w, rows = jnp.eye(64) * 0.9, jnp.ones((2, 128, 64))

    def slope(x):
        def loss(w):
            layers = jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, length=64)
            return jnp.sum(layers[0])

        return jax.grad(loss)(w)

    beside = jax.jit(lambda x: slope(x[0]) + slope(2.0 * x[1]))

    def in_turn(x):
        first = slope(x[0])
        return first + after(first, lambda: slope(2.0 * x[1]))

    turn = jax.jit(in_turn)
    np.testing.assert_array_equal(turn(rows), beside(rows))
    assert jnp.isnan(turn(rows.at[0].set(jnp.nan))).all()
    sizes = [
        step.lower(rows).compile().memory_analysis().temp_size_in_bytes
        for step in (turn, beside)
    ]
    assert sizes[0] < 0.7 * sizes[1]
