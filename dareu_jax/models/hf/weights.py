"""Parameters from and to Hugging Face tensors, shard by shard."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.families.family import weights_of
from dareu_jax.models.hf.families.table import Weight
from dareu_jax.models.hf.folder import HfFolder
from dareu_jax.models.scoring import abstract_params
from dareu_jax.parallel import named_leaves, on_host, path_name, shardings_for

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float32"}
"""What tensors are taken in as: training in float16 overflows."""
NOT_WEIGHTS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
"""Ends of names of what old folders hold beside the weights: positions, masks."""
ROWS = 4096
"""Rows of a table that are compared at a time."""
WRAPPERS = {
    "_orig_mod.": "torch.compile writes them so; save model._orig_mod instead",
    "module.": "torch's DataParallel writes them so; save model.module instead",
    "base_model.model.": "PEFT writes them so; save merge_and_unload() instead",
    "pretrained_model.": "TRL writes them so; save model.pretrained_model instead",
}
"""Prefixes of the tensors of a model inside another object, and the way out."""
HEADS = {
    "v_head.": "a value head of TRL; save model.pretrained_model without it",
    "score.": "a head for classification; the model is none for text",
}
"""Tensors that are no part of a decoder."""
Index = tuple[slice, ...]


def stored_dtype(source: HfFolder) -> str:
    """Return the dtype that a folder's tensors are taken in as.

    It is bfloat16 where all of them are, else float32.
    """
    kinds = {n: k for n, k in source.dtypes.items() if not n.endswith(NOT_WEIGHTS)}
    for name, kind in kinds.items():
        if kind not in DTYPES:
            raise UserError(
                f"{source.folder}: {name} is stored as {kind}; supported: "
                f"{', '.join(DTYPES)} (quantised weights must be expanded first)"
            )
    known = set(kinds.values())
    return DTYPES[known.pop()] if len(known) == 1 else "float32"


def as_stored(source: HfFolder, cfg: DecoderConfig) -> DecoderConfig:
    """Return ``cfg``, untied where the folder's head differs from its embedding."""
    embedding, head = _embedding_and_head(cfg)
    if not cfg.tied or head not in source.shapes:
        return cfg
    shape = source.shapes[head]
    same = source.shapes.get(embedding) == shape and len(shape) == 2
    for first in range(0, shape[0] if same else 0, ROWS):
        rows = slice(first, min(first + ROWS, shape[0])), slice(0, shape[1])
        one, other = source.read(head, rows), source.read(embedding, rows)
        same = same and np.array_equal(one, other)
    return cfg if same else dataclasses.replace(cfg, tied=False)


def _embedding_and_head(cfg: DecoderConfig) -> tuple[str, str]:
    """Return the names of the embedding and of the head, where there is one."""
    table = weights_of(dataclasses.replace(cfg, tied=False))
    names = {weight.path: weight.name for weight in table}
    return names["embed/embedding"], names["lm_head/kernel"]


def check_tensors(source: HfFolder, cfg: DecoderConfig) -> None:
    """Raise `UserError` unless every tensor is there in its shape, and no other."""
    wanted, where = dict(hf_tensors(cfg)), source.folder
    _check_wrappers(source)
    for name, shape in wanted.items():
        found = source.shapes.get(name)
        if found is None:
            raise UserError(f"{where} has no tensor {name}, config.json needs it")
        if found != shape:
            raise UserError(
                f"{where}: {name} has shape {list(found)}, config.json says "
                f"{list(shape)}"
            )
    head = _embedding_and_head(cfg)[1]
    for name in source.shapes:
        spare = name == head and cfg.tied
        if name not in wanted and not spare and not name.endswith(NOT_WEIGHTS):
            raise UserError(
                f"{where} has a tensor {name} that config.json does not name"
            )


def _check_wrappers(source: HfFolder) -> None:
    """Raise `UserError` for tensors of an object around the model, or beside it."""
    for prefix, way_out in WRAPPERS.items():
        if any(name.startswith(prefix) for name in source.shapes):
            raise UserError(
                f"{source.folder}: tensors begin with {prefix!r}; {way_out}"
            )
    for prefix, kind in HEADS.items():
        if found := next((n for n in source.shapes if n.startswith(prefix)), None):
            raise UserError(f"{source.folder}: {found} is of {kind}")


