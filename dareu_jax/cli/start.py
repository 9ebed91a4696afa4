"""Begin the program `dareu`: where it computes on a CPU, in huge pages of memory.

glibc reads its tunables when a process starts, so the process begins anew, once, before
anything is imported that takes time.
"""

import contextlib
import glob
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

VARIABLE, OFF, SET = "DAREU_HUGE_PAGES", "0", "set"
"""The variable that turns huge pages off; `SET` is in it once they were asked for."""
TUNABLES, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
SINCE = (2, 35)
"""The glibc that has the tunable."""
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
"""Device files of NVIDIA and AMD GPUs and of TPUs."""


def start() -> None:
    """Run the command line; the process has its huge pages before."""
    there = with_huge_pages(os.environ)
    if there is not None and is_own_process():
        with contextlib.suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], there)
    from dareu_jax.cli.main import main

    main()


def with_huge_pages(there: Mapping[str, str]) -> dict[str, str] | None:
    """Return an environment that has glibc ask for huge pages; None: leave it as it is.

    It is left where the user has turned them off or has the tunable already, where
    Linux gives them unasked or never, and where an accelerator computes.
    """
    given = there.get(TUNABLES, "")
    if there.get(VARIABLE) in (OFF, SET) or TUNABLE in given:
        return None
    if not (has_tunable() and are_offered(ENABLED) and computes_on_cpu(there)):
        return None
    tunables = ":".join(filter(None, (given, f"{TUNABLE}=1")))
    return {**there, TUNABLES: tunables, VARIABLE: SET}


def has_tunable() -> bool:
    """Return whether the C library is a glibc that knows the tunable."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= SINCE
    except (AttributeError, ValueError, OSError):
        return False


def are_offered(enabled: Path) -> bool:
    """Return whether Linux gives huge pages to who asks, and to nobody else."""
    try:
        return "[madvise]" in enabled.read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


def computes_on_cpu(there: Mapping[str, str]) -> bool:
    """Return whether JAX will take the CPU: as it is told to, or for want of others."""
    if platforms := there.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    return not any(glob.glob(pattern) for pattern in ACCELERATORS)


def is_own_process() -> bool:
    """Return whether this process has run this command alone, and can do it again.

    A notebook that runs the command inside itself has threads and arguments of its own.
    """
    given = sys.argv[1:]
    is_whole = sys.orig_argv[len(sys.orig_argv) - len(given) :] == given
    is_read = sys.argv[0] in ("", "-")  # a program on stdin is gone once it is read
    is_alone = threading.active_count() == 1 and "jax" not in sys.modules
    return bool(sys.executable) and is_whole and is_alone and not is_read
