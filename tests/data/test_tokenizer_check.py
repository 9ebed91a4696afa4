"""A tokenizer's ids against those of the `tokenizer.json` in its folder."""

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
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_texts_are_ten_of_several_scripts():
    assert len(TEXTS) == len(set(TEXTS)) == 10
    said = "".join(TEXTS)
    assert set("\n\t7Ч京서שनم½🙂") <= set(said)


def test_the_same_ids_differ_nowhere(folder):
    assert texts_that_differ(read_tokenizer(folder), folder) == []


def test_a_class_that_splits_words_in_another_way_is_found_out(folder):
    """transformers builds Qwen2's own rules and reads the vocabulary alone."""
    change(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    tokenizer = read_tokenizer(folder)
    differ = texts_that_differ(tokenizer, folder)
    assert TEXTS[2] in differ and TEXTS[0] not in differ
    assert texts_that_differ(tokenizer, folder, TEXTS[:1]) == []


def test_special_tokens_cuts_and_fills_of_the_file_do_not_count(folder):
    tokenizer = read_tokenizer(folder)
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst"}
    fill = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    first = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}]
    first.append({"Sequence": {"id": "A", "type_id": 0}})
    both = [{"Sequence": {"id": x, "type_id": 0}} for x in "AB"]
    bos = {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}}
    begins = {"type": "TemplateProcessing", "single": first, "pair": both}
    begins["special_tokens"] = bos
    change(
        folder / "tokenizer.json",
        truncation=cut | {"stride": 0},
        padding=fill,
        post_processor=begins,
    )
    assert texts_that_differ(tokenizer, folder) == []


def test_a_folder_without_the_file_has_nothing_to_compare(folder, tmp_path):
    assert texts_that_differ(read_tokenizer(folder), tmp_path) is None


def test_a_broken_file_is_told_in_a_line(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read") as told:
        texts_that_differ(read_tokenizer(folder), tmp_path)
    assert len(str(told.value).splitlines()) == 1