def hf_tensors(cfg: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor that a decoder has in a folder."""
    shapes = {path: leaf.shape for path, leaf in named_leaves(abstract_params(cfg))}
    for weight, *_ in _by_tensor(cfg):
        shape = shapes[weight.path][1 if weight.per_layer else 0 :]
        shape = shape[::-1] if weight.transpose else shape
        if (part := weight.part) is not None:
            shape = (shape[0] // part.size * part.step, *shape[1:])
        for name in _names(weight, cfg):
            yield name, shape


def _by_tensor(cfg: DecoderConfig) -> list[list[Weight]]:
    """Return the table with the weights of one tensor together."""
    groups: dict[str, list[Weight]] = {}
    for weight in weights_of(cfg):
        groups.setdefault(weight.name, []).append(weight)
    return list(groups.values())


def load_params(
    source: HfFolder,
    cfg: DecoderConfig,
    mesh: Mesh,
    counted: Callable[[int], None] = lambda numbers: None,
) -> Any:
    """Return a decoder's parameters; every process reads what its own devices hold.

    ``counted`` is told how many more numbers of the model are loaded.
    """
    check_tensors(source, cfg)
    abstract = abstract_params(cfg)
    table = {weight.path: weight for weight in weights_of(cfg)}

    def load(path: Any, leaf: Any, sharding: NamedSharding) -> jax.Array:
        loaded = _load_leaf(source, cfg, table[path_name(path)], leaf, sharding)
        counted(leaf.size)
        return loaded

    to = shardings_for(abstract, mesh)
    return jax.tree_util.tree_map_with_path(load, abstract, to)


def _load_leaf(
    source: HfFolder,
    cfg: DecoderConfig,
    weight: Weight,
    leaf: Any,
    sharding: NamedSharding,
) -> jax.Array:
    """Return one parameter; devices that hold the same part of it share one read."""
    by_part: dict[Any, list[jax.Device]] = defaultdict(list)
    where = sharding.addressable_devices_indices_map(leaf.shape)
    for device, index in where.items():
        assert index is not None
        ends = tuple(i.indices(n)[:2] for i, n in zip(index, leaf.shape))
        by_part[ends].append(device)
    placed = []
    for ends, devices in by_part.items():
        part = tuple(slice(*pair) for pair in ends)
        block = _read_block(source, cfg, weight, part, leaf.dtype)
        placed += [jax.device_put(block, device) for device in devices]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, placed)


def _read_block(
    source: HfFolder, cfg: DecoderConfig, weight: Weight, index: Index, dtype: Any
) -> np.ndarray:
    """Return the part ``index`` of a parameter, from the tensors of its layers."""
    if not weight.per_layer:
        return _read_tensor(source, weight, weight.name, index).astype(dtype)
    layers, rest = index[0], index[1:]
    names = _names(weight, cfg)[layers]
    block = np.empty([len(names), *(i.stop - i.start for i in rest)], dtype)
    for row, name in enumerate(names):
        block[row] = _read_tensor(source, weight, name, rest)
    return block


def _read_tensor(
    source: HfFolder, weight: Weight, name: str, index: Index
) -> np.ndarray:
    """Return the part ``index`` of what a parameter has of one tensor."""
    index = index[::-1] if weight.transpose else index
    if weight.part is None:
        value = source.read(name, index)
    else:
        places = weight.part.slices(index[0])
        value = np.concatenate([source.read(name, (p, *index[1:])) for p in places])
    return value.T if weight.transpose else value


def hf_arrays(cfg: DecoderConfig, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor, whole on this host; all processes must iterate."""
    leaves = dict(named_leaves(params))
    for group in _by_tensor(cfg):
        held = [_parts(weight, cfg, leaves[weight.path]) for weight in group]
        for each in zip(*held, strict=True):
            values = [on_host(part) for _, part in each]
            yield each[0][0], _joined(group, values)


def _joined(group: list[Weight], values: list[np.ndarray]) -> np.ndarray:
    """Return the tensor that several parameters, or one, are parts of."""
    turned = [x.T if w.transpose else x for w, x in zip(group, values, strict=True)]
    if (part := group[0].part) is None:
        return turned[0]
    blocks, rest = len(turned[0]) // part.size, turned[0].shape[1:]
    whole = np.empty((blocks, part.step, *rest), turned[0].dtype)
    for weight, value in zip(group, turned, strict=True):
        assert weight.part is not None
        first, size = weight.part.start, weight.part.size
        whole[:, first : first + size] = value.reshape(blocks, size, *rest)
    return whole.reshape(-1, *rest)


def peft_arrays(cfg: DecoderConfig, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every adapter tensor under the name and in the layout of PEFT."""
    leaves = dict(named_leaves(params))
    for weight in weights_of(cfg):
        for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            leaf = leaves.get(weight.path.replace("/kernel", f"/{ours}"))
            if leaf is None or not weight.path.endswith("/kernel"):
                continue
            if weight.part is not None:
                raise UserError(
                    f"adapters of {cfg.family} cannot be written alone: several share "
                    f"{weight.name.split('.')[-2]}; leave --adapter out to merge them"
                )
            for name, part in _parts(weight, cfg, leaf):
                module = name.removesuffix(".weight")
                yield f"base_model.model.{module}.{theirs}.weight", on_host(part).T


def peft_modules(cfg: DecoderConfig, targets: tuple[str, ...]) -> list[str]:
    """Return PEFT's names of the dense layers ``targets``, such as ``q_proj``."""
    kernels = [w for w in weights_of(cfg) if w.path.endswith("/kernel")]
    names = {w.path.split("/")[-2]: w.name.split(".")[-2] for w in kernels}
    return [names[target] for target in targets if target in names]


def _parts(
    weight: Weight, cfg: DecoderConfig, leaf: jax.Array
) -> Iterator[tuple[str, jax.Array]]:
    """Yield the tensors that a parameter holds, one per layer or itself."""
    for layer, name in enumerate(_names(weight, cfg)):
        yield name, leaf[layer] if weight.per_layer else leaf


def _names(weight: Weight, cfg: DecoderConfig) -> list[str]:
    if not weight.per_layer:
        return [weight.name]
    return [weight.name.format(layer=layer) for layer in range(cfg.layers)]


def tensor_sizes(cfg: DecoderConfig) -> dict[str, int]:
    """Return the bytes of every tensor that `hf_arrays` yields, in its order."""
    width = jnp.dtype(cfg.param_dtype).itemsize
    return {name: int(np.prod(shape)) * width for name, shape in hf_tensors(cfg)}
