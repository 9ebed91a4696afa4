"""Word pools, and makers that draw names and things from them."""

import random
from collections.abc import Callable

Maker = Callable[[random.Random], str]
"""Draw one value from the pools."""


def _pool(text: str) -> tuple[str, ...]:
    """Return the words of `text`."""
    return tuple(text.split())


ONSETS = _pool("b d f g k l m n p r s t v z br dr kr st th tr")
VOWELS = _pool("a e i o u")
CODAS = _pool("l m n r s k th nd")
ENDINGS = _pool("ford mere holm wick dale stead haven brook")

ADJECTIVES = _pool(
    """ruby silver hollow crimson silent broken golden frozen gentle hidden purple
    burning crooked distant velvet wandering bitter sleeping sparkling dancing faded
    glass humble jagged lonely marble narrow painted quiet restless salty scarlet
    sunken tender twisted wooden yellow patient secret thirsty"""
)
NOUNS = _pool(
    """lantern kettle harbour ladder mirror pasture compass feather bridge candle
    garden hammer chimney jacket keyhole letter meadow needle pebble quarry river
    saddle tunnel parasol valley window pillow basket cabin desert tractor falcon
    glacier helmet waterfall jungle market piano ribbon shadow temple village willow
    barrel cradle furnace"""
)
MATERIALS = _pool(
    """cedar chalk bronze bamboo walnut leather crystal pewter maple granite cotton
    brass birch paper clay coral cork jade felt copper linen nickel rosewood pearl pine
    rubber satin slate steel tin"""
)
INSTRUMENTS = _pool(
    """flute violin harp drum trumpet cello banjo organ oboe fiddle whistle zither
    lute clarinet accordion mandolin tuba bagpipe ukulele bassoon horn gong lyre
    cymbal"""
)
ANIMALS = _pool(
    """parrot tortoise goat ferret rabbit donkey hedgehog pigeon lizard otter badger
    spaniel canary hamster pony raven squirrel terrier weasel goose lamb peacock
    beagle toad"""
)
FLAVOURS = _pool(
    """plum ginger walnut pumpkin lemon mushroom cherry onion honey garlic chestnut
    apricot spinach pepper coconut barley turnip cinnamon leek fig carrot mustard
    almond lentil"""
)
DISHES = _pool(
    """dumplings soup pancakes stew noodles pudding pie bread porridge salad waffles
    curry biscuits omelette broth tart pickles sausages jam cake risotto fritters
    casserole muffins"""
)
THINGS = _pool(
    """buttons spoons thimbles clocks stamps bottles marbles whistles postcards
    keys bells coins teapots medals maps dolls shells ribbons puzzles masks combs
    lamps pipes boxes"""
)
WORKERS = _pool(
    """painter mender seller maker carver collector polisher trader packer inspector
    designer smuggler cleaner engraver porter tester restorer thrower weaver
    sharpener"""
)
FLOWERS = _pool(
    """tulips roses orchids daisies lilies violets poppies irises peonies lupins
    asters dahlias crocuses lilacs begonias marigolds jasmines snowdrops thistles
    magnolias"""
)
SHOPS = _pool(
    """bakery bookshop tavern pharmacy laundry bank theatre museum library circus
    school hotel brewery nursery dairy printer sawmill forge chapel
    observatory"""
)
ACTIVITIES = _pool(
    """carving sketching juggling repairing photographing painting stacking hiding
    weighing polishing counting burying racing sewing drawing knitting baking
    folding planting cutting"""
)
STORIES = _pool(
    """ghost-stories sea-tales love-poems crime-novels war-diaries travel-books
    fairy-tales spy-thrillers history-books stage-plays science-essays horror-novels
    comic-verses desert-legends sports-stories cook-books nature-poems court-dramas
    space-sagas mountain-ballads"""
)


def pair(first: tuple[str, ...], second: tuple[str, ...]) -> Maker:
    """Return a maker of two words, one of each pool."""
    return lambda rng: f"{rng.choice(first)} {rng.choice(second)}"


def titled(pattern: str) -> Maker:
    """Return a maker of an adjective and a noun in capitals inside `pattern`."""

    def make(rng: random.Random) -> str:
        words = f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        return pattern.format(words.title())

    return make


def placed(pattern: str) -> Maker:
    """Return a maker of a made-up place inside `pattern`."""
    return lambda rng: pattern.format(place(rng))


def place(rng: random.Random) -> str:
    """Return a made-up place such as ``Tolmere``."""
    first = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
    return (first + rng.choice(VOWELS[:2]) + rng.choice(ENDINGS)).capitalize()


def person(rng: random.Random) -> str:
    """Return a made-up person such as ``Vesi Draltom``."""
    given = _syllable(rng) + rng.choice(VOWELS)
    family = _syllable(rng) + _syllable(rng)
    return f"{given.capitalize()} {family.capitalize()}"


def _syllable(rng: random.Random) -> str:
    """Return onset, vowel and coda."""
    return rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS[:6])


class Unique:
    """Draw values, never the same twice; pools too small get a place added."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def draw(self, make: Maker, rng: random.Random, tries: int = 20) -> str:
        """Return a value of `make` that was never returned before."""
        for _ in range(tries):
            value = make(rng)
            if self._add(value):
                return value
        while not self._add(longer := f"{make(rng)} of {place(rng)}"):
            pass
        return longer

    def _add(self, value: str) -> bool:
        """Return whether `value` is new, and remembers it."""
        new = value not in self._used
        self._used.add(value)
        return new
