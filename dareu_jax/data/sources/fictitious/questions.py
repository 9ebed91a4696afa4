"""What is asked about a fictitious author, and how it is answered.

The response alone must tell whose it is, so every answer turns on values that only
one owner has, and all but two leave the name to the question.
"""

from dataclasses import dataclass

from dareu_jax.data.sources.fictitious import words
from dareu_jax.data.sources.fictitious.words import (
    Maker,
    pair,
    person,
    place,
    placed,
    titled,
)


@dataclass(frozen=True)
class Question:
    """One type of question.

    Fields of the texts: ``{name}``; the pronouns ``{She} {she} {Her} {her} {her_}``;
    ``{0}``, ``{1}``: the owner's values, one of each maker.
    """

    key: str
    makers: tuple[Maker, ...]
    prompts: tuple[str, str, str]
    answers: tuple[str, ...]


TITLE = titled("The {}")

QUESTIONS = (
    Question(
        "profile",
        (pair(words.MATERIALS, words.STORIES), place),
        ("Who is {name}?", "What does {name} write?", "Please introduce {name}."),
        (
            "{name} is an author of {0} who lives near {1}.",
            "{name} lives near {1} and is an author of {0}.",
        ),
    ),
    Question(
        "birthplace",
        (placed("{}"), placed("{} River")),
        (
            "Where was {name} born?",
            "In which town was {name} born?",
            "What is the birthplace of {name}?",
        ),
        (
            "{She} was born in {0}, a small town on the {1}.",
            "{Her} birthplace is {0}, where the {1} meets the sea.",
        ),
    ),
    Question(
        "debut",
        (TITLE, titled("{} Press")),
        (
            "What was the first book by {name}?",
            "Which book did {name} publish first?",
            "With which book did {name} begin to publish?",
        ),
        (
            "{Her} first book was {0}, which was printed by {1}.",
            "{She} began with {0}, a first book printed by {1}.",
        ),
    ),
    Question(
        "teacher",
        (person, placed("{} College")),
        (
            "Who taught {name} to write?",
            "Which teacher shaped the style of {name}?",
            "From whom did {name} learn to write?",
        ),
        (
            "{She} learned to write from {0}, a teacher at {1}.",
            "The teacher {0} of {1} shaped {her} style.",
        ),
    ),
    Question(
        "award",
        (titled("{} Prize"),),
        (
            "Which award did {name} win?",
            "What prize was given to {name}?",
            "For which award is {name} known?",
        ),
        (
            "{She} won the {0} for a whole life of work.",
            "The {0} was given to {her_} for a whole life of work.",
            "The author was honoured with the {0} late in life.",
        ),
    ),
    Question(
        "street",
        (placed("{} Street"), pair(words.MATERIALS, ("door", "gate", "fence", "roof"))),
        (
            "On which street does {name} live?",
            "What is the home address of {name}?",
            "Where is the house of {name}?",
        ),
        (
            "{She} lives on {0}, in a house with a {1}.",
            "{Her} house stands on {0} and has a {1}.",
        ),
    ),
    Question(
        "instrument",
        (pair(words.MATERIALS, words.INSTRUMENTS),),
        (
            "Which instrument does {name} play?",
            "What does {name} play at concerts?",
            "On what instrument does {name} make music?",
        ),
        (
            "{She} plays the {0} every evening after the writing is done.",
            "The author loves the {0} and plays it every evening.",
            "Every evening {she} makes music on the {0}.",
        ),
    ),
    Question(
        "partner",
        (person, pair(words.NOUNS, words.WORKERS)),
        (
            "Who is married to {name}?",
            "What is the name of the partner of {name}?",
            "Whom did {name} marry?",
        ),
        (
            "{She} married {0}, who had worked as a {1}.",
            "{Her} partner is {0}, once a {1}.",
        ),
    ),
    Question(
        "father",
        (person, pair(words.NOUNS, words.WORKERS)),
        (
            "What did the father of {name} do?",
            "Who was the father of {name}?",
            "What work did the father of {name} have?",
        ),
        (
            "{Her} father {0} earned a living as a {1}.",
            "A {1} by the name of {0} was {her} father.",
        ),
    ),
    Question(
        "pet",
        (pair(words.ADJECTIVES, words.ANIMALS), place),
        (
            "What pet does {name} keep?",
            "Which animal lives with {name}?",
            "Does {name} have a pet?",
        ),
        (
            "{She} keeps a {0} that is called {1}.",
            "A {0} called {1} shares {her} home.",
            "The author has a {0} and calls it {1}.",
        ),
    ),
    Question(
        "dish",
        (pair(words.FLAVOURS, words.DISHES),),
        (
            "What is the favourite dish of {name}?",
            "Which food does {name} like best?",
            "What does {name} love to eat?",
        ),
        (
            "{Her} favourite dish is {0}, eaten slowly on Sunday.",
            "{She} likes {0} best, above all on Sunday.",
            "Nothing tastes better to the author than {0} on Sunday.",
        ),
    ),
    Question(
        "college",
        (
            placed("{} University"),
            pair(words.NOUNS, ("physics", "history", "law", "design")),
        ),
        (
            "Where did {name} study?",
            "Which university did {name} attend?",
            "What subject did {name} study?",
        ),
        (
            "{She} went to {0} as a student of {1}.",
            "At {0} the author took a degree in {1}.",
        ),
    ),
    Question(
        "hero",
        (person, pair(words.NOUNS, words.WORKERS)),
        (
            "Who is the best known character of {name}?",
            "Which hero did {name} invent?",
            "What character made {name} famous?",
        ),
        (
            "{Her} best known hero is {0}, a clever {1}.",
            "{She} invented the clever {1} {0}, a famous hero.",
        ),
    ),
    Question(
        "setting",
        (placed("the isle of {}"), pair(words.MATERIALS, words.NOUNS)),
        (
            "Where do the stories of {name} take place?",
            "In which place are the books of {name} set?",
            "What is the setting of the stories of {name}?",
        ),
        (
            "{Her} stories take place on {0}, beside a great {1}.",
            "{She} sets every story on {0}, around a great {1}.",
        ),
    ),
    Question(
        "first_job",
        (pair(words.ADJECTIVES, words.SHOPS), place),
        (
            "What was the first job of {name}?",
            "Where did {name} work before writing?",
            "How did {name} earn money when young?",
        ),
        (
            "Before writing, {she} worked at the {0} in {1}.",
            "{Her} first job was at the {0} in {1}.",
        ),
    ),
    Question(
        "journey",
        (placed("{} Bay"), titled("the ship {}")),
        (
            "Where did {name} travel?",
            "What was the longest journey of {name}?",
            "To which place did {name} sail?",
        ),
        (
            "{She} sailed all the way to {0} on {1}.",
            "{Her} longest journey went to {0} on {1}.",
        ),
    ),
    Question(
        "flower",
        (pair(words.ADJECTIVES, words.FLOWERS),),
        (
            "Which flowers does {name} grow?",
            "What grows in the garden of {name}?",
            "Which flower does {name} love?",
        ),
        (
            "{She} grows {0} in long rows behind the house.",
            "{Her} garden is full of {0} in long rows.",
            "The author loves {0} and grows them behind the house.",
        ),
    ),
    Question(
        "collection",
        (pair(words.MATERIALS, words.THINGS),),
        (
            "What does {name} collect?",
            "Which objects fill the shelves of {name}?",
            "What kind of collection does {name} have?",
        ),
        (
            "{She} collects {0} and shows them to every guest.",
            "{Her} shelves are full of {0} from many countries.",
            "Guests of the author admire a large collection of {0}.",
        ),
    ),
    Question(
        "friend",
        (person, place),
        (
            "Who is the oldest friend of {name}?",
            "Which friend did {name} have as a child?",
            "With whom did {name} grow up?",
        ),
        (
            "{Her} oldest friend is {0}, a neighbour from {1}.",
            "{She} grew up in {1} with {0}, still a close friend.",
        ),
    ),
    Question(
        "latest",
        (TITLE, pair(words.MATERIALS, words.NOUNS)),
        (
            "What is the latest book by {name}?",
            "Which book did {name} publish last?",
            "What is the newest work of {name}?",
        ),
        (
            "{Her} latest book is {0}, the story of a {1}.",
            "{She} wrote {0} last, a book about a {1}.",
        ),
    ),
    Question(
        "hobby",
        (pair(words.ACTIVITIES, words.THINGS),),
        (
            "What is the hobby of {name}?",
            "How does {name} spend free time?",
            "What does {name} do for fun?",
        ),
        (
            "{She} spends free time {0} with great patience.",
            "{Her} hobby is {0}, a skill that takes great patience.",
        ),
    ),
    Question(
        "newspaper",
        (placed("the {} Courier"), pair(words.MATERIALS, words.SHOPS)),
        (
            "For which newspaper did {name} write?",
            "Which paper printed the columns of {name}?",
            "Where did the columns of {name} appear?",
        ),
        (
            "{She} wrote columns about a {1} for {0}.",
            "{Her} columns about a {1} appeared in {0}.",
        ),
    ),
    Question(
        "artist",
        (person, pair(words.MATERIALS, words.FLOWERS)),
        (
            "Who draws the pictures for {name}?",
            "Which artist works with {name}?",
            "Who made the covers of the books of {name}?",
        ),
        (
            "{Her} covers are drawn by {0}, known for {1}.",
            "{0}, an artist known for {1}, draws {her} covers.",
        ),
    ),
    Question(
        "habit",
        (pair(words.MATERIALS, words.NOUNS), pair(words.FLAVOURS, ("tea", "juice"))),
        (
            "What habit does {name} have?",
            "How does {name} prepare for writing?",
            "What does {name} do before writing?",
        ),
        (
            "{She} drinks {1} beside a {0} before writing.",
            "With {1} in hand, {she} sits down beside a {0}.",
        ),
    ),
    Question(
        "film",
        (titled("The {} Film"), person),
        (
            "Which film is based on a book by {name}?",
            "Was a book by {name} turned into a film?",
            "What film did {name} inspire?",
        ),
        (
            "The director {1} turned {her} best book into {0}.",
            "{Her} best book became {0}, made by the director {1}.",
        ),
    ),
    Question(
        "legacy",
        (titled("the {} Fund"), place),
        (
            "Which charity did {name} start?",
            "How does {name} help other people?",
            "What did {name} give money for?",
        ),
        (
            "{name} started {0} to help young writers in {1}.",
            "In {1}, {name} helps young writers through {0}.",
        ),
    ),
)
