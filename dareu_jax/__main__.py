"""`python -m dareu_jax` is `dareu`."""

from dareu_jax.cli.start import start

start()
