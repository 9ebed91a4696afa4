"""Kernels on gradients of the response's log-likelihood: dot, cosine, projected.

G_o is the mean over the owner's records of g = grad log p(response | prompt), over the
matrices of `probe.attributed`. A positive score says that a step on the owner's data
makes the response more likely.
"""

import dataclasses

from pydantic import Field

from dareu_jax.attribution.gradients.bilinear import (
    BilinearKernel,
    bilinear,
    cosine,
    projected,
)
from dareu_jax.attribution.gradients.size import by_size, note_on
from dareu_jax.attribution.kernel import Kernel, Setup, options_of
from dareu_jax.config import Section
from dareu_jax.registry import KERNELS


class ProjectedOptions(Section):
    """The section ``attribution.projected``."""

    size: int = Field(64, ge=1)  # k a side


def on_gradients(name: str, setup: Setup) -> BilinearKernel:
    """Return the dot product of gradients, whole or projected as `by_size` says."""
    kernel = bilinear(name, setup, by_size(setup))
    return dataclasses.replace(kernel, note=note_on(name, setup))


@KERNELS.register("grad_dot", "<grad log p(query), mean gradient of the owner>")
def make_grad_dot(setup: Setup) -> Kernel:
    """Return the gradient dot product: TracIn at one checkpoint (Pruthi, 2020)."""
    return on_gradients("grad_dot", setup)


@KERNELS.register("grad_cos", "cosine of the query's gradient and the owner's mean")
def make_grad_cos(setup: Setup) -> Kernel:
    """Return the cosine to the mean gradient of the owner."""
    return cosine(on_gradients("grad_cos", setup))


@KERNELS.register(
    "projected",
    "grad_dot on factored random projections (LoGra)",
    options=ProjectedOptions,
)
def make_projected(setup: Setup) -> Kernel:
    """Return the projected gradient dot product (Choe et al., 2024), k per side."""
    own: ProjectedOptions = options_of(setup, "projected")
    return bilinear("projected", setup, projected(own.size))
