"""Whether a tokenizer gives the ids of the `tokenizer.json` in its folder."""

from collections.abc import Sequence
from pathlib import Path

from dareu_jax.data.tokenizer import Tokenizer
from dareu_jax.errors import UserError

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
    tokenizer: Tokenizer, folder: Path, texts: Sequence[str] = TEXTS
) -> list[str] | None:
    """Return the texts that ``folder``'s tokenizer.json gives other ids.

    None: there is no such file. Neither it nor ``tokenizer`` adds special tokens.
    Raises `UserError` for a file that cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    bare = _read(path)

    def ids(text: str) -> list[int]:
        return bare.encode(text, add_special_tokens=False).ids

    return [text for text in texts if tokenizer.encode(text) != ids(text)]


def _read(path: Path):
    """Return the tokenizer in a file; it neither cuts nor fills up a text."""
    from tokenizers import Tokenizer as Bare

    try:
        bare = Bare.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{path} cannot be read: {error}") from None
    bare.no_truncation()
    bare.no_padding()
    return bare
