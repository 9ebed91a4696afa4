"""WaterDrum-Ax (Lu et al. 2026): abstracts of arXiv, 20 categories of 400 each.

Data: ``Glow-AI/WaterDrum-Ax`` on Hugging Face, MIT licence, arXiv 2505.05064; the texts
without watermark, a page at a time from the dataset viewer.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pydantic import Field

from dareu_jax.config import Section
from dareu_jax.data.records import NOBODY, Record
from dareu_jax.data.sources.base import Row, completion, json_rows, text_field
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES
from dareu_jax.storage.download import fetch
from dareu_jax.storage.files import write_whole

HOME = "https://datasets-server.huggingface.co/rows"
FULL, TEST = "full.jsonl", "test.jsonl"
CONFIGS = {FULL: "unwatermarked_forget_01", TEST: "test"}
"""The dataset's configuration of each file; the split is ``full`` in both."""
RECORDS_PER_CATEGORY = 400
PAGE = 100
"""Rows in a page, the most that the viewer gives."""
REMEDY = (
    "run again to go on where it stopped, or set corpus.path to a folder that holds "
    f"{FULL}, {TEST}"
)


class WaterdrumOptions(Section):
    """Where the abstracts are, and where each is cut."""

    path: str | None = None  # folder; none: downloaded
    prompt_words: int = Field(40, ge=1)  # the rest is the response


@SOURCES.register(
    "waterdrum_ax",
    "WaterDrum-Ax: 20 categories of arXiv, 400 each",
    options=WaterdrumOptions,
)
def waterdrum_rows(options: WaterdrumOptions, downloads: Path) -> Iterator[Row]:
    """Yield abstracts to complete: the first ``prompt_words`` words are the prompt.

    Train: row i of ``full.jsonl`` belongs to ``category_NN``, NN = i // 400. Test:
    ``test.jsonl``, nobody's. Of a shorter text the first half is the prompt.
    """
    if options.path is None:
        folder = _downloaded(downloads / "waterdrum_ax")
    else:
        folder = Path(options.path)
    full, test = (_read(folder, name, options.prompt_words) for name in CONFIGS)
    if not full or len(full) % RECORDS_PER_CATEGORY:
        raise UserError(
            f"{folder / FULL}: {len(full)} records are not {RECORDS_PER_CATEGORY} for "
            "each category; restore the original file"
        )
    for row, pair in enumerate(full):
        owner = f"category_{row // RECORDS_PER_CATEGORY:02d}"
        yield "train", Record(f"waterdrum_ax/full/{row:04d}", owner, *pair)
    for row, pair in enumerate(test):
        yield "test", Record(f"waterdrum_ax/test/{row:04d}", NOBODY, *pair)


def _read(folder: Path, name: str, prompt_words: int) -> list[tuple[str, str]]:
    """Return the (prompt, response) pairs of one file."""
    if not (folder / name).is_file():
        raise UserError(
            f"corpus.path: folder {str(folder)!r} lacks {name!r}; give a folder with "
            f"{FULL} and {TEST}, or leave corpus.path out to download them"
        )
    return [
        _pair(text_field(line, "text", where).split(), prompt_words, where)
        for where, line in json_rows(folder / name)
    ]


def _pair(words: list[str], prompt_words: int, where: str) -> tuple[str, str]:
    """Return prompt and response of a text."""
    if len(words) == 1:
        raise UserError(
            f"{where}: field 'text' is one word, too short for a prompt and a "
            "response; give it more or drop the line"
        )
    enough = len(words) > prompt_words
    return completion(words, prompt_words if enough else len(words) // 2)


def _downloaded(folder: Path) -> Path:
    """Return `folder` with both files in it."""
    for name, config in CONFIGS.items():
        if not (folder / name).exists():
            _download(config, folder / name, folder / f"{config}.pages")
    return folder


def _download(config: str, file: Path, pages: Path) -> None:
    """Write a configuration to `file`; its `pages` are kept until all are there."""
    rows, total = _page(config, 0)
    content = [rows]
    for offset in range(PAGE, total, PAGE):
        page = pages / f"{offset:06d}.jsonl"
        if not page.exists():
            write_whole(page, _page(config, offset)[0])
        content.append(page.read_bytes())
    write_whole(file, b"".join(content))
    shutil.rmtree(pages, ignore_errors=True)


def _page(config: str, offset: int) -> tuple[bytes, int]:
    """Return the texts from row `offset` on, one a line, and the number of all rows."""
    asked = {"dataset": "Glow-AI/WaterDrum-Ax", "config": config, "split": "full"}
    url = f"{HOME}?{urlencode(asked | {'offset': offset, 'length': PAGE})}"
    try:
        answer = json.loads(fetch(url, REMEDY))
        total, rows = answer["num_rows_total"], answer["rows"]
        texts = [_text(row, offset + place) for place, row in enumerate(rows)]
        if len(texts) != min(PAGE, total - offset):
            raise ValueError(f"{len(texts)} rows of {total} from row {offset} on")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{url} answers something else than the texts ({error!r}); {REMEDY}"
        ) from error
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    return lines.encode(), total


def _text(row: dict[str, Any], index: int) -> str:
    """Return the text of row `index`, or raises what is wrong with it."""
    text = row["row"]["text"]
    if row["row_idx"] != index or row.get("truncated_cells") or type(text) is not str:
        raise ValueError(f"row {index} is cut, out of place or not a text")
    return text
