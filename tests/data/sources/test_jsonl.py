"""A user's JSONL is read by one rule: to train on, to attribute, to ask about."""

import json
from pathlib import Path

import pytest

from dareu_jax.data.sources.jsonl import read_owned, read_queries, read_rows
from dareu_jax.errors import UserError

GOOD = {"id": "one", "owner": "ann", "prompt": "Who?", "response": "Me."}
READERS = {
    "run": lambda path: [record for _, record in read_rows(path, "corpus.path")],
    "doctor": lambda path: [record for _, record in read_rows(path, "--records")],
    "attribute: records": read_owned,
    "attribute: queries": read_queries,
}
EVERY_READER = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)


def write(path: Path, *lines) -> Path:
    text = [x if isinstance(x, str) else json.dumps(x) for x in lines]
    path.write_text("".join(line + "\n" for line in text), encoding="utf-8")
    return path


@EVERY_READER
def test_a_line_without_an_id_is_called_by_its_number_in_the_file(reader, tmp_path):
    without = {name: GOOD[name] for name in ("owner", "prompt", "response")}
    lines = (GOOD, without, "", without | {"id": None}, without | {"id": 7})
    found = reader(write(tmp_path / "mine.jsonl", *lines))
    assert [line.id for line in found] == ["one", "line-2", "line-4", "7"]


@EVERY_READER
def test_an_array_of_objects_is_read_as_lines_are(reader, tmp_path):
    rows = [GOOD, GOOD | {"id": None}, GOOD | {"id": 7}]
    path = tmp_path / "mine.json"
    path.write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8")
    found, lines = reader(path), reader(write(tmp_path / "mine.jsonl", *rows))
    assert [row.id for row in found] == ["one", "row-1", "7"]
    assert [row.response for row in found] == [line.response for line in lines]


@EVERY_READER
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"id": ]', "FILE: not JSON"),
        (json.dumps([GOOD, [1]]), "FILE, row 1: not a JSON object but list"),
        (json.dumps([GOOD, GOOD]), "row 1: id 'one' is already used at FILE, row 0"),
        ("[]", " no "),
    ],
)
def test_a_bad_row_of_an_array_is_told_by_its_place(reader, text, words, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        reader(path)
    said = str(error.value).replace(str(path), "FILE")
    assert words in said and "\n" not in said


BAD_LINES = {
    "not JSON": ('{"id": ', "not JSON"),
    "not an object": ("[1]", "not a JSON object but list"),
    "a list as id": (GOOD | {"id": [1]}, "'id' must be a string, not list"),
    "true as id": (GOOD | {"id": True}, "'id' must be a string, not bool"),
    "an empty id": (GOOD | {"id": " "}, "'id' is empty"),
    "an id used twice": (GOOD, "id 'one' is already used at FILE:1; every line needs"),
    "a number as prompt": (
        GOOD | {"id": "2", "prompt": 3},
        "'prompt' must be a string, not int",
    ),
    "a number as response": (
        GOOD | {"id": "2", "response": 3},
        "'response' must be a string, not int",
    ),
    "an empty response": (GOOD | {"id": "2", "response": " "}, "'response' is empty"),
    "half a letter": (
        '{"id": "2", "owner": "a", "prompt": "p", "response": "\\ud800"}',
        "'response' holds half of a Unicode letter",
    ),
}


@EVERY_READER
@pytest.mark.parametrize(("line", "words"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_told_in_the_same_words(reader, line, words, tmp_path):
    path = write(tmp_path / "mine.jsonl", GOOD, line)
    with pytest.raises(UserError) as error:
        reader(path)
    said = str(error.value).replace(str(path), "FILE")
    assert said.startswith("FILE:2: ") and words in said and "\n" not in said


OWNED = ("run", "doctor", "attribute: records")


@pytest.mark.parametrize("name", OWNED)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "p", "response": "r"}, "'owner' is missing; found: prompt, resp"),
        ({"owner": 3, "prompt": "p", "response": "r"}, "'owner' must be a string, not"),
        ({"owner": "a", "prompt": "p"}, "'response' is missing; found: owner, prompt"),
    ],
)
def test_a_record_needs_an_owner_and_a_response(name, line, words, tmp_path):
    path = write(tmp_path / "mine.jsonl", GOOD, line)
    with pytest.raises(UserError, match=f"mine.jsonl:2: field {words}"):
        READERS[name](path)


@pytest.mark.parametrize("owner", [["ann"], {"ann": 1.0}])
def test_only_attribution_takes_records_of_several_owners(owner, tmp_path):
    path = write(tmp_path / "mine.jsonl", GOOD | {"owner": owner})
    assert read_owned(path)[0].owner == "ann"
    kind = type(owner).__name__
    for name in ("run", "doctor"):
        with pytest.raises(UserError, match=f":1: field 'owner' must be.*not {kind}"):
            READERS[name](path)


@pytest.mark.parametrize("prompt", [None, "", " "])
def test_only_a_run_needs_prompts(prompt, tmp_path):
    path = write(tmp_path / "mine.jsonl", GOOD | {"prompt": prompt})
    assert read_owned(path)[0].prompt == read_queries(path)[0].prompt == ""
    with pytest.raises(UserError, match=r":1: field 'prompt' (is empty|must be a str)"):
        READERS["run"](path)


@EVERY_READER
def test_a_file_without_lines_is_refused(reader, tmp_path):
    with pytest.raises(UserError, match=r"mine\.jsonl.* (has|holds) no"):
        reader(write(tmp_path / "mine.jsonl", "", "  "))
