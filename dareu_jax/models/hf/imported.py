"""A Hugging Face folder taken in once: parameters in Orbax, small files as they are."""

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dareu_jax.data import Tokenizer, read_tokenizer
from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.adapter import AdaptedFolder
from dareu_jax.models.hf.families.family import read_config
from dareu_jax.models.hf.folder import HfFolder, copy_files
from dareu_jax.models.hf.gguf import GgufFile
from dareu_jax.models.hf.gguf_files import write_small_files
from dareu_jax.models.hf.weights import as_stored, load_params, stored_dtype
from dareu_jax.models.scoring import abstract_params, parameters
from dareu_jax.parallel import abstract_on, is_first, make_mesh
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.storage.files import check_new, new_folder, read_json

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
    for name in ("rotated", "windowed"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    if "family" not in fields:
        fields["family"] = read_json(folder / FILES / "config.json").get("model_type")
    source = fields.pop("source")
    fields.pop("remat", None)  # a run says it
    return Imported(folder, DecoderConfig(**fields), source)


Say = Callable[[str], object]
"""Takes one sentence for the user."""
Shown = Callable[[float], object]
"""Takes the share of the work that is done."""


def import_folder(
    source: Path,
    out: Path,
    *,
    base: Path | None = None,
    tokenizer: Path | None = None,
    say: Say = warnings.warn,
    shown: Shown = lambda share: None,
) -> Imported:
    """Read a Hugging Face folder or a GGUF file; write what a run can load.

    Args:
      source: the folder of a model, or of a PEFT adapter, or a GGUF file.
      out: the new folder.
      base: of an adapter: the folder of the model that it adapts.
      tokenizer: of a GGUF file: a folder that is taken in place of its own.
      say: is told what is taken in otherwise than it is stored.
      shown: is told which share of the parameters is read.

    Raises:
      UserError: the model would compute something else here; nothing is written.
    """
    check_new(out)
    if source.is_file():
        file = GgufFile(source)
        with tempfile.TemporaryDirectory() as files:
            write_small_files(file, Path(files), tokenizer, say)
            return _take_in(file, Path(files), out, say, shown)
    if tokenizer is not None:
        raise UserError(f"--tokenizer is for a GGUF file; {source} is none")
    folder = HfFolder(source) if base is None else AdaptedFolder(source, base)
    return _take_in(folder, folder.folder, out, say, shown)


def _take_in(
    model: HfFolder, files: Path, out: Path, say: Say, shown: Shown
) -> Imported:
    """Write a model's parameters, and the tokenizer and configuration in ``files``."""
    source, dtype = model.folder, stored_dtype(model)
    if "F16" in model.dtypes.values():
        say(f"{source}: float16 weights are taken in as float32, to be trained safely")
    where = source / "config.json" if source.is_dir() else source
    read = read_config(model.config, str(where), say)
    cfg = as_stored(model, read)
    if cfg.tied != read.tied:
        say(
            f"{source}: lm_head.weight differs from the embedding, so it is a head of "
            "its own, though config.json says tie_word_embeddings"
        )
    cfg = dataclasses.replace(cfg, param_dtype=dtype, compute_dtype=dtype)
    tokenizer = read_tokenizer(files, "tokenizer")
    if note := check_vocabulary(tokenizer, cfg, source):
        say(note)
    if tokenizer.differ:
        say(
            f"{source}: the tokenizer class that transformers takes gives other ids "
            f"than tokenizer.json, as of {tokenizer.differ[0]!r:.40}; those of "
            "tokenizer.json are used"
        )
    with new_folder(out) as draft:
        mesh = make_mesh(data=1, fsdp=-1)
        params = load_params(model, cfg, mesh, _share(cfg, shown))
        with Checkpoints(draft / PARAMETERS) as saved:
            saved.save(0, params, {})
        if is_first():
            copy_files(files, draft / FILES)
            fields = {"source": str(source.absolute()), **dataclasses.asdict(cfg)}
            text = json.dumps(fields, indent=1) + "\n"
            (draft / DECODER).write_text(text, encoding="utf-8")
    return open_imported(out)


def _share(cfg: DecoderConfig, shown: Shown) -> Callable[[int], None]:
    """Return a function that is told of more numbers read, and shows their share."""
    total, read = parameters(cfg), 0

    def counted(numbers: int) -> None:
        nonlocal read
        read += numbers
        shown(read / total)

    return counted


def check_vocabulary(
    tokenizer: Tokenizer, cfg: DecoderConfig, where: Path
) -> str | None:
    """Raise `UserError` where a token that text can have has no embedding.

    A padding token without an embedding is not needed: return what is used instead.
    """
    hf, rows = tokenizer.hf, cfg.vocab
    beyond = sorted(id for id in hf.get_vocab().values() if id >= rows)
    names = hf.convert_ids_to_tokens(beyond)
    if beyond and beyond != [hf.pad_token_id]:
        raise UserError(
            f"{where}: the tokenizer has tokens that the model has no embedding of: "
            f"{', '.join(map(repr, names[:8]))}{', ...' * (len(names) > 8)}; the model "
            f"has {rows}; resize its embeddings, or take those tokens out"
        )
    if not beyond:
        return None
    return f"{where}: {names[0]!r} has no embedding; eos is used for padding instead"
