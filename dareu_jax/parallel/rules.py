"""Where each array lives: its axes by name, and the mesh axes of every name.

The axes of a model's parameters follow from their path. A path matches by its end, so
one table serves parameters, their gradients and the optimiser's copies of them, under
any prefix. Other arrays, such as those of an attribution kernel, bring their axes.
"""

import math
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
    ("layers/attention/o/bias", ("layers", "embed")),
    ("layers/mlp/(gate|up)/bias", ("layers", "ffn")),
    ("layers/mlp/down/bias", ("layers", "embed")),
    ("layers/(attention|mlp)_norm(_after)?/(scale|bias)", ("layers", "embed")),
    ("final_norm/(scale|bias)", ("embed",)),
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
)

MESH_AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "ffn": "tensor",
    "head_dim": None,
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
    """Return a leaf's path in a tree as `/`-joined names."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its `path_name`."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield path_name(path), leaf


def rules_of(path: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the entries of `LOGICAL_RULES` that match a `/`-joined `path`."""
    return [rule for rule in LOGICAL_RULES if re.search(f"(^|/){rule[0]}$", path)]


def logical_axes(path: str) -> tuple[str, ...]:
    """Return the axis names of the parameter at a `/`-joined `path`."""
    matches = rules_of(path)
    if len(matches) != 1:
        rules = ", ".join(pattern for pattern, _ in matches) or "none"
        raise ValueError(
            f"parameter {path!r} must match one sharding rule, it matches {rules}; "
            "the table is dareu_jax.parallel.rules.LOGICAL_RULES"
        )
    return matches[0][1]


def table_axes(tree: Any) -> Any:
    """Return the axis names of every leaf by `LOGICAL_RULES`; scalars have none."""

    def names(path: Any, leaf: Any) -> tuple[str, ...]:
        return logical_axes(path_name(path)) if leaf.shape else ()

    return jax.tree_util.tree_map_with_path(names, tree)


def state_axes(tree: Any) -> Any:
    """Return the axis names of a method's state; what no rule names has none."""

    def names(path: Any, leaf: Any) -> tuple[str, ...]:
        known = leaf.shape and rules_of(path_name(path))
        return logical_axes(path_name(path)) if known else ()

    return jax.tree_util.tree_map_with_path(names, tree)


def shardings_for(
    abstract_tree: Any, mesh: Mesh | AbstractMesh, axes: Any = None
) -> Any:
    """Return the tree of `NamedSharding` for arrays or their shapes.

    A dimension is replicated where its name is not in `MESH_AXES`, or where the size of
    its mesh axis does not divide it. ``axes`` has a tuple of axis names for every leaf,
    none for what is replicated; by default those of `table_axes`.
    """
    axes = table_axes(abstract_tree) if axes is None else axes

    def sharding(path: Any, leaf: Any, names: tuple[str, ...]) -> NamedSharding:
        if names and len(names) != len(leaf.shape):
            raise ValueError(
                f"array {path_name(path)!r} has shape {tuple(leaf.shape)}, "
                f"its axes are {names}"
            )
        spec = (_axis(name, size, mesh) for name, size in zip(names, leaf.shape))
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, abstract_tree, axes)


def shard(tree: Any, mesh: Mesh, axes: Any = None) -> Any:
    """Move arrays to where `shardings_for` puts them, and return them."""
    return jax.device_put(tree, shardings_for(tree, mesh, axes))


def abstract_on(abstract_tree: Any, mesh: Mesh, axes: Any = None) -> Any:
    """Return shapes with the places that `shardings_for` gives them on ``mesh``."""

    def at(leaf: Any, to: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to)

    places = shardings_for(abstract_tree, mesh, axes)
    return jax.tree.map(at, abstract_tree, places)


def init_sharded(
    init_fn: Callable[..., Any],
    mesh: Mesh,
    *args: Any,
    static: tuple[int, ...] = (),
    donate: tuple[int, ...] = (),
    axes: Callable[[Any], Any] = table_axes,
    key: jax.Array | None = None,
) -> Any:
    """Return `init_fn(*args)` made in place: no device ever holds all of it.

    Arguments in ``static`` are no arrays: where they and ``init_fn`` are equal, so is
    the program. Memory of arguments in ``donate`` is given away; ``axes`` names those
    of what is made; ``key`` is given to ``init_fn`` by its name.
    """
    named = {} if key is None else {"key": key}
    made = jax.jit(init_fn, static_argnums=static).eval_shape(*args, **named)
    placed = jax.jit(
        init_fn,
        static_argnums=static,
        donate_argnums=donate,
        out_shardings=shardings_for(made, mesh, axes(made)),
    )
    return placed(*args, **named)


def _axis(
    name: str, size: int, mesh: Mesh | AbstractMesh
) -> str | tuple[str, ...] | None:
    axis = MESH_AXES.get(name)
    parts = (axis,) if isinstance(axis, str) else axis or ()
    whole = size % math.prod(mesh.shape[part] for part in parts) == 0
    return axis if whole else None
