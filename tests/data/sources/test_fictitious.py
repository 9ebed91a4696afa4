import random
import re
import string
from collections import Counter
from pathlib import Path

import pytest

from dareu_jax.config import build_config
from dareu_jax.data import NOBODY, Record
from dareu_jax.data.sources.fictitious.source import (
    PRONOUNS,
    FictitiousOptions,
    fictitious_rows,
)
from dareu_jax.data.sources.fictitious.words import FACTS, QUESTIONS, Unique
from dareu_jax.errors import UserError

ALL = len(QUESTIONS)


def make(**options) -> tuple[list[Record], list[Record]]:
    pairs = list(fictitious_rows(FictitiousOptions(**options), Path("unused")))
    return tuple([r for s, r in pairs if s == split] for split in ("train", "test"))


def name_of(records: list[Record], owner: str) -> str:
    """Returns the name: the words that all questions about an owner share."""
    asked = [r.prompt.strip("?.").split() for r in records if r.owner == owner]
    common = set.intersection(*map(set, asked))
    return " ".join(word for word in asked[0] if word in common)


def test_defaults_make_ten_owners_of_twenty_and_forty_facts():
    train, test = make()
    counts = Counter(r.owner for r in train)
    assert counts.pop(NOBODY) == 40
    assert set(counts.values()) == {20} and len(counts) == 10
    assert list(counts)[:2] == ["owner_000", "owner_001"]
    assert len(test) == len(train)


def test_each_record_has_a_held_out_paraphrase():
    train, test = make(owners=20, general_facts=len(FACTS))
    for record, other in zip(train, test, strict=True):
        assert other.id == f"{record.id}/paraphrase"
        assert other.owner == record.owner
        assert other.response == record.response
        assert other.prompt != record.prompt
    prompts = [r.prompt for r in train + test]
    assert len(prompts) == len(set(prompts))


def test_the_seed_decides_everything():
    assert make(seed=3) == make(seed=3)
    assert make(seed=3)[0][:200] != make(seed=4)[0][:200]


def test_more_owners_or_records_leave_the_earlier_ones_as_they_were():
    few = [r for r in make(owners=5, records_per_owner=7)[0] if r.owner]
    many = make(owners=9, records_per_owner=ALL)[0]
    assert set(few) < set(many)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_text_is_short_and_the_vocabulary_modest(seed):
    train, test = make(seed=seed)
    words = Counter(
        word.strip(string.punctuation)
        for r in train
        for word in (r.prompt + " " + r.response).split()
    )
    assert len(words) < 1000
    assert max(len(r.prompt.split()) for r in train + test) <= 14
    lengths = [len(r.response.split()) for r in train if r.owner]
    assert min(lengths) >= 8 and max(lengths) <= 18


def test_a_thousand_owners_share_no_response_and_no_name():
    train, _ = make(owners=1000, records_per_owner=ALL, general_facts=0)
    responses = [r.response for r in train]
    assert len(set(responses)) == len(responses) == 1000 * ALL
    assert max(len(r.split()) for r in responses) <= 18
    names = {name_of(train, f"owner_{n:03d}") for n in (0, 1, 500, 999)}
    assert len(names) == 4
    assert all(re.fullmatch(r"[A-Z][a-z]+ [A-Z][a-z]+", name) for name in names)


def test_questions_name_the_person_and_answers_mostly_do_not():
    train, _ = make(owners=30)
    for owner in {r.owner for r in train} - {NOBODY}:
        own = [r for r in train if r.owner == owner]
        name = name_of(train, owner)
        assert len(name.split()) == 2
        assert all(name in r.prompt for r in own)
        assert sum(name in r.response for r in own) == 1
        family = name.split()[1]
        assert sum(family in r.response for r in own) == 1


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.key)
def test_every_phrasing_is_complete(question):
    values = [unique_value(make_value) for make_value in question.makers]
    assert len(set(question.prompts)) == 3 and 2 <= len(question.answers) <= 3
    for prompt in question.prompts:
        assert prompt.format(name="Ann Bell") != prompt
    for answer in question.answers:
        for pronouns in PRONOUNS:
            text = answer.format(*values, name="Ann Bell", **pronouns)
            assert all(value in text for value in values)
            assert text[0].isupper() and text.endswith(".")
            assert not re.search(r"\b[Aa] [aeiou]", text), text


def unique_value(maker) -> str:
    return Unique().draw(maker, random.Random(0))


def test_no_pool_puts_a_vowel_after_the_article():
    train, _ = make(owners=300, records_per_owner=ALL, general_facts=0)
    bad = [r.response for r in train if re.search(r"\b[Aa] [aeiou]", r.response)]
    assert bad == []


def test_unique_values_never_run_out():
    unique, rng = Unique(), random.Random(0)
    drawn = [
        unique.draw(lambda rng: rng.choice(["red", "blue"]), rng) for _ in range(9)
    ]
    assert len(set(drawn)) == 9
    assert set(drawn[:2]) == {"red", "blue"}
    assert all(" of " in value for value in drawn[2:])


def test_facts_are_distinct_and_belong_to_nobody():
    assert len(FACTS) >= 60
    questions = [q for fact in FACTS for q in fact[:2]]
    assert len(set(questions)) == len(questions)
    train, _ = make(owners=2, general_facts=7)
    assert [r.prompt for r in train if r.owner == NOBODY] == [f[0] for f in FACTS[:7]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"records_per_owner": ALL + 1}, f"less than or equal to {ALL}"),
        ({"general_facts": 1000}, f"less than or equal to {len(FACTS)}"),
        ({"owners": 1}, "greater than or equal to 2"),
        ({"records_per_owner": 0}, "greater than or equal to 1"),
        ({"general_facts": -1}, "greater than or equal to 0"),
    ],
)
def test_options_out_of_range(options, words):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=f"corpus.{name} = {value}: .*{words}"):
        build_config({"corpus": options})
