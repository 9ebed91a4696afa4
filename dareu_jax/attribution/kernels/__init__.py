"""The attribution kernels, one a file; importing them registers them."""

from dareu_jax.attribution.kernels import arnoldi as arnoldi
from dareu_jax.attribution.kernels import classifier as classifier
from dareu_jax.attribution.kernels import controls as controls
from dareu_jax.attribution.kernels import datainf as datainf
from dareu_jax.attribution.kernels import ekfac as ekfac
from dareu_jax.attribution.kernels import gradient_dot as gradient_dot
from dareu_jax.attribution.kernels import lexical as lexical
from dareu_jax.attribution.kernels import representation as representation
from dareu_jax.attribution.kernels import tracin as tracin
from dareu_jax.attribution.kernels import trak as trak
from dareu_jax.attribution.kernels import watermark as watermark
