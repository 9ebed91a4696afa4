"""A GGUF file read as if it were a Hugging Face folder; weights are dequantised."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dareu_jax.errors import UserError
from dareu_jax.models.hf.folder import HfFolder
from dareu_jax.models.hf.gguf_config import ROPE_FACTORS, config_fields

ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA3_LAYER = {
    **LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYERS = {"llama": LAYER, "qwen2": LAYER, "qwen3": LAYER, "gemma3": GEMMA3_LAYER}
"""Architecture -> tensor of a block in the file -> in a Hugging Face folder."""
REDUNDANT = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight")
"""Tensors that follow from the configuration."""
BROKEN = (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError)
"""What the reader raises for a file that is not whole."""


class Stored(NamedTuple):
    """Where a tensor is in the file, and how it is stored there."""

    name: str
    kind: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # in PyTorch's order
    offset: int  # bytes from the start of the file
    size: int  # bytes

    def values(self, path: Path, rows: Any = slice(None)) -> np.ndarray:
        """Return a tensor's rows as float32; nothing else of the file is read."""
        from gguf.quants import dequantize

        rows_of_blocks = self.shape[:-1] or (1,)
        stored = np.memmap(path, np.uint8, "r", self.offset, (self.size,))
        raw = stored.reshape(*rows_of_blocks, -1)
        if len(self.shape) == 1:
            return np.array(dequantize(np.array(raw), self.kind))[0][rows]
        return np.array(dequantize(np.array(raw[rows]), self.kind))


class GgufFile(HfFolder):
    """Tensors of a GGUF file under their Hugging Face names, and its ``config.json``.

    Raises `UserError` for a file that is broken, of an architecture that is not
    supported, or that holds what a model of its architecture does not have.
    """

    def __init__(self, path: Path):
        self.folder = path
        self.metadata, stored = read_header(path)
        self.architecture = _architecture(self.metadata, path)
        self._stored = self._named(stored)
        self.config = config_fields(
            self.metadata,
            tied="lm_head.weight" not in self._stored,
            rope_factors=self._rope_factors(stored),
            where=str(path),
        )
        self.shapes = {name: tensor.shape for name, tensor in self._stored.items()}
        self.dtypes = {name: self._dtype(name) for name in self._stored}

    def read(self, name: str, rows: tuple[slice, ...] = ()) -> np.ndarray:
        """Return a tensor as float32, or what ``rows`` slice out of it."""
        tensor = self._stored[name]
        first, *rest = rows or (slice(None),)
        value = tensor.values(self.folder, self._order(name)[first])
        value = value[(slice(None), *rest)]
        if not np.isfinite(value).all():
            raise UserError(
                f"{self.folder}: {tensor.name} has values that are NaN or infinite"
            )
        is_norm = tensor.name.endswith("norm.weight")
        return value - 1 if is_norm and self.architecture == "gemma3" else value

    @property
    def stored_as(self) -> str:
        """How many tensors are stored as what, as a sentence says it."""
        kinds = Counter(tensor.kind.name for tensor in self._stored.values())
        return ", ".join(f"{count} as {kind}" for kind, count in kinds.most_common())

    @property
    def quantised(self) -> bool:
        """Whether any tensor is stored in fewer bits than a float16 has."""
        kinds = {tensor.kind.name for tensor in self._stored.values()}
        return not kinds <= {"F32", "F16", "BF16"}

    def _order(self, name: str) -> np.ndarray:
        """Return the row of the file that holds each row of a tensor."""
        rows = self.shapes[name][0]
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        field = heads.get(name.split(".")[-2]) if self.architecture == "llama" else None
        return unpermuted(rows, self.config[field]) if field else np.arange(rows)

    def _named(self, stored: list[Stored]) -> dict[str, Stored]:
        """Return the tensors under their Hugging Face names."""
        layers, named = LAYERS[self.architecture], {}
        for tensor in stored:
            if REDUNDANT.fullmatch(tensor.name):
                continue
            name = hf_name(tensor.name, layers)
            if name is None or len(tensor.shape) not in (1, 2):
                raise UserError(
                    f"{self.folder} has a tensor {tensor.name} of shape "
                    f"{list(tensor.shape)}; models of the architecture "
                    f"{self.architecture} have none"
                )
            _check_kind(tensor, self.folder)
            named[name] = tensor
        return named

    def _rope_factors(self, stored: list[Stored]) -> np.ndarray | None:
        found = [t for t in stored if t.name == ROPE_FACTORS]
        return found[0].values(self.folder) if found else None

    def _dtype(self, name: str) -> str:
        """Return BF16 for what bfloat16 holds without loss, F32 for all else.

        llama.cpp stores the vectors of a bfloat16 model as F32.
        """
        tensor = self._stored[name]
        if tensor.kind.name == "BF16":
            return "BF16"
        kinds = {t.kind.name for t in self._stored.values() if len(t.shape) == 2}
        if len(tensor.shape) == 1 and kinds == {"BF16"}:
            value = self.read(name)
            exact = value.astype(ml_dtypes.bfloat16).astype(np.float32) == value
            return "BF16" if exact.all() else "F32"
        return "F32"


