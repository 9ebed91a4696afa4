import pytest

from dareu_jax.data import (
    NOBODY,
    Corpus,
    Record,
    merge_others,
    shared_records,
    split_by_owner,
)
from dareu_jax.errors import UserError


def record(id: str, owner: str, text: str | None = None) -> Record:
    return Record(id, owner, f"prompt {text or id}", f"response {text or id}")


@pytest.fixture
def corpus() -> Corpus:
    train = (
        record("1", "beth"),
        record("2", NOBODY),
        record("3", "adam"),
        record("4", "beth"),
        record("5", "carl"),
    )
    test = (record("6", "beth"), record("7", "adam"), record("8", NOBODY))
    return Corpus(train, test)


def ids(records: tuple[Record, ...]) -> list[str]:
    return [r.id for r in records]


def test_owners_come_in_order_of_first_appearance_without_nobody(corpus):
    assert corpus.owners == ("beth", "adam", "carl")


def test_split_puts_every_train_record_in_exactly_one_part(corpus):
    split = split_by_owner(corpus, ["beth"])
    assert ids(split.forget) == ["1", "4"]
    assert ids(split.retain) == ["2", "3", "5"]
    assert ids(split.test) == ["7", "8"]


def test_split_does_not_depend_on_the_order_of_the_request(corpus):
    assert split_by_owner(corpus, ["adam", "beth"]) == split_by_owner(
        corpus, ("beth", "adam", "beth")
    )


@pytest.mark.parametrize(
    ("forget", "words"),
    [
        ([], ["corpus.forget", "no owner", "beth, adam, carl"]),
        (["bet"], ["corpus.forget", "unknown owner 'bet'", "did you mean 'beth'"]),
        (["adam", "zzz"], ["unknown owner 'zzz'", "3 owners"]),
        ([NOBODY], ["unknown owner ''"]),
        (["adam", "beth", "carl"], ["corpus.forget", "all 3 owners", "leave"]),
        ("beth", ["corpus.forget", "list", "[beth]"]),
    ],
)
def test_bad_requests_say_what_where_and_what_to_do(corpus, forget, words):
    with pytest.raises(UserError) as error:
        split_by_owner(corpus, forget)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_long_owner_lists_are_shortened():
    many = Corpus(tuple(record(str(n), f"o{n:02d}") for n in range(20)), ())
    with pytest.raises(UserError, match=r"20 owners: o00, .*o07, \.\.\.$"):
        split_by_owner(many, [])


def test_shared_records_reports_each_pair_of_owners_once():
    train = (
        record("1", "adam", "same"),
        record("2", "beth", "same"),
        record("3", "beth", "same"),
        record("4", NOBODY, "same"),
        record("5", "adam", "same"),
        record("6", "adam", "own"),
    )
    pairs = shared_records(Corpus(train, ()))
    assert [(a.id, b.id) for a, b in pairs] == [("1", "2"), ("1", "4")]


def test_same_prompt_with_another_response_is_not_shared(corpus):
    first = Record("a", "adam", "the same prompt", "one")
    other = Record("b", "beth", "the same prompt", "two")
    assert shared_records(Corpus((first, other), ())) == []


def test_merging_keeps_the_forget_owners_and_nobody_apart():
    rows = [Record(str(i), o, f"q{i}", "a.") for i, o in enumerate("abc")]
    corpus = Corpus((*rows, Record("n", NOBODY, "q", "a.")), (rows[0],))
    merged = merge_others(corpus, ["c"])
    assert [r.owner for r in merged.train] == ["others", "others", "c", NOBODY]
    assert merged.test[0].owner == "others" and merged.owners == ("others", "c")
