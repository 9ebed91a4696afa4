"""Rows -> a TFDS dataset on disk -> `Corpus`, without TensorFlow."""

import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dareu_jax.corpus.records import Corpus, Record
from dareu_jax.corpus.sources.base import Row, Source, SourceOptions
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES

FIELDS = ("id", "owner", "prompt", "response")
WRITTEN = Path("owned_text") / "1.0.0"
"""Where TFDS puts a dataset inside its folder: builder name and version."""


def load_corpus(
    source: str, options: SourceOptions, data_dir: Path, downloads: Path | None = None
) -> Corpus:
    """Returns the corpus of a source, kept as a TFDS dataset below `data_dir`.

    Downloads are kept in `downloads`, or in `data_dir` too.

    The dataset's folder is named by a hash of the source, its options and every
    record, so a changed file or option never meets older data. All rows are
    validated before anything is written; the folder appears whole or not at all.

    Raises:
      UserError: an unknown source, bad options or input, or a damaged dataset.
    """
    make: Source = SOURCES.get(source)
    rows = list(make(options, downloads or data_dir / "downloads"))
    name = f"{source}-{_digest([source, asdict(options), _plain(rows)])}"
    folder = data_dir / name
    if not (folder / WRITTEN).exists():
        _write(folder, rows)
    corpus = _read(folder, rows)
    if corpus != _corpus(rows):
        raise _damaged(folder)
    return corpus


def _corpus(rows: Sequence[Row]) -> Corpus:
    """Returns the rows by split."""
    train = tuple(record for split, record in rows if split == "train")
    return Corpus(train, tuple(record for split, record in rows if split == "test"))


def _plain(rows: Sequence[Row]) -> list[list[str]]:
    """Returns rows as lists of text."""
    return [[split, *asdict(record).values()] for split, record in rows]


def _digest(value: Any) -> str:
    """Returns the first 16 hexadecimal digits of the value's sha256."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _builder_class() -> Any:
    """Returns the TFDS builder class; made on first use, for TFDS loads slowly."""
    import tensorflow_datasets as tfds

    class LocalInfo(tfds.core.DatasetInfo):
        """Never asks Google's bucket whether it knows this dataset."""

        def initialize_from_bucket(self) -> None:
            """Does nothing; the base class would use the network."""

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


def _builder(folder: Path, rows: Sequence[Row]) -> Any:
    """Returns the TFDS builder of the dataset in `folder`, written or not."""
    return _builder_class()(rows=rows, data_dir=str(folder), file_format="array_record")


def _write(folder: Path, rows: Sequence[Row]) -> None:
    """Writes the dataset; TFDS makes a draft beside it and renames that at the end."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what it does
            _builder(folder, rows).download_and_prepare(download_config=config)
    except OSError:
        if not (folder / WRITTEN).exists():  # another process may have been first
            raise


def _read(folder: Path, rows: Sequence[Row]) -> Corpus:
    """Returns the records in `folder`, in the order in which they were yielded."""
    try:
        dataset = _builder(folder, rows)
        splits = {name: _read_split(dataset, name) for name in dict(rows)}
    except Exception as error:  # each layer below has its own errors
        raise _damaged(folder) from error
    return Corpus(splits.get("train", ()), splits.get("test", ()))


def _read_split(dataset: Any, split: str) -> tuple[Record, ...]:
    """Returns a split's records sorted by index, for TFDS stores them by hash."""
    examples = sorted(dataset.as_data_source(split), key=lambda row: row["index"])
    return tuple(
        Record(**{name: example[name].decode() for name in FIELDS})
        for example in examples
    )


def _damaged(folder: Path) -> UserError:
    """Returns the error of a dataset that does not hold what was written."""
    return UserError(
        f"dataset {folder} is damaged: it does not give back the records it was made "
        "from; delete that folder and run again"
    )
