"""Kernels on gradients of the response's log-likelihood: dot, cosine, projected.

G_o is the mean over the owner's records of g = grad log p(response | prompt), over the
matrices of `probe.attributed`. A positive score says that a step on the owner's data
makes the response more likely.
"""

from dareu_jax.attribution.bilinear import bilinear, cosine, exact, projected
from dareu_jax.attribution.kernel import Kernel, Setup
from dareu_jax.registry import KERNELS


@KERNELS.register("grad_dot", "<grad log p(query), mean gradient of the owner>")
def make_grad_dot(setup: Setup) -> Kernel:
    """Gradient dot product: TracIn at one checkpoint (Pruthi et al., 2020)."""
    return bilinear("grad_dot", setup, exact())


@KERNELS.register("grad_cos", "cosine of the query's gradient and the owner's mean")
def make_grad_cos(setup: Setup) -> Kernel:
    """Cosine to the mean gradient of the owner."""
    return cosine(bilinear("grad_cos", setup, exact()))


@KERNELS.register("projected", "grad_dot on factored random projections (LoGra)")
def make_projected(setup: Setup) -> Kernel:
    """Projected gradient dot product (Choe et al., 2024), k per side."""
    return bilinear("projected", setup, projected(setup.cfg.projection_size))
