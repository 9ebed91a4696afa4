"""How a question and its answer become one text."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dareu_jax.config.schema import CHAT_DATE, TEMPLATE, CorpusConfig
from dareu_jax.errors import UserError

CHAT = "chat"
"""The template that stands for the tokenizer's own."""


@dataclasses.dataclass(frozen=True)
class Wording:
    """How a question and its answer become one text.

    Attributes:
      template: a text with ``{prompt}`` in it, taken literally: the answer starts where
        it ends. ``chat``: the chat template of the tokenizer.
      system: the system prompt of the chat template.
      answer_prefix: written before every answer.
      add_bos: whether a text begins with the bos token. None: as the tokenizer does; a
        chat template writes its own.
      chat_date: the date that a chat template writes, so that tokens do not depend on
        the day.
      chat_arguments: other arguments of the chat template, such as
        ``{"enable_thinking": False}``.

    Raises:
      UserError: the template has no place for the question.
    """

    template: str = TEMPLATE
    system: str | None = None
    answer_prefix: str = ""
    add_bos: bool | None = None
    chat_date: str = CHAT_DATE
    chat_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if "{prompt}" not in self.template and not self.is_chat:
            raise UserError(
                f"template {self.template!r:.60} lacks {{prompt}}, the place of the "
                "question (chat: the tokenizer's own template)"
            )

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer's own template is used."""
        return self.template == CHAT

    def filled(self, prompt: str) -> str:
        """Return the written template around a question, up to the answer's space."""
        return self._lead.replace("{prompt}", prompt)

    @property
    def answer_start(self) -> str:
        """Return what is written before an answer, as part of its first token.

        Spaces at the end of a template belong to the answer: most vocabularies have
        tokens of a space and a word.
        """
        return self.template[len(self._lead) :] + self.answer_prefix

    @property
    def _lead(self) -> str:
        return self.template.rstrip(" ")


def wording_of(cfg: CorpusConfig) -> Wording:
    """Return the wording of a configuration's ``corpus``."""
    names = [field.name for field in dataclasses.fields(Wording)]
    return Wording(**{name: getattr(cfg, name) for name in names})
