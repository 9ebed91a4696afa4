"""Tests run on 8 CPU devices, with strict dtype promotion and without a network."""

import os
import socket
import tempfile
from pathlib import Path

CACHE = os.environ.get(
    "DAREU_TEST_CACHE", os.path.join(tempfile.gettempdir(), "dareu_jax_test_cache")
)
os.environ.update(
    JAX_PLATFORMS="cpu",
    HF_HUB_OFFLINE="1",
    JAX_COMPILATION_CACHE_DIR=CACHE,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

REPO = Path(__file__).resolve().parent.parent
LOCAL = ("127.", "localhost", "::1", "0.0.0.0")


def _only_local(connect):
    def guarded(self, address):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(LOCAL):
            raise OSError(f"a test tried to reach {address}; tests use no network")
        return connect(self, address)

    return guarded


socket.socket.connect = _only_local(socket.socket.connect)
socket.socket.connect_ex = _only_local(socket.socket.connect_ex)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets, if this machine has one."""
    folder = Path(os.environ.get("DAREU_DATA", REPO.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set DAREU_DATA to the folder that has it")
    return folder
