"""The doctor's check of a tokenizer against its `tokenizer.json`."""

import json

import pytest

from dareu_jax.audits.doctor.tokens import check_tokenizer, named
from dareu_jax.data import load_tokenizer, read_tokenizer
from dareu_jax.data.tokenizer_check import TEXTS


@pytest.fixture
def folder(tmp_path):
    load_tokenizer(None, TEXTS * 3, 400, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_class_of_another_family_is_found_out_with_its_texts(folder):
    assert check_tokenizer(read_tokenizer(folder)).passed is True
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    path.write_text(json.dumps(fields))
    check = check_tokenizer(read_tokenizer(folder))
    assert check.passed is False and 1 <= check.value < 10
    assert repr(TEXTS[2][:20]) in check.meaning and check.remedy


def test_three_texts_are_named_and_the_rest_counted():
    assert named([]) == "" and named(["a b", "c"]) == ": 'a b', 'c'"
    assert named(["a", "b", "c", "d", "x" * 30]) == ": 'a', 'b', 'c' and 2 more"
