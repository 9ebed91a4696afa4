"""What a command does before it begins: the disk, JAX, the other processes."""

import os
import shutil
from pathlib import Path

from dareu_jax.errors import UserError

SMALLEST_DISK = 50 * 2**20  # bytes below which no run is begun


def read_steps(text: str) -> tuple[int, int]:
    """Returns A and B of ``A:B``; raises `UserError` where these are no steps."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile {text}: write first:last, steps from 1, as 10:13")
    return int(first), int(last)


def check_disk(folder: Path) -> None:
    """Raises `UserError` when the disk that would hold the run is full."""
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    if free < SMALLEST_DISK:
        raise UserError(
            f"{above} has {free / 2**20:.0f} MiB free, a run needs at least "
            f"{SMALLEST_DISK / 2**20:.0f}; free space or choose another --out"
        )


def prepare_jax(distributed: bool = False) -> None:
    """Keeps compiled programs in the user's cache and quiets C++ libraries.

    Joins the other processes where there are some.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    from dareu_jax.parallel import give_back_after_compiling
    from dareu_jax.storage.files import user_cache

    give_back_after_compiling()

    if (devices := jax.config.values["jax_num_cpu_devices"]) > 1:
        # devices that wait for each other hold a thread each, and programs in flight
        # together can wait for each other's devices for ever
        os.environ.setdefault("PJRT_NPROC", str(4 * devices))
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if distributed:
        from dareu_jax.parallel import connect

        connect()


def use_cpu() -> None:
    """Make the CPU the devices of this process: accelerators round products."""
    import jax

    jax.config.update("jax_platforms", "cpu")
