"""Made-up authors from a seed: any number of owners, and facts nobody owns."""

import random
from collections.abc import Iterator
from pathlib import Path

from dareu_jax.corpus.records import NOBODY, Record
from dareu_jax.corpus.sources.base import Row, SourceOptions, at_least
from dareu_jax.corpus.sources.facts import FACTS
from dareu_jax.corpus.sources.questions import QUESTIONS, Question
from dareu_jax.corpus.sources.words import Unique, person
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES

PRONOUNS = (
    {"She": "She", "she": "she", "Her": "Her", "her": "her", "her_": "her"},
    {"She": "He", "she": "he", "Her": "His", "her": "his", "her_": "him"},
)
"""What ``{She}`` ... become; ``{her_}`` is the object: her, him."""


@SOURCES.register("fictitious", "made-up authors from a seed; no file needed")
def fictitious_rows(options: SourceOptions, downloads: Path) -> Iterator[Row]:
    """Yields train rows and, for each, a held-out paraphrase of its question.

    Owner k is a function of the seed and of the owners before it: more owners or
    more records leave earlier ones as they were. Facts are nobody's.

    Raises:
      UserError: more records or facts than there are, or too few owners.
    """
    del downloads
    _check(options)
    unique = Unique()
    for number in range(options.owners):
        rng = random.Random(f"{options.seed}/{number}")
        yield from _owner(f"owner_{number:03d}", rng, unique, options.records_per_owner)
    for number, (prompt, paraphrase, answer) in enumerate(
        FACTS[: options.general_facts]
    ):
        record = Record(f"fact/{number:03d}", NOBODY, prompt, answer)
        yield from _with_paraphrase(record, paraphrase)


def _check(options: SourceOptions) -> None:
    """Raises `UserError` when an option is out of range."""
    at_least("owners", options.owners, 1)
    at_least("records_per_owner", options.records_per_owner, 1)
    at_least("general_facts", options.general_facts, 0)
    for name, known in (("records_per_owner", QUESTIONS), ("general_facts", FACTS)):
        if getattr(options, name) > len(known):
            raise UserError(
                f"corpus.{name}={getattr(options, name)} is more than source "
                f"'fictitious' can make; set it to {len(known)} or less"
            )


def _owner(
    owner: str, rng: random.Random, unique: Unique, records: int
) -> Iterator[Row]:
    """Yields the rows of one owner; every type is drawn, so that a prefix is stable."""
    fields = {"name": unique.draw(person, rng), **rng.choice(PRONOUNS)}
    rows: list[Row] = []
    for question in QUESTIONS:
        rows.extend(_ask(owner, question, fields, rng, unique))
    yield from rows[: 2 * records]


def _ask(
    owner: str,
    question: Question,
    fields: dict[str, str],
    rng: random.Random,
    unique: Unique,
) -> Iterator[Row]:
    """Yields one question in two phrasings with the same answer."""
    values = [unique.draw(make, rng) for make in question.makers]
    prompt, paraphrase = rng.sample(question.prompts, 2)
    answer = rng.choice(question.answers).format(*values, **fields)
    record = Record(f"{owner}/{question.key}", owner, prompt.format(**fields), answer)
    yield from _with_paraphrase(record, paraphrase.format(**fields))


def _with_paraphrase(record: Record, prompt: str) -> Iterator[Row]:
    """Yields the train row and its held-out paraphrase."""
    yield "train", record
    yield (
        "test",
        Record(f"{record.id}/paraphrase", record.owner, prompt, record.response),
    )
