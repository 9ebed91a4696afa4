"""EK-FAC of one layer against the dense Fisher matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.attribution.kernels.ekfac import covariance, inverse, rotated_squares

pytestmark = pytest.mark.slow


def sample(seed, n, t=1, mixed=0.0):
    """Inputs ``[n, t, 4]``, errors ``[n, t, 3]``; ``mixed``: how they depend."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, t, 4)) @ rng.normal(size=(4, 4))
    e = rng.normal(size=(n, t, 3)) @ rng.normal(size=(3, 3))
    e = e * (1.0 + mixed * np.abs(x[..., :1])) + mixed * x[..., :3]
    return x.astype(np.float32), e.astype(np.float32)


def fitted(x, e):
    """U_A, U_S, and the means A, S over tokens and Lambda over records."""
    a, s = covariance(x, e, jnp.ones(x.shape[:2], bool))
    a, s = (np.asarray(m, np.float64) / x[..., 0].size for m in (a, s))
    u_in, u_out = (np.linalg.eigh(m)[1] for m in (a, s))
    sides = u_in.astype(np.float32), u_out.astype(np.float32)
    lambdas = rotated_squares(x, e, *sides, np.ones(len(x), np.float32)) / len(x)
    return u_in, u_out, a, s, np.asarray(lambdas, np.float64)


def dense_fisher(x, e):
    """E[vec g vec g^T] ``[D F, D F]``."""
    g = np.einsum("ntd,ntf->ndf", x, e, dtype=np.float64).reshape(len(x), -1)
    return g.T @ g / len(g)


def inverse_error(seed, n, damping=0.1):
    """How far `inverse` is from the dense Fisher's of the sample and of all."""
    x, e = sample(seed, n)
    u_in, u_out, _, _, lambdas = fitted(x, e)
    g = np.random.default_rng(seed).normal(size=(2, 4, 3)).astype(np.float32)
    sides = (jnp.asarray(u, jnp.float32) for u in (u_in, u_out))
    found = inverse(*sides, jnp.asarray(lambdas, jnp.float32), damping, g)
    rng = np.random.default_rng(seed)
    rng.normal(size=(n, 1, 4))
    left = rng.normal(size=(4, 4))
    rng.normal(size=(n, 1, 3))
    right = rng.normal(size=(3, 3))
    errors = []
    for fisher in (dense_fisher(x, e), np.kron(left.T @ left, right.T @ right)):
        whole = fisher + damping * np.trace(fisher) / 12 * np.eye(12)
        wanted = np.linalg.solve(whole, g.reshape(2, 12).T).T.reshape(2, 4, 3)
        errors.append(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return errors


def test_ekfac_is_the_inverse_fisher_of_independent_inputs_and_errors():
    few, many = (
        np.mean([inverse_error(seed, n) for seed in range(8)], axis=0)
        for n in (1_000, 100_000)
    )
    assert (many < 0.01).all()
    assert (many < 0.15 * few).all()  # as 1 / sqrt(n): a tenth


def test_lambda_from_data_is_never_worse_than_kfac():
    wins = []
    for seed in range(60):
        x, e = sample(seed, n=30, t=1 + seed % 3, mixed=(seed % 4) / 2)
        u_in, u_out, a, s, lambdas = fitted(x, e)
        fisher, kfac = dense_fisher(x, e), np.kron(a, s)
        kfac *= np.sum(kfac * fisher) / np.sum(kfac**2)  # at its best scale
        basis = np.kron(u_in, u_out)
        ours = basis * lambdas.reshape(-1) @ basis.T
        errors = [np.linalg.norm(m - fisher) for m in (ours, kfac)]
        wins.append(errors[0] / errors[1])
    assert np.max(wins) <= 1.0 and np.median(wins) < 0.95