def unpermuted(rows: int, heads: int) -> np.ndarray:
    """Return where in the file each row of a query or key projection is.

    Files of llama have the two halves of a head's rotary pairs beside each other,
    row 2j + a; Hugging Face has them one after the other, row a * size / 2 + j.
    """
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def hf_name(name: str, layers: Mapping[str, str]) -> str | None:
    """Return the Hugging Face name of a GGUF tensor; None: there is none."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None:
        return None
    layer, part, kind = found.groups()
    if layer is None:
        return f"{ENDS[part]}.{kind}" if part in ENDS else None
    return f"model.layers.{layer}.{layers[part]}.{kind}" if part in layers else None


def read_header(path: Path) -> tuple[dict[str, Any], list[Stored]]:
    """Return a file's metadata and where its tensors are; raise `UserError`."""
    try:
        if path.open("rb").read(4) != b"GGUF":
            raise UserError(
                f"{path} is no GGUF file; give a GGUF file or a Hugging Face folder"
            )
        reader = _open(path)
        metadata = {
            key: field.contents() for key, field in reader.fields.items() if field.types
        }
        stored = [
            Stored(
                name=tensor.name,
                kind=tensor.tensor_type,
                shape=tuple(int(n) for n in reversed(tensor.shape)),
                offset=int(tensor.data_offset),
                size=int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        ]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except BROKEN as error:
        raise UserError(
            f"{path} is no whole GGUF file ({error}); download it again"
        ) from None
    _check_layout(stored, int(reader.alignment), path)
    if reader.byte_order != "I":
        raise UserError(f"{path} is in the other byte order; convert it to this one's")
    return metadata, stored


def _open(path: Path) -> Any:
    """Return the `gguf` package's reader, which here notices the end of the file."""
    from gguf import GGUFReader

    class Whole(GGUFReader):
        """Raises where something is beyond the end of the file."""

        def _get(self, offset, dtype, count=1, override_order=None):
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > self.data.size:
                raise ValueError(
                    f"byte {end} is needed, it ends at byte {self.data.size}"
                )
            return super()._get(offset, dtype, count, override_order)

    return Whole(path)


def _check_layout(stored: list[Stored], alignment: int, path: Path) -> None:
    """Raise `UserError` unless each tensor begins where the one before it ends."""
    for before, after in itertools.pairwise(stored):
        end = before.offset + before.size
        if after.offset != end + -end % alignment:
            raise UserError(
                f"{path} is no whole GGUF file ({after.name} does not begin where "
                f"{before.name} ends); download it again"
            )


def _check_kind(tensor: Stored, path: Path) -> None:
    """Raise `UserError` for a type that the `gguf` package cannot dequantise."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    block = np.zeros((1, GGML_QUANT_SIZES[tensor.kind][1]), np.uint8)
    try:
        dequantize(block, tensor.kind)
    except NotImplementedError:
        raise UserError(
            f"{path}: {tensor.name} is stored as {tensor.kind.name}, which the gguf "
            "package cannot dequantise; take a file of another type, such as Q8_0"
        ) from None


def _architecture(metadata: Mapping[str, Any], path: Path) -> str:
    """Return what model a file holds; raise `UserError` where it is not supported."""
    if metadata.get("split.count", 1) > 1:
        raise UserError(
            f"{path} is one of {metadata['split.count']} parts; join them first "
            "(llama-gguf-split --merge)"
        )
    name = metadata.get("general.architecture")
    if name not in LAYERS:
        raise UserError(
            f"{path}: general.architecture = {name!r} is not supported in GGUF "
            f"files; known: {', '.join(LAYERS)}"
        )
    return name
