"""Attribution kernels: whose data does a response come from?"""

from dareu_jax.attribution import arnoldi as arnoldi
from dareu_jax.attribution import controls as controls
from dareu_jax.attribution import datainf as datainf
from dareu_jax.attribution import ekfac as ekfac
from dareu_jax.attribution import ensemble as ensemble
from dareu_jax.attribution import gradients as gradients
from dareu_jax.attribution import lexical as lexical
from dareu_jax.attribution import representation as representation
from dareu_jax.attribution import trak as trak
from dareu_jax.attribution import watermark as watermark
from dareu_jax.attribution.calibration import calibrated, fit_calibration, sliced
from dareu_jax.attribution.classifier import attribution_accuracy, make_classifier
from dareu_jax.attribution.kernel import (
    Kernel,
    OwnerBatch,
    Setup,
    build_index,
    init_on,
    last_valid,
)

__all__ = [
    "Kernel",
    "OwnerBatch",
    "Setup",
    "attribution_accuracy",
    "build_index",
    "calibrated",
    "fit_calibration",
    "init_on",
    "last_valid",
    "make_classifier",
    "sliced",
]
