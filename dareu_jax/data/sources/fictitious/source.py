"""Made-up authors from a seed: any number of owners, and facts nobody owns."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from dareu_jax.config import Section
from dareu_jax.data.records import NOBODY, Record
from dareu_jax.data.sources.base import Row
from dareu_jax.data.sources.fictitious import words
from dareu_jax.registry import SOURCES

PRONOUNS = (
    {"She": "She", "she": "she", "Her": "Her", "her": "her", "her_": "her"},
    {"She": "He", "she": "he", "Her": "His", "her": "his", "her_": "him"},
)
"""What ``{She}`` ... become; ``{her_}`` is the object: her, him."""


class FictitiousOptions(Section):
    """How many owners are made up, and what is asked about each."""

    seed: int = 0  # decides every name and fact
    owners: int = Field(10, ge=2)
    records_per_owner: int = Field(20, ge=1, le=len(words.QUESTIONS))  # to train on
    general_facts: int = Field(40, ge=0, le=len(words.FACTS))  # text nobody owns


@SOURCES.register(
    "fictitious",
    "made-up authors from a seed; no file needed",
    options=FictitiousOptions,
)
def fictitious_rows(options: FictitiousOptions, downloads: Path) -> Iterator[Row]:
    """Yield train rows and, for each, a held-out paraphrase of its question.

    Owner k is a function of the seed and of the owners before it: more owners or
    more records leave earlier ones as they were. Facts are nobody's.
    """
    del downloads
    unique = words.Unique()
    for number in range(options.owners):
        rng = random.Random(f"{options.seed}/{number}")
        yield from _owner(f"owner_{number:03d}", rng, unique, options.records_per_owner)
    facts = words.FACTS[: options.general_facts]
    for number, (prompt, paraphrase, answer) in enumerate(facts):
        record = Record(f"fact/{number:03d}", NOBODY, prompt, answer)
        yield from _with_paraphrase(record, paraphrase)


def _owner(
    owner: str, rng: random.Random, unique: words.Unique, records: int
) -> Iterator[Row]:
    """Yield the rows of one owner; every type is drawn, so that a prefix is stable."""
    fields = {"name": unique.draw(words.person, rng), **rng.choice(PRONOUNS)}
    asked = (_ask(owner, one, fields, rng, unique) for one in words.QUESTIONS)
    yield from [*itertools.chain.from_iterable(asked)][: 2 * records]


def _ask(
    owner: str,
    question: words.Question,
    fields: dict[str, str],
    rng: random.Random,
    unique: words.Unique,
) -> Iterator[Row]:
    """Yield one question in two phrasings with the same answer."""
    values = [unique.draw(make, rng) for make in question.makers]
    prompt, paraphrase = rng.sample(question.prompts, 2)
    answer = rng.choice(question.answers).format(*values, **fields)
    record = Record(f"{owner}/{question.key}", owner, prompt.format(**fields), answer)
    yield from _with_paraphrase(record, paraphrase.format(**fields))


def _with_paraphrase(record: Record, prompt: str) -> Iterator[Row]:
    """Yield the train row and its held-out paraphrase."""
    yield "train", record
    yield "test", replace(record, id=f"{record.id}/paraphrase", prompt=prompt)
