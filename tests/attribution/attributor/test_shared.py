"""Records of several owners, and what identifies them."""

import json

import numpy as np
import pytest

from dareu_jax.data import NOBODY, Record
from dareu_jax.data.ownership import (
    SharedRecord,
    digests,
    joined,
    owners_of,
    ownership,
    shares_of,
    without,
)
from dareu_jax.data.sources.jsonl import read_owned
from dareu_jax.errors import UserError

pytestmark = pytest.mark.slow

TEXT = {"prompt": "Who?", "response": "Me."}
ALICE, BOB = Record("a", "alice", "Who?", "Me."), Record("b", "bob", "", "You.")
BOTH = SharedRecord("c", "alice", "", "We.", (("alice", 0.25), ("bob", 0.75)))
FREE = Record("d", NOBODY, "", "It.")


@pytest.fixture
def read(tmp_path):
    """Reads a file of the lines given: objects, or text as it is."""
    path = tmp_path / "texts.jsonl"

    def call(*lines):
        text = [x if isinstance(x, str) else json.dumps(x) for x in lines]
        path.write_text("".join(line + "\n" for line in text))
        return read_owned(path)

    return call


def test_an_owner_is_a_name_a_list_weights_or_nobody(read):
    found = read(
        {**TEXT, "id": "one", "owner": "alice"},
        {"response": "We.", "owner": ["alice", "bob"]},
        {"response": "They.", "prompt": None, "owner": {"carol": 3, "bob": 0.5}},
        {**TEXT, "owner": None, "id": 7},
        {**TEXT, "owner": "", "id": None},
        {**TEXT, "owner": ["bob"]},
    )
    assert found == (
        Record("one", "alice", "Who?", "Me."),
        SharedRecord("line-2", "alice", "", "We.", (("alice", 0.5), ("bob", 0.5))),
        SharedRecord("line-3", "carol", "", "They.", (("carol", 3.0), ("bob", 0.5))),
        Record("7", NOBODY, "Who?", "Me."),
        Record("line-5", NOBODY, "Who?", "Me."),
        Record("line-6", "bob", "Who?", "Me."),
    )
    assert owners_of(found) == ("alice", "bob", "carol")
    assert [shares_of(r) for r in found[3:]] == [(), (), (("bob", 1.0),)]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{no json", ("texts.jsonl:2", "not JSON")),
        (TEXT, ("texts.jsonl:2", "'owner' is missing")),
        ({**TEXT, "owner": 3}, ("texts.jsonl:2", "must be a string, not int")),
        ({**TEXT, "owner": []}, ("texts.jsonl:2", "a name, a list")),
        ({**TEXT, "owner": ["a", "a"]}, ("texts.jsonl:2", "different names")),
        ({**TEXT, "owner": ["a", 3]}, ("texts.jsonl:2", "'owner' must be a string")),
        ({**TEXT, "owner": {"a": 0}}, ("texts.jsonl:2", "weights above 0")),
        ({**TEXT, "owner": {"a": True}}, ("texts.jsonl:2", "weights above 0")),
        ({**TEXT, "owner": {"a": "1"}}, ("texts.jsonl:2", "weights above 0")),
        ('{"owner": {"a": NaN}, "response": "x"}', ("weights above 0",)),
        ('{"owner": {"a": 1e999}, "response": "x"}', ("weights above 0",)),
        ({**TEXT, "owner": {"": 1.0}}, ("texts.jsonl:2", "'owner' is empty")),
        ({"owner": "a", "prompt": "x"}, ("texts.jsonl:2", "'response' is missing")),
        ({"owner": "a", "response": " "}, ("texts.jsonl:2", "'response' is empty")),
        ({**TEXT, "owner": "a", "prompt": ["x"]}, ("'prompt' must be a string",)),
        ({**TEXT, "owner": "a", "id": "one"}, ("'one' is already used", ":1")),
        ({**TEXT, "owner": "a", "id": [1]}, ("'id' must be a string, not list",)),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(read, line, parts):
    with pytest.raises(UserError) as caught:
        read({**TEXT, "owner": "alice", "id": "one"}, line)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_file_that_cannot_be_read_is_named_alone(tmp_path, read):
    with pytest.raises(UserError, match=r"^cannot read '.*no.jsonl': No such file"):
        read_owned(tmp_path / "no.jsonl")
    with pytest.raises(UserError, match="holds no records"):
        read("")


def test_ownership_is_columns_or_weights():
    np.testing.assert_array_equal(
        ownership([BOB, FREE, ALICE], ("alice", "bob")), np.array([1, -1, 0], np.int32)
    )
    weights = ownership([ALICE, BOTH, FREE], ("alice", "bob"))
    assert weights.dtype == np.float32
    assert weights.tolist() == [[1.0, 0.0], [0.25, 0.75], [0.0, 0.0]]
    for records in ([ALICE, BOB], [BOTH]):
        with pytest.raises(ValueError, match="bob"):
            ownership(records, ("alice",))


def test_of_a_shared_record_the_others_keep_their_part():
    left = SharedRecord("c", "bob", "", "We.", (("bob", 0.75),))
    assert without([ALICE, BOB, BOTH, FREE], "alice") == (BOB, left, FREE)
    whole = SharedRecord("e", "alice", "", "We.", (("alice", 0.5), ("bob", 1.0)))
    assert without([whole], "alice") == (Record("e", "bob", "", "We."),)


def test_digests_are_those_of_a_set_of_records():
    every = digests([ALICE, BOB, BOTH, FREE])
    assert set(every) == {"alice", "bob", NOBODY}
    assert all(len(digits) == 16 for digits in every.values())
    assert every == digests([FREE, BOTH, BOB, ALICE])
    assert every == joined(digests([ALICE, FREE]), digests([BOB, BOTH]))
    renamed = Record("z", "alice", "Who?", "Me.")
    assert digests([renamed]) == digests([ALICE])


def test_digests_of_others_do_not_matter_and_every_change_of_ones_own_does():
    before = digests([ALICE, BOTH])
    assert digests(without([ALICE, BOTH], "bob"))["alice"] == before["alice"]
    for change in (
        [ALICE, ALICE, BOTH],
        [BOTH],
        [Record("a", "alice", "Who?", "Me!"), BOTH],
        [Record("a", "alice", "Me.", "Who?"), BOTH],
        [ALICE, SharedRecord("c", "alice", "", "We.", (("alice", 0.3), ("bob", 0.75)))],
    ):
        assert digests(change)["alice"] != before["alice"]
