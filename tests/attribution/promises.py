"""What a kernel promises beyond the properties that every kernel must have.

A kernel that is not named here is held to all of it.
"""

from dareu_jax.attribution import Kernel

FORGIVEN = frozenset({"arnoldi", "constant", "random", "representation"})
"""Kernels by which a copy of an owner's record need not score that owner first."""
WEIGHTED = frozenset({"trak"})
"""Kernels on gradients that give a record a weight, and a query none."""


def names_copies(kernel: Kernel) -> bool:
    """Whether a copy of an owner's record scores that owner first."""
    return kernel.name not in FORGIVEN


def is_gram(kernel: Kernel) -> bool:
    """Whether a score by one record is a product of the same features of both."""
    on_gradients = kernel.differentiates is not None and kernel.name not in WEIGHTED
    return on_gradients or kernel.name == "representation"
