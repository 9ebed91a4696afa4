"""The small files of a Hugging Face folder, made from a GGUF file."""

import json
from collections.abc import Callable
from pathlib import Path

from dareu_jax.data import read_tokenizer
from dareu_jax.models.hf.folder import TOKENIZER_FILES, copy_files
from dareu_jax.models.hf.gguf import GgufFile
from dareu_jax.models.hf.gguf_tokenizer import (
    check_tokens,
    generation_config,
    write_tokenizer,
)


def write_small_files(
    file: GgufFile, folder: Path, tokenizer: Path | None, say: Callable[[str], object]
) -> None:
    """Write configuration and tokenizer into ``folder``.

    The tokenizer is the one in folder ``tokenizer``, or the file's own. ``say`` is
    told what a user should know.
    """
    where = str(file.folder)
    for name, fields in (
        ("config.json", file.config),
        ("generation_config.json", generation_config(file.metadata)),
    ):
        text = json.dumps(fields, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    if tokenizer is None:
        write_tokenizer(file.metadata, folder, where, say)
    else:
        given = read_tokenizer(tokenizer, "--tokenizer")
        ids = range(given.vocab_size)
        check_tokens(file.metadata, given.hf.convert_ids_to_tokens(ids), where)
        copy_files(tokenizer, folder, TOKENIZER_FILES)
    if file.quantised:
        say(f"{where}: its weights are dequantised; they are stored {file.stored_as}")
