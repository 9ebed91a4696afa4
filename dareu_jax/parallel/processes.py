"""Several processes as one: who goes first, what all agree on, whole arrays on hosts.

Every function here that waits must be called by every process, in the same order.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from dareu_jax.errors import ProcessLost, UserError, first_line
from dareu_jax.parallel.waiting import Member, begun_together

T = TypeVar("T")
HEARTBEAT_S = 60
"""Seconds of silence after which a process counts as gone."""
COORDINATOR = "JAX_COORDINATOR_ADDRESS"
PROCESSES, PROCESS = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
WAIT, WAIT_S = "DAREU_WAIT_S", 300
"""Seconds to wait for the other processes at the start, and where they are set."""


def connect() -> None:
    """Join the other processes of a run; call it before anything touches a device.

    Where JAX knows the cluster (Cloud TPU, GKE, Slurm) nothing needs to be said;
    elsewhere the environment has ``JAX_COORDINATOR_ADDRESS`` (host:port of process 0),
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. Who is waited for is said after ten
    seconds; ``DAREU_WAIT_S`` has the seconds after which the wait ends (300).

    Raises:
      ProcessAbsent: a process has not come in time.
      UserError: a setting is missing or no number.
    """
    given = {x: os.environ.get(x) for x in (COORDINATOR, PROCESSES, PROCESS)}
    here: dict[str, Any] = {}
    if given[COORDINATOR]:
        here = {
            "coordinator_address": given[COORDINATOR],
            "num_processes": _number(PROCESSES, given[PROCESSES]),
            "process_id": _number(PROCESS, given[PROCESS]),
        }
    wait_s = max(1, _number(WAIT, os.environ.get(WAIT, str(WAIT_S))))
    begin = functools.partial(
        jax.distributed.initialize,
        **here,
        heartbeat_timeout_seconds=HEARTBEAT_S,
        initialization_timeout=wait_s + HEARTBEAT_S,  # our own wait ends before
    )
    try:
        begun_together(begin, _member, wait_s)
    except ValueError as error:
        raise UserError(
            f"--distributed: {first_line(error)}; off a TPU pod set "
            f"{COORDINATOR}=host:port, {PROCESSES} and {PROCESS} for every process"
        ) from error
    except RuntimeError as error:
        raise ProcessLost(
            f"--distributed: the other processes cannot be reached: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise `ProcessLost` for an error of JAX or a disk in one of several processes."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, OSError) as error:
        if jax.process_count() == 1:
            raise
        raise ProcessLost(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on, "
            f"most likely because another has ended: {first_line(error)}; "
            "the last checkpoint stays, start all of them again with the same command"
        ) from error


def _member() -> Member:
    """Return who this process is, as JAX has found out."""
    known = distributed.global_state
    return Member(known.coordinator_address, known.process_id, known.num_processes)


def _number(name: str, text: str | None) -> int:
    if text is None or not text.isdecimal():
        raise UserError(f"{name} must be a number, it is {text!r}")
    return int(text)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has come this far; ``what`` names the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def gathered(value: Any) -> list[Any]:
    """What every process has in this place, in their order; anything JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, sizes, strict=True)]


def agreed(value: T) -> T:
    """What process 0 has in this place, for all."""
    return gathered(value if is_first() else None)[0]


def first_then_others(make: Callable[[], T]) -> T:
    """``make()`` in process 0, then in the others, which find what it wrote."""
    if jax.process_count() == 1:
        return make()
    failure: BaseException | None = None
    if is_first():
        try:
            out = make()
        except Exception as error:
            failure = error
    is_done = agreed(failure is None)
    if failure is not None:
        raise failure
    if not is_done:
        raise UserError("process 0 stopped; its own message says why")
    return out if is_first() else make()


def on_host(tree: Any) -> Any:
    """Arrays of any sharding as whole numpy arrays, in every process."""

    def whole(leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array)
        if is_array and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(whole, tree)


def shared_out(work: Callable[..., list[Any]], *rows: Sequence[Any]) -> list[Any]:
    """``work(*rows)``, a list as long as each; every process does its share."""
    count, own = jax.process_count(), jax.process_index()
    if count == 1:
        return work(*rows)
    parts = gathered(work(*(each[own::count] for each in rows)))
    return [parts[i % count][i // count] for i in range(len(rows[0]))]
