"""One side of a comparison: a process that gets ready, then measures when it is told.

`compare.py` starts such processes and tells them in turn. A line on standard input
starts a measurement; its numbers are one line of JSON on what was standard output.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Process and wall seconds of all that ran inside ``with``."""

    def __init__(self):
        self.cpu_s = self.wall_s = 0.0

    def __enter__(self):
        self._begun = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_):
        cpu, wall = self._begun
        self.cpu_s += time.process_time() - cpu
        self.wall_s += time.perf_counter() - wall

    def add(self, other: "Clock", times: int = 1) -> None:
        self.cpu_s += times * other.cpu_s
        self.wall_s += times * other.wall_s

    def facts(self, **more: Any) -> dict[str, Any]:
        """Seconds, and what else is known of the work, such as its ``tokens``."""
        return {"cpu_s": self.cpu_s, "wall_s": self.wall_s, **more}


class Orders:
    """The other end of the pipe; all that libraries print goes to standard error."""

    def __init__(self):
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def await_one(self) -> bool:
        """Wait for the next order; false: there is none left."""
        return bool(sys.stdin.readline())

    def answer(self, facts: dict[str, Any]) -> None:
        print(json.dumps(facts), file=self._answers, flush=True)


def serve(run: Callable[[int], dict[str, Any]], orders: Orders) -> None:
    """Answer every order with ``run(round)``."""
    orders.answer({"ready": True, "peak_MiB": peak_mib()})
    done = 0
    while orders.await_one():
        orders.answer({**run(done), "peak_MiB": peak_mib()})
        done += 1


def peak_mib() -> int:
    """Most resident memory that this process has had (VmHWM)."""
    with open("/proc/self/status", encoding="utf-8") as file:
        lines = [line.split() for line in file]
    return next(int(line[1]) for line in lines if line[0] == "VmHWM:") // 1024
