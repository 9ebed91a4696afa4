"""A PEFT adapter over the folder of its base: the tensors of the merged model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from dareu_jax.errors import UserError
from dareu_jax.models.hf.folder import ADAPTER, HfFolder, opened
from dareu_jax.storage.files import read_json

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "lora_bias": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "trainable_token_indices": (),
    "layer_replication": (),
    "megatron_config": (),
}
"""Fields that change what an adapter computes, with the values that are merged here."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """scale B A: what an adapter adds to a tensor ``[F, D]``."""

    a: np.ndarray  # [r, D] float32
    b: np.ndarray  # [F, r] float32
    scale: float

    def part(self, rows: tuple[slice, ...]) -> np.ndarray:
        """Return the part of the sum that ``rows`` slice out, float32."""
        out, into = rows or (slice(None), slice(None))
        return self.scale * (self.b[out] @ self.a[:, into])


class AdaptedFolder(HfFolder):
    """A base folder whose tensors are read with a PEFT adapter merged into them.

    Raises `UserError` for an adapter that is no plain LoRA, or does not fit the base.
    """

    def __init__(self, adapter: Path, base: Path):
        if not (adapter / ADAPTER).exists():
            raise UserError(
                f"{adapter} holds no {ADAPTER}; --base is for adapters alone"
            )
        super().__init__(base)
        self.added = read_adapter(adapter)
        for name, low in self.added.items():
            found, wanted = self.shapes.get(name), (len(low.b), low.a.shape[1])
            if found != wanted:
                raise UserError(
                    f"{adapter}: the adapter of {name} is of {list(wanted)}, the base "
                    f"{base} has {'none' if found is None else list(found)}"
                )

    def read(self, name: str, rows: tuple[slice, ...] = ()) -> np.ndarray:
        """Return a tensor with its adapter, in the dtype of the base."""
        value = super().read(name, rows)
        if name not in self.added:
            return value
        merged = value.astype(np.float32) + self.added[name].part(rows)
        return merged.astype(value.dtype)


def read_adapter(folder: Path) -> dict[str, LowRank]:
    """Return what an adapter adds, by the name of the base's tensor."""
    path = folder / WEIGHTS
    scale = scale_of(read_json(folder / ADAPTER), folder / ADAPTER)
    if not path.exists():
        raise UserError(f"{path} is missing; save the adapter as safetensors")
    with opened(path) as file:
        held = {name: file.get_tensor(name) for name in sorted(file.keys())}
    sides: dict[str, dict[str, np.ndarray]] = {}
    for name, value in held.items():
        module, dot, side = name.removesuffix(".weight").rpartition(".lora_")
        if not name.startswith(PREFIX) or not dot or side not in ("A", "B"):
            raise UserError(f"{path}: {name} is no part of a plain LoRA adapter")
        tensor = f"{module.removeprefix(PREFIX)}.weight"
        sides.setdefault(tensor, {})[side] = value.astype(np.float32)
    for name, pair in sides.items():
        if (
            len(pair) != 2
            or pair["A"].ndim != 2
            or len(pair["A"]) != pair["B"].shape[1]
        ):
            raise UserError(f"{path}: lora_A and lora_B of {name} do not fit together")
        if not all(np.isfinite(x).all() for x in pair.values()):
            raise UserError(f"{path}: the adapter of {name} has values that are NaN")
    return {
        name: LowRank(pair["A"], pair["B"], scale(len(pair["A"])))
        for name, pair in sides.items()
    }


def scale_of(fields: dict[str, Any], where: Path) -> Any:
    """Return the function from rank to alpha / r, or alpha / sqrt(r) of rsLoRA."""
    for name, allowed in PLAIN.items():
        value = fields.get(name)
        if value and value not in allowed:
            raise UserError(
                f"{where}: {name} = {value!r:.60} is not supported; merge the adapter "
                "with PEFT (merge_and_unload) and import the result"
            )
    alpha = fields.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UserError(f"{where}: lora_alpha = {alpha!r} must be a number")
    if fields.get("use_rslora"):
        return lambda rank: alpha / rank**0.5
    return lambda rank: alpha / rank
