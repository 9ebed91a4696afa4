"""Mesh, sharding rules and multi-host helpers."""

from dareu_jax.parallel.freed import give_back, give_back_after_compiling
from dareu_jax.parallel.layouts import Layouts, rollout_mesh
from dareu_jax.parallel.mesh import (
    BATCH_AXES,
    abstract_mesh,
    along_batch,
    batch_devices,
    batch_sharding,
    check_divisible,
    key_of,
    make_mesh,
    put_batch,
    put_whole,
)
from dareu_jax.parallel.preemption import Preemption
from dareu_jax.parallel.processes import (
    agreed,
    connect,
    first_then_others,
    is_first,
    on_host,
    shared_out,
    together,
    wait_for_all,
)
from dareu_jax.parallel.rules import (
    abstract_on,
    init_sharded,
    named_leaves,
    path_name,
    shard,
    shardings_for,
    state_axes,
    table_axes,
)
