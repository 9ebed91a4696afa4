"""Memory of the host that is free, given back to the system."""

import ctypes
import sys


def give_back() -> None:
    """Give free memory back to the system, where the C library would keep it.

    What a large program has used is else counted against the process until it ends.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)
