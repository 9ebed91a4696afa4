"""A Hugging Face model folder on disk: which tensor is where; never a pickle."""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dareu_jax.errors import UserError
from dareu_jax.parallel import is_first
from dareu_jax.storage.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth")
ADAPTER = "adapter_config.json"
SHARD_BYTES = 5 * 10**9
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template*",
)  # fmt: skip
SMALL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)


class HfFolder:
    """Tensors of a folder by name: shapes, dtypes, slices.

    Raises `UserError` for what is missing or broken: folder, ``config.json``,
    safetensors.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise UserError(f"no folder {str(folder)!r}")
        if (folder / ADAPTER).exists() and not (folder / "config.json").exists():
            raise UserError(
                f"{folder} holds a PEFT adapter, no model; give --base, the folder of "
                "the model that it adapts"
            )
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._file: dict[str, Path] = {}
        promised = self._promised()
        for path in dict.fromkeys(promised.values()) or [folder / SINGLE]:
            self._read_header(path)
        for name, path in promised.items():
            if name not in self._file:
                raise UserError(
                    f"{folder / INDEX} says that {name} is in {path.name}, it is not; "
                    "download the folder again"
                )

    def read(self, name: str, rows: tuple[slice, ...] = ()) -> np.ndarray:
        """Return a tensor, or what ``rows`` slice out; raise `UserError` for NaN.

        The file is unmapped after each call, so that pages of one tensor stay at most.
        """
        with opened(self._file[name]) as file:
            part = file.get_slice(name)
            value = np.array(part[rows] if rows else part[:])
        if not np.isfinite(value.astype(np.float32)).all():
            raise UserError(
                f"{self._file[name]}: {name} has values that are NaN or infinite"
            )
        return value

    def _promised(self) -> dict[str, Path]:
        """``{tensor: file}`` of the index; empty for a single file.

        Where both are there the single file is the model, as transformers has it; two
        whole models that differ are a `UserError`.
        """
        index = self.folder / INDEX
        promised = weight_map(index) if index.exists() else {}
        if (self.folder / SINGLE).exists():
            self._check_one_model(promised)
            return {}
        if index.exists():
            return promised
        if pickled := [p.name for kind in PICKLES for p in self.folder.glob(kind)]:
            raise UserError(
                f"{self.folder} has its weights in {pickled[0]}, a pickle, which can "
                "run code when it is read; save it as safetensors first"
            )
        raise UserError(f"{self.folder} holds neither {SINGLE} nor {INDEX}")

    def _check_one_model(self, promised: Mapping[str, Path]) -> None:
        """Raise `UserError` where an index's shards are another whole model."""
        if not promised or not _is_whole(promised):
            return
        with opened(self.folder / SINGLE) as single:
            differ = set(single.keys()) ^ promised.keys()
            same = (name for name in promised if _same(single, promised[name], name))
            differ = differ or promised.keys() - set(same)
        if differ:
            raise UserError(
                f"{self.folder} holds two models: {SINGLE} and the shards of {INDEX} "
                f"differ in {min(differ)}; move one of them away"
            )

    def _read_header(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"{path} is missing; {INDEX} names it")
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                if (other := self._file.get(name)) and not _same(file, other, name):
                    raise UserError(
                        f"{path} and {other.name} both have {name}, with other "
                        "numbers; download the folder again"
                    )
                part = file.get_slice(name)
                self.shapes[name] = tuple(part.get_shape())
                self.dtypes[name] = part.get_dtype()
                self._file[name] = path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raise `UserError` where it is none, or not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error})") from None


def weight_map(index: Path) -> dict[str, Path]:
    """Return ``{tensor: file}`` of an index; raise `UserError` where it has none."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} lacks weight_map, the file of every tensor")
    for name, file in names.items():
        is_here = isinstance(file, str) and Path(file).name == file
        if not is_here or not file.endswith(".safetensors"):
            raise UserError(
                f"{index} says that {name} is in {file!r}; only safetensors files in "
                "the same folder are read"
            )
    return {name: index.parent / file for name, file in names.items()}


def _is_whole(promised: Mapping[str, Path]) -> bool:
    """Return whether every tensor of an index is in its file."""
    for path in set(promised.values()):
        if not path.is_file():
            return False
        with opened(path) as file:
            held = set(file.keys())
        if any(at == path and name not in held for name, at in promised.items()):
            return False
    return True


def _same(one: Any, path: Path, name: str) -> bool:
    """Return whether two files hold the same numbers under a name."""
    with opened(path) as other:
        a, b = (file.get_slice(name) for file in (one, other))
        if a.get_shape() != b.get_shape() or a.get_dtype() != b.get_dtype():
            return False
        return np.array_equal(a[:], b[:])


def copy_files(source: Path, to: Path, kinds: Iterable[str] = SMALL_FILES) -> None:
    """Copy a folder's files of some kinds, by default all but weights."""
    to.mkdir(parents=True, exist_ok=True)
    for path in (path for kind in kinds for path in source.glob(kind)):
        if path.is_file():
            shutil.copyfile(path, to / path.name)


def plan_shards(
    sizes: Mapping[str, int], limit: int = SHARD_BYTES
) -> dict[str, list[str]]:
    """Return ``{file: tensors}``, each file at most ``limit`` bytes or one tensor."""
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(map(sizes.__getitem__, groups[-1])) + size > limit:
            groups.append([])
        groups[-1].append(name)
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    file = f"model-{{:05d}}-of-{len(groups):05d}.safetensors"
    return {file.format(n): group for n, group in enumerate(groups, start=1)}


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one safetensors file as transformers and PEFT read it, from process 0."""
    from safetensors.numpy import save_file

    if not is_first():
        return
    held = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(held, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # the library leaves it to its owner alone


def write_tensors(
    folder: Path,
    sizes: Mapping[str, int],
    tensors: Iterable[tuple[str, np.ndarray]],
    limit: int = SHARD_BYTES,
) -> None:
    """Write tensors, in the order of ``sizes``, as safetensors, file by file."""
    plan = plan_shards(sizes, limit)
    ready = iter(tensors)
    for file, names in plan.items():
        save_tensors(folder / file, {name: next(ready)[1] for name in names})
    if len(plan) > 1 and is_first():
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {n: file for file, names in plan.items() for n in names},
        }
        text = json.dumps(index, indent=2) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")
