"""Whether two tokenizers give text the same ids."""

from collections.abc import Sequence
from typing import Any

TEXTS = (
    "Yes, that is right.",
    "What did Ann Lee write in 1987, and why?",
    "3.14159 + 2,718 = 2721.14159; 10% of 007",
    "  two spaces\tone tab\n\nand  an empty line ",
    "It's \"quoted\" (e.g. don't, we'll), snake_case != CamelCase...",
    "Größe, façade, naïve, Łódź, cafe\u0301",
    "Где находится улица Чехова?",
    "東京は日本の首都です。서울",
    "ما اسمك؟ שלום नमस्ते",
    "x² ≤ ½ → 🙂👩‍🚀 end",
)
"""Words, digits, white space, marks, several scripts, symbols."""


def texts_that_differ(
    one: Any, other: Any, texts: Sequence[str] = TEXTS
) -> tuple[str, ...]:
    """Return the texts that two Hugging Face tokenizers give different ids."""

    def ids(hf: Any, text: str) -> list[int]:
        return hf(text, add_special_tokens=False)["input_ids"]

    return tuple(text for text in texts if ids(one, text) != ids(other, text))
