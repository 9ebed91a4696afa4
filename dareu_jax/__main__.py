"""`python -m dareu_jax` is `dareu`."""

from dareu_jax.cli.main import main

main()
