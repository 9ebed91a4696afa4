"""Read the texts of the fictitious authors; draw names and things from the pools."""

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Maker = Callable[[random.Random], str]
"""Draw one value from the pools."""
TEXTS = yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text("utf-8"))
POOLS = {name: tuple(words.split()) for name, words in TEXTS["pools"].items()}
FACTS = tuple(map(tuple, TEXTS["facts"]))
"""A question, the same question put differently, the answer; nobody owns them."""


class Question(NamedTuple):
    """One type of question, as texts.yaml explains it."""

    key: str
    makers: tuple[Maker, ...]
    prompts: tuple[str, str, str]
    answers: tuple[str, ...]


def maker(spec: str | dict[str, Any]) -> Maker:
    """Return what draws a value: ``person``, ``{titled: "The {}"}``, ..."""
    if isinstance(spec, str):
        return {"person": person, "place": place}[spec]
    ((name, value),) = spec.items()
    if name == "pair":
        first, second = (POOLS[x] if isinstance(x, str) else tuple(x) for x in value)
        return lambda rng: f"{rng.choice(first)} {rng.choice(second)}"
    return functools.partial({"titled": titled, "placed": placed}[name], value)


def titled(pattern: str, rng: random.Random) -> str:
    """Return an adjective and a noun in capitals inside `pattern`."""
    words = f"{rng.choice(POOLS['adjectives'])} {rng.choice(POOLS['nouns'])}"
    return pattern.format(words.title())


def placed(pattern: str, rng: random.Random) -> str:
    """Return a made-up place inside `pattern`."""
    return pattern.format(place(rng))


def place(rng: random.Random) -> str:
    """Return a made-up place such as ``Tolmere``."""
    vowels = POOLS["vowels"]
    first = rng.choice(POOLS["onsets"]) + rng.choice(vowels)
    middle = rng.choice(POOLS["codas"]) + rng.choice(vowels[:2])
    return (first + middle + rng.choice(POOLS["endings"])).capitalize()


def person(rng: random.Random) -> str:
    """Return a made-up person such as ``Vesi Draltom``."""
    given = _syllable(rng) + rng.choice(POOLS["vowels"])
    family = _syllable(rng) + _syllable(rng)
    return f"{given.capitalize()} {family.capitalize()}"


def _syllable(rng: random.Random) -> str:
    """Return onset, vowel and coda."""
    onset, vowel = rng.choice(POOLS["onsets"]), rng.choice(POOLS["vowels"])
    return onset + vowel + rng.choice(POOLS["codas"][:6])


class Unique:
    """Draw values, never the same twice; pools too small get a place added."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def draw(self, make: Maker, rng: random.Random, tries: int = 20) -> str:
        """Return a value of `make` that was never returned before."""
        for _ in range(tries):
            if self._add(value := make(rng)):
                return value
        while not self._add(longer := f"{make(rng)} of {place(rng)}"):
            pass
        return longer

    def _add(self, value: str) -> bool:
        """Return whether `value` is new, and remembers it."""
        new = value not in self._used
        self._used.add(value)
        return new


QUESTIONS = tuple(
    Question(q["key"], tuple(map(maker, q["makers"])), q["prompts"], q["answers"])
    for q in TEXTS["questions"]
)
