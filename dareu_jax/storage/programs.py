"""Where compiled programs are kept from one process to the next."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def programs_in(folder: Path | None) -> Iterator[None]:
    """Keep what is compiled inside in ``folder``, and take it from there.

    None: they stay where JAX is told to keep them, if anywhere.
    """
    if folder is None:
        yield
        return
    before = jax.config.values["jax_compilation_cache_dir"]
    _keep_in(str(folder.absolute()))
    try:
        yield
    finally:
        _keep_in(before)


def _keep_in(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # JAX looks for the folder once
