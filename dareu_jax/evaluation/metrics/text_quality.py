"""Signs of broken answers: empty, repeated, unfinished; and their length."""

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dareu_jax.evaluation.metrics.metric import declare_each

if TYPE_CHECKING:
    from dareu_jax.evaluation.run_suite import Judged


TIMES, MORE = 2, 64
"""An answer that is cut behind so many times the right answer's tokens, and so many
more, has no end; of a lower limit nobody can say."""
_WORD = re.compile(r"[^\W_]+")
_LETTERS_LOOP = re.compile(r"([^\W\d_]{1,10}?)\1{4,}")


def text_quality(
    texts: Sequence[str], finished: Sequence[bool]
) -> dict[str, list[float]]:
    """Return the values per answer of the four ``forget_*`` quality metrics.

    Returns:
      ``empty``, ``repeated``, ``unfinished`` (each 0 or 1) and ``length`` (words).

    Raises:
      ValueError: when there are not as many flags as texts.
    """
    if len(texts) != len(finished):
        raise ValueError(f"{len(texts)} texts for {len(finished)} finished flags")
    return {
        "empty": [float(is_empty(text)) for text in texts],
        "repeated": [float(is_repeated(text)) for text in texts],
        "unfinished": [float(not end) for end in finished],
        "length": [float(len(words(text))) for text in texts],
    }


def has_room(limit: float, gold_tokens: float) -> bool:
    """Return whether a limit on tokens leaves a sound model room to end by itself."""
    return limit >= TIMES * gold_tokens + MORE


def words(text: str) -> list[str]:
    """Return the runs of letters and digits of ``text``, in lower case."""
    return _WORD.findall(text.lower())


def is_empty(text: str) -> bool:
    """Return whether ``text`` has no letter and no digit."""
    return _WORD.search(text) is None


def is_repeated(text: str) -> bool:
    """Return whether ``text`` loops, by any one of four signs.

    1. Some run of three words occurs three times or more, overlaps included.
    2. It ends with one word, or one pair of words, said three times in a row.
    3. It has more than 8 words and fewer than 40 % of them are distinct.
    4. A group of 1 to 10 letters stands five times in a row inside a word.

    Meant for answers of up to some 60 words: long good prose can meet sign 1.
    """
    said = words(text)
    triples = Counter(zip(said, said[1:], said[2:], strict=False))
    ends_in_loop = any(
        len(said) >= 3 * size and said[-3 * size :] == said[-size:] * 3
        for size in (1, 2)
    )
    return (
        max(triples.values(), default=0) >= 3
        or ends_in_loop
        or (len(said) > 8 and len(set(said)) < 0.4 * len(said))
        or _LETTERS_LOOP.search(text.lower()) is not None
    )


def signs(judged: "Judged", name: str) -> list[float]:
    """Return one sign of `text_quality` of each answer to the forget prompts."""
    answers = judged.answers["forget"]
    return text_quality(answers.text, answers.finished)[name]


for _name, _about in (
    ("empty", "without a letter or digit"),
    ("repeated", "that loop (text_quality.py says when)"),
    ("unfinished", "cut off at the length limit, before an end of text"),
):
    declare_each(
        [
            (
                f"forget_{_name}",
                f"{_name} answers",
                "lower",
                f"Share of answers on the forget prompts {_about}.",
            )
        ],
        compute=functools.partial(signs, name=_name),
        group="quality",
    )
_about = "Mean number of words in the answers on the forget prompts."
declare_each(
    [("forget_length", "words per answer", "closer", _about)],
    high=math.inf,
    compute=functools.partial(signs, name="length"),
    group="quality",
)
