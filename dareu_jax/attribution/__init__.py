"""Attribution kernels: whose data does a response come from?"""

from dareu_jax.attribution.classifier import attribution_accuracy, make_classifier
from dareu_jax.attribution.kernel import (
    Kernel,
    OwnerBatch,
    build_index,
    last_valid,
)

__all__ = [
    "Kernel",
    "OwnerBatch",
    "attribution_accuracy",
    "build_index",
    "last_valid",
    "make_classifier",
]
