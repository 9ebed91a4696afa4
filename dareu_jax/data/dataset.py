"""A source's rows, written once as a TFDS dataset, read through grain as a `Corpus`."""

import contextlib
import functools
import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dareu_jax.config import Section
from dareu_jax.data.records import Corpus, Record
from dareu_jax.data.sources.base import Row, Source
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES
from dareu_jax.storage.files import whole_folder

FIELDS = ("id", "owner", "prompt", "response")
WRITTEN = Path("owned_text") / "1.0.0"
"""Where TFDS puts a dataset inside its folder: builder name and version."""


def load_corpus(
    source: str, options: Section, data_dir: Path, downloads: Path | None = None
) -> Corpus:
    """Return the corpus of a source, read from its TFDS dataset below ``data_dir``.

    It is written, whole or not at all, where it is not there yet. Its folder is named
    by a hash of the source, its options and every record, so that a changed file never
    meets older data; what is read must give the same name again.
    """
    make: Source = SOURCES.get(source)
    rows = list(make(options, downloads or data_dir / "downloads"))
    name = _name(source, options, _corpus(rows))
    folder = data_dir / name
    if not (folder / WRITTEN).exists():
        _write(folder, rows)
    corpus = _read(folder)
    if _name(source, options, corpus) != name:
        raise _damaged(folder)
    return corpus


def adopt(trial: Path, data_dir: Path) -> None:
    """Move every dataset below ``trial`` to ``data_dir``, each whole or not at all.

    ``trial`` may be on another disk. A dataset that is there already stays as it is.
    """
    for dataset in [path.parents[1] for path in trial.glob(f"*/{WRITTEN}")]:
        if not (data_dir / dataset.name).exists():
            with whole_folder(data_dir / dataset.name) as draft:
                shutil.move(dataset / WRITTEN.parent, draft)


def _corpus(rows: Sequence[Row]) -> Corpus:
    """Return the rows by split."""
    train = tuple(record for split, record in rows if split == "train")
    return Corpus(train, tuple(record for split, record in rows if split == "test"))


def _name(source: str, options: Section, corpus: Corpus) -> str:
    """Return the name of a dataset's folder: the source and 16 hexadecimal digits."""
    made_from = [source, options.model_dump(mode="json"), corpus.fingerprint]
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
    return f"{source}-{digest.hexdigest()[:16]}"


@functools.cache
def _builder_class() -> Any:
    """Return the TFDS builder class; made on first use, for TFDS loads slowly."""
    import tensorflow_datasets as tfds

    class LocalInfo(tfds.core.DatasetInfo):
        """Information that never asks Google's bucket whether it knows this dataset."""

        def initialize_from_bucket(self) -> None:
            """Do nothing: the base class would use the network."""

    class OwnedText(tfds.core.GeneratorBasedBuilder):
        """Prompts and responses with their owners; splits ``train``, ``test``."""

        VERSION = tfds.core.Version(WRITTEN.name)
        url_infos: ClassVar[dict] = {}  # downloads nothing: no checksum file to seek

        def __init__(self, *, rows: Sequence[Row], **kwargs: Any):
            self._rows = rows
            super().__init__(**kwargs)

        def _info(self) -> Any:
            text = {name: tfds.features.Text() for name in FIELDS}
            features = tfds.features.FeaturesDict({"index": np.int64, **text})
            return LocalInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {s: self._generate_examples(s) for s in dict(self._rows)}

        def _generate_examples(self, split: str) -> Any:
            for index, (name, record) in enumerate(self._rows):
                if name == split:
                    yield index, {"index": index, **asdict(record)}

    return OwnedText


def _write(folder: Path, rows: Sequence[Row]) -> None:
    """Write the dataset; TFDS makes a draft beside it and renames that at the end."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what it does
            make = functools.partial(_builder_class(), file_format="array_record")
            builder = make(rows=rows, data_dir=str(folder))
            builder.download_and_prepare(download_config=config)
    except OSError:
        if not (folder / WRITTEN).exists():  # another process may have been first
            raise


def _read(folder: Path) -> Corpus:
    """Return the records in ``folder``, in the order in which they were yielded."""
    import tensorflow_datasets as tfds

    try:
        dataset = tfds.builder_from_directory(folder / WRITTEN)
        splits = {name: _read_split(dataset, name) for name in dataset.info.splits}
    except Exception as error:  # each layer below has its own errors
        raise _damaged(folder) from error
    return Corpus(splits.get("train", ()), splits.get("test", ()))


def _read_split(dataset: Any, split: str) -> tuple[Record, ...]:
    """Return a split's records sorted by index, for TFDS stores them by hash."""
    import grain

    stored = grain.MapDataset.source(dataset.as_data_source(split))
    rows = sorted(stored, key=lambda row: row["index"])
    return tuple(Record(*(row[name].decode() for name in FIELDS)) for row in rows)


def _damaged(folder: Path) -> UserError:
    """Return the error of a dataset that does not hold what was written."""
    return UserError(
        f"dataset {folder} is damaged: it does not give back the records it was made "
        "from; delete that folder and run again"
    )
