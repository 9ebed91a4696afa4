"""Say for whom a process waits while the others of a run have not begun."""

import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dareu_jax.errors import ProcessAbsent

FIRST_S, EVERY_S = 10.0, 60.0
"""Seconds after which it is first said who is waited for, and said again."""
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
ESTABLISHED = "01"


class Member(NamedTuple):
    """A process among all; ``address``: host:port of process 0."""

    address: str | None
    process: int
    total: int


def begun_together(
    begin: Callable[[], None], member: Callable[[], Member], limit_s: float
) -> None:
    """Run ``begin``, which waits for all processes, and say who is missing.

    Args:
      begin: returns when all processes have come; member: this one, as far as known.
      limit_s: seconds after which nobody is waited for any more.

    Raises:
      ProcessAbsent: a process has not come in time.
    """
    done, failure = threading.Event(), []

    def beginning() -> None:
        try:
            begin()
        except Exception as error:
            failure.append(error)
        done.set()

    threading.Thread(target=beginning, daemon=True).start()
    waited, step = 0.0, min(FIRST_S, limit_s / 2)
    while not done.wait(min(step, limit_s - waited)):
        waited, step = waited + min(step, limit_s - waited), EVERY_S
        if waited >= limit_s:
            raise ProcessAbsent(
                f"--distributed: after {limit_s:.0f} s {missing(member())}; start "
                "every process with the same number and the same address of process 0"
            )
        left = f"waits up to {limit_s - waited:.0f} s more"
        print(f"dareu: {missing(member())}; {left}", file=sys.stderr, flush=True)
    if failure:
        raise failure[0]


def missing(member: Member) -> str:
    """Return in words who has not come, as far as this process can know."""
    address, process, count = member
    if address is None:
        return "the cluster has not said where process 0 is"
    if process:
        there = answers(address)
        return f"process {process} of {count} waits for " + (
            f"another process; process 0 at {address} answers"
            if there
            else f"process 0 at {address}, which does not answer"
        )
    come = max(0, len(peers(int(address.rsplit(":", 1)[1]))) - 1)  # itself comes too
    others = "process 1" if count == 2 else f"processes 1 to {count - 1}"
    lacking = max(1, count - 1 - come)
    who = others if not come else f"{lacking} of {others}"
    return f"process 0 of {count} waits for {who} at {address}"


def answers(address: str) -> bool:
    """Return whether somebody listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False


def peers(port: int) -> list[str]:
    """Return the other ends of all connections to a port of this machine."""
    found = []
    for table in TABLES:
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            _, here, there, state, *_ = row.split()
            if state == ESTABLISHED and int(here.rsplit(":", 1)[1], 16) == port:
                found.append(there)
    return found
