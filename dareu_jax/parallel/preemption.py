"""The machine is being taken away: all processes stop behind the same step."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from dareu_jax.errors import Preempted


class Preemption:
    """Whether SIGTERM has come, to this process or to any other of the run."""

    def __init__(self) -> None:
        self._signalled = False
        self._asked = 0

    def has_come(self) -> bool:
        """The same answer in every process; all must ask equally often."""
        self._asked += 1
        if jax.process_count() == 1:
            return self._signalled
        return multihost_utils.reached_preemption_sync_point(self._asked)

    def check(self, kept: str) -> None:
        """Raise `Preempted`, which says what is ``kept``, if it has come."""
        if self.has_come():
            raise Preempted(kept)

    @contextlib.contextmanager
    def listening(self) -> Iterator["Preemption"]:
        """Take SIGTERM as a request to stop; several processes have JAX's service."""
        if jax.process_count() > 1:
            yield self
            return
        before = signal.signal(signal.SIGTERM, self._signal)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    def _signal(self, *_: Any) -> None:
        self._signalled = True
