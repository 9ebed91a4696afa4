"""A Hugging Face folder taken in once: parameters in Orbax, small files as they are."""

import dataclasses
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dareu_jax.data import Tokenizer, read_tokenizer
from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.families.family import read_config
from dareu_jax.models.hf.folder import HfFolder, read_json
from dareu_jax.models.hf.gguf import GgufFile
from dareu_jax.models.hf.gguf_files import write_small_files
from dareu_jax.models.hf.weights import load_params, stored_dtype
from dareu_jax.models.scoring import abstract_params
from dareu_jax.parallel import abstract_on, is_first, make_mesh
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.storage.files import check_new, new_folder

SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
)  # fmt: skip
SPARE_ROWS = 1024  # of the embedding, beyond the tokenizer's ids: padding
DECODER, PARAMETERS, FILES = "decoder.json", "parameters", "hf"


@dataclasses.dataclass(frozen=True)
class Imported:
    """A folder that `import_folder` has made."""

    folder: Path
    cfg: DecoderConfig
    source: str

    @property
    def files(self) -> Path:
        """The tokenizer and configuration files, as they were in the source."""
        return self.folder / FILES

    @property
    def context(self) -> int | None:
        """Tokens that the model was made for; None: its files do not say."""
        return read_json(self.files / "config.json").get("max_position_embeddings")

    def load(self, mesh: Mesh) -> Any:
        """Return the parameters, each part where ``mesh`` wants it."""
        target = abstract_on(abstract_params(self.cfg), mesh)
        with Checkpoints(self.folder / PARAMETERS, warn=lambda said: None) as saved:
            found = saved.latest(target)
        if found is None:
            raise UserError(
                f"{self.folder / PARAMETERS} cannot be read; run dareu import again"
            )
        return found[1]


def open_imported(folder: Path, key: str = "model.path") -> Imported:
    """Return what ``dareu import`` wrote to ``folder``, or raise `UserError`."""
    if not (folder / DECODER).exists():
        remedy = "give a folder that dareu import wrote"
        if (folder / "config.json").exists():
            remedy = f"run dareu import {folder} --out DIR and give DIR"
        raise UserError(f"{key}: {folder} holds no imported model; {remedy}")
    fields = read_json(folder / DECODER)
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = tuple(map(tuple, fields["rope_scaling"]))
    source = fields.pop("source")
    return Imported(folder, DecoderConfig(**fields), source)


Say = Callable[[str], object]
"""Takes one sentence for the user."""


def import_folder(
    source: Path, out: Path, say: Say = warnings.warn, tokenizer: Path | None = None
) -> Imported:
    """Read a Hugging Face folder or a GGUF file; write what a run can load.

    A folder ``tokenizer`` is taken in place of a GGUF file's own tokenizer. ``say`` is
    told what a user should know, such as that weights are dequantised.
    """
    check_new(out)
    if source.is_file():
        file = GgufFile(source)
        with tempfile.TemporaryDirectory() as files:
            write_small_files(file, Path(files), tokenizer, say)
            return _take_in(file, Path(files), out)
    if tokenizer is not None:
        raise UserError(f"--tokenizer is for a GGUF file; {source} is none")
    return _take_in(HfFolder(source), source, out)


def _take_in(model: HfFolder, files: Path, out: Path) -> Imported:
    """Write a model's parameters, and the tokenizer and configuration in ``files``."""
    source, dtype = model.folder, stored_dtype(model)
    where = source / "config.json" if source.is_dir() else source
    cfg = read_config(model.config, str(where))
    cfg = dataclasses.replace(cfg, param_dtype=dtype, compute_dtype=dtype)
    check_vocabulary(read_tokenizer(files, "tokenizer"), cfg, source)
    with new_folder(out) as draft:
        params = load_params(model, cfg, make_mesh(data=1, fsdp=-1))
        with Checkpoints(draft / PARAMETERS) as saved:
            saved.save(0, params, {})
        if is_first():
            copy_small_files(files, draft / FILES)
            fields = {"source": str(source.absolute()), **dataclasses.asdict(cfg)}
            text = json.dumps(fields, indent=1) + "\n"
            (draft / DECODER).write_text(text, encoding="utf-8")
    return open_imported(out)


def check_vocabulary(tokenizer: Tokenizer, cfg: DecoderConfig, where: Path) -> None:
    """Raises `UserError` when tokenizer and model are not of one vocabulary."""
    ids, rows = tokenizer.vocab_size, cfg.vocab
    if not 0 <= rows - ids <= SPARE_ROWS:
        raise UserError(
            f"{where}: the tokenizer has {ids} tokens, the model {rows} embeddings; "
            f"a model may have at most {SPARE_ROWS} more and none fewer"
        )


def copy_small_files(source: Path, to: Path) -> None:
    """Copies tokenizer and configuration files."""
    to.mkdir(parents=True, exist_ok=True)
    for path in (path for kind in SMALL_FILES for path in source.glob(kind)):
        if path.is_file():
            shutil.copyfile(path, to / path.name)
