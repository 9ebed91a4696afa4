"""The ids of a folder are those of its `tokenizer.json`, whatever class it declares."""

import json

import pytest

from dareu_jax.data import load_tokenizer, read_tokenizer
from dareu_jax.data.tokenizer_check import TEXTS, texts_that_differ
from dareu_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A tokenizer's folder whose `tokenizer.json` decides."""
    load_tokenizer(None, TEXTS * 3, 400, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def change(path, **fields):
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(held | fields))


def test_the_texts_are_ten_of_several_scripts():
    assert len(TEXTS) == len(set(TEXTS)) == 10
    said = "".join(TEXTS)
    assert set("\n\t7Ч京서שनम½🙂") <= set(said)


def test_the_same_ids_differ_nowhere(folder):
    tokenizer = read_tokenizer(folder)
    assert tokenizer.differ == () == texts_that_differ(tokenizer.hf, tokenizer.hf)


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("config.json", {"model_type": "qwen2"}),
    ],
)
def test_a_class_of_another_family_changes_no_id(folder, file, fields):
    """transformers builds Qwen2's own rules and reads the vocabulary alone."""
    ids = [read_tokenizer(folder).encode(text) for text in TEXTS]
    change(folder / file, **fields)
    tokenizer = read_tokenizer(folder)
    assert TEXTS[2] in tokenizer.differ and TEXTS[0] not in tokenizer.differ
    assert [tokenizer.encode(text) for text in TEXTS] == ids
    assert tokenizer.adds_bos


def test_a_class_that_cannot_be_built_is_not_needed(folder):
    ids = read_tokenizer(folder).encode(TEXTS[2])
    change(folder / "tokenizer_config.json", tokenizer_class="GemmaTokenizerFast")
    tokenizer = read_tokenizer(folder)
    assert tokenizer.encode(TEXTS[2]) == ids and tokenizer.differ == TEXTS


def test_a_class_of_the_folder_is_refused(folder):
    own = {"AutoTokenizer": ["own.Own", None]}
    change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map=own)
    with pytest.raises(UserError, match="without code of its own") as told:
        read_tokenizer(folder)
    assert len(str(told.value).splitlines()) == 1


def test_a_broken_file_is_told_in_a_line(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="holds no tokenizer") as told:
        read_tokenizer(folder)
    assert len(str(told.value).splitlines()) == 1
