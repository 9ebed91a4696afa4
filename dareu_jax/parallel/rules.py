"""Where each parameter lives: path regex -> logical axes -> mesh axes.

A path matches by its end, so one table serves parameters, their gradients and the
optimiser's copies of them, under any prefix.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

LOGICAL_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("embed/embedding", ("vocab", "embed")),
    ("layers/attention/[qkv]/kernel", ("layers", "embed", "heads")),
    ("layers/attention/[qkv]/bias", ("layers", "heads")),
    ("layers/attention/o/kernel", ("layers", "heads", "embed")),
    ("layers/attention/[qk]_norm/scale", ("layers", "head_dim")),
    ("layers/attention/[qkv]/lora_a", ("layers", "embed", "rank")),
    ("layers/attention/[qkv]/lora_b", ("layers", "rank", "heads")),
    ("layers/attention/o/lora_a", ("layers", "heads", "rank")),
    ("layers/attention/o/lora_b", ("layers", "rank", "embed")),
    ("layers/mlp/(gate|up)/lora_a", ("layers", "embed", "rank")),
    ("layers/mlp/(gate|up)/lora_b", ("layers", "rank", "ffn")),
    ("layers/mlp/down/lora_a", ("layers", "ffn", "rank")),
    ("layers/mlp/down/lora_b", ("layers", "rank", "embed")),
    ("layers/mlp/(gate|up)/kernel", ("layers", "embed", "ffn")),
    ("layers/mlp/down/kernel", ("layers", "ffn", "embed")),
    ("layers/(attention|mlp)_norm/scale", ("layers", "embed")),
    ("final_norm/scale", ("embed",)),
    ("lm_head/kernel", ("embed", "vocab")),
    ("lm_head/lora_a", ("embed", "rank")),
    ("lm_head/lora_b", ("rank", "vocab")),
    ("value_head/kernel", ("embed", "value")),
    ("value_head/bias", ("value",)),
    ("owner_head/kernel", ("embed", "owners")),
    ("owner_head/bias", ("owners",)),
    ("code_head/kernel", ("embed", "symbols")),
    ("code_head/bias", ("symbols",)),
    ("symbols/embedding", ("symbols", "embed")),
    ("codes", ("owners", "symbols")),
    (r"owner_sums/[^/]+", ("layers", "owners", "gradient_in", "gradient_out")),
    (r"(inputs|vectors_in)/[^/]+", ("layers", "gradient_in", "gradient_in")),
    (r"(outputs|vectors_out)/[^/]+", ("layers", "gradient_in", "gradient_out")),
    (r"(lambdas|product)/[^/]+", ("layers", "gradient_in", "gradient_out")),
    (r"gram/[^/]+", ("layers", "gradient_in", "gradient_in")),
    (r"squares/[^/]+", ("layers",)),
    (
        r"(corrections|basis|vectors)/[^/]+",
        ("layers", "owners", "gradient_in", "gradient_out"),
    ),
    ("hessenberg", ("owners", "owners")),
    ("owner_dots", ("owners", "owners")),
    ("values", ("owners",)),
    ("states", ("owners", "embed")),
    ("terms", ("owners", "vocab")),
    ("counts", ("owners",)),
)

MESH_AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "ffn": "tensor",
    "head_dim": None,
    "gradient_in": None,
    "gradient_out": "tensor",
    "heads": "tensor",
    "layers": None,
    "owners": None,
    "rank": None,
    "symbols": None,
    "value": None,
    "vocab": "tensor",
}


def path_name(path: Any) -> str:
    """Returns a leaf's path in a tree as `/`-joined names."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields every leaf with its `path_name`."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield path_name(path), leaf


def logical_axes(path: str) -> tuple[str, ...]:
    """Returns the axis names of the parameter at a `/`-joined `path`.

    Raises:
      ValueError: no rule, or more than one, matches the path.
    """
    matches = [
        (pattern, names)
        for pattern, names in LOGICAL_RULES
        if re.search(f"(^|/){pattern}$", path)
    ]
    if len(matches) != 1:
        rules = ", ".join(pattern for pattern, _ in matches) or "none"
        raise ValueError(
            f"parameter {path!r} must match one sharding rule, it matches {rules}; "
            "the table is dareu_jax.parallel.rules.LOGICAL_RULES"
        )
    return matches[0][1]


def shardings_for(abstract_tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns the tree of `NamedSharding` for parameters or optimiser state.

    Scalars (step counts, keys) are replicated, and so is any dimension that the
    size of its mesh axis does not divide.

    Raises:
      ValueError: a path matches no rule, or its rule has another rank.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        spec = _spec(path_name(path), tuple(leaf.shape), mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract_tree)


def shard(tree: Any, mesh: Mesh) -> Any:
    """Moves parameters or optimiser state to where `shardings_for` says."""
    return jax.device_put(tree, shardings_for(tree, mesh))


def init_sharded(
    init_fn: Callable[..., Any], mesh: Mesh, *args: Any, donate: tuple[int, ...] = ()
) -> Any:
    """Returns `init_fn(*args)` made in place: no device ever holds all of it.

    The memory of the arguments whose places are in `donate` is given away.
    """
    to = shardings_for(jax.eval_shape(init_fn, *args), mesh)
    return jax.jit(init_fn, out_shardings=to, donate_argnums=donate)(*args)


def _spec(
    path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    if not shape:
        return PartitionSpec()
    names = logical_axes(path)
    if len(names) != len(shape):
        raise ValueError(f"parameter {path!r} has shape {shape}, its rule says {names}")
    return PartitionSpec(*(_axis(n, size, mesh) for n, size in zip(names, shape)))


def _axis(
    name: str, size: int, mesh: Mesh | AbstractMesh
) -> str | tuple[str, ...] | None:
    axis = MESH_AXES[name]
    if axis is None:
        return None
    parts = 1
    for one in (axis,) if isinstance(axis, str) else axis:
        parts *= mesh.shape[one]
    return axis if size % parts == 0 else None
