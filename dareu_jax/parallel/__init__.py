"""Mesh, sharding rules and multi-host helpers."""

from dareu_jax.parallel.layouts import Layouts, rollout_mesh
from dareu_jax.parallel.mesh import (
    AXES,
    BATCH_AXES,
    abstract_mesh,
    along_batch,
    batch_sharding,
    check_divisible,
    key_of,
    make_mesh,
    put_batch,
)
from dareu_jax.parallel.preemption import Preemption
from dareu_jax.parallel.processes import (
    agreed,
    connect,
    first_then_others,
    gathered,
    is_first,
    on_host,
    shared_out,
    together,
    wait_for_all,
)
from dareu_jax.parallel.rules import (
    LOGICAL_RULES,
    MESH_AXES,
    init_sharded,
    logical_axes,
    named_leaves,
    path_name,
    shard,
    shardings_for,
)
from dareu_jax.parallel.throughput import Lap, Stopwatch, Work, peak_flops, rates

__all__ = [
    "AXES",
    "BATCH_AXES",
    "LOGICAL_RULES",
    "MESH_AXES",
    "Lap",
    "Layouts",
    "Preemption",
    "Stopwatch",
    "Work",
    "abstract_mesh",
    "agreed",
    "along_batch",
    "batch_sharding",
    "check_divisible",
    "connect",
    "first_then_others",
    "gathered",
    "init_sharded",
    "is_first",
    "key_of",
    "logical_axes",
    "make_mesh",
    "named_leaves",
    "on_host",
    "path_name",
    "peak_flops",
    "put_batch",
    "rates",
    "rollout_mesh",
    "shard",
    "shardings_for",
    "shared_out",
    "together",
    "wait_for_all",
]
