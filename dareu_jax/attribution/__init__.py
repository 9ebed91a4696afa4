"""Attribution kernels: whose data does a response come from?"""

from dareu_jax.attribution.attribute import attribute
from dareu_jax.attribution.calibration import calibrated, fit_calibration, sliced
from dareu_jax.attribution.index import build_index, init_on
from dareu_jax.attribution.kernel import Kernel, OwnerBatch, Setup, last_valid
from dareu_jax.attribution.kernels.classifier import (
    attribution_accuracy,
    make_classifier,
)
from dareu_jax.attribution.store import load, read_spec, save
