"""Tokenizers: a Hugging Face folder, or byte-level BPE trained on the corpus."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from dareu_jax.errors import UserError
from dareu_jax.storage.files import whole_folder

SPECIAL = ("<pad>", "<bos>", "<eos>")
"""Special tokens of a trained tokenizer; the place is the id."""
SMALLEST_VOCAB = 256 + len(SPECIAL)
"""Every byte and every special token: no text is ever unknown."""
ANCHOR = "\0"
"""A character that vocabularies do not join to its neighbours."""


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer and its ids; any of ``stop_ids`` ends an answer."""

    hf: Any
    pad_id: int
    bos_id: int | None
    eos_id: int
    vocab_size: int
    stop_ids: tuple[int, ...]

    def encode(self, text: str, *, markup: bool = False) -> list[int]:
        """Return the tokens of `text`, in which ``markup`` allows special tokens."""
        encoded = self.hf(
            text, add_special_tokens=False, split_special_tokens=not markup
        )
        return list(encoded["input_ids"])

    def continuations(self, texts: Iterable[str], lead: str) -> list[list[int]]:
        """Return the tokens of every text as it continues `lead`.

        A space that SentencePiece writes before a text that stands alone is left out.
        """
        if self._behind(lead, ANCHOR, markup=True) == self.encode(ANCHOR):
            return [self.encode(text) for text in texts]
        return [self._behind(ANCHOR, text) for text in texts]

    def _behind(self, lead: str, text: str, *, markup: bool = False) -> list[int]:
        """Return the tokens of `text` behind `lead`; alone where the two merge."""
        head = self.encode(lead, markup=markup)
        whole = self.encode(lead + text, markup=markup)
        if whole[: len(head)] != head:
            return self.encode(text, markup=markup)
        return whole[len(head) :]

    @property
    def has_chat(self) -> bool:
        """Whether it comes with a chat template."""
        return bool(self.hf.chat_template)

    def chat(self, prompt: str, system: str | None) -> list[int]:
        """Return the tokens of a question in the tokenizer's own chat template.

        They end where the assistant's turn begins. Where the template writes today's
        date it writes `TEMPLATE_DATE`, so that tokens do not depend on the day.
        """
        return self.encode(self._render(prompt, system), markup=True)

    def turn(self, system: str | None) -> tuple[str, str]:
        """Return a question in the chat template and the space before its answer."""
        asked = self._render(ANCHOR, system)
        answered = self._render(ANCHOR, system, ANCHOR)
        space, _, _ = answered.removeprefix(asked).partition(ANCHOR)
        return asked, space if space.isspace() else ""

    def _render(
        self, prompt: str, system: str | None, answer: str | None = None
    ) -> str:
        """Return the chat template's text, up to the assistant's turn or with it."""
        if not self.hf.chat_template:
            raise UserError(
                "corpus.template = 'chat', but the tokenizer has no chat template; "
                "write the template out, with {prompt} in it"
            )
        said = (("system", system), ("user", prompt), ("assistant", answer))
        try:
            return self.hf.apply_chat_template(
                [{"role": who, "content": x} for who, x in said if x is not None],
                tokenize=False,
                add_generation_prompt=answer is None,
                date_string=TEMPLATE_DATE,
            )
        except jinja2.TemplateError as error:
            raise UserError(
                f"corpus.template = 'chat': the template refuses ({error}); "
                "leave corpus.system out, or write the template out"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return self.hf.decode(
            [int(token) for token in ids],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of everything that decides which ids a text becomes."""
        parts = {"vocab": self.hf.get_vocab()}
        if self.hf.is_fast:
            backend = json.loads(self.hf.backend_tokenizer.to_str())
            parts = {name: backend[name] for name in _DECIDING}
        ids = (self.pad_id, self.bos_id, self.eos_id, self.vocab_size)
        text = json.dumps([parts, ids], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


TEMPLATE_DATE = "26 Jul 2024"
_DECIDING = ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")


def load_tokenizer(
    spec: str | None, texts: Iterable[str], vocab_size: int, folder: Path
) -> Tokenizer:
    """Return the tokenizer in folder `spec`, or one trained on `texts`.

    One is trained where ``spec`` is None, and kept in ``folder``; the texts are not
    read where it is there. Raises `UserError` for a folder or vocabulary that cannot
    be.
    """
    if spec is not None:
        return read_tokenizer(Path(spec))
    if not folder.exists():
        _save(_train(texts, vocab_size), folder)
    return read_tokenizer(folder)


def read_tokenizer(folder: Path, key: str = "corpus.tokenizer") -> Tokenizer:
    """Return the tokenizer in `folder`; raise `UserError`, with `key`, if none."""
    if not folder.is_dir():
        raise UserError(
            f"{key}: no folder {str(folder)!r}; give a local Hugging Face "
            "tokenizer folder, or null to train one on the corpus"
        )
    try:
        hf = _transformers().AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{key}: folder {str(folder)!r} holds no tokenizer "
            f"transformers can read ({reason}); it needs tokenizer.json and "
            "tokenizer_config.json"
        ) from error
    return _wrap(hf, folder, key)


def _wrap(hf: Any, folder: Path, key: str) -> Tokenizer:
    """Return `hf` with its special ids checked; pad falls back to eos."""
    if hf.eos_token_id is None:
        raise UserError(
            f"{key}: {str(folder)!r} has no eos token, so a response could "
            'not end; set "eos_token" in its tokenizer_config.json'
        )
    eos_id = hf.eos_token_id
    pad_id = eos_id if hf.pad_token_id is None else hf.pad_token_id
    stop_ids = _stop_ids(folder / "generation_config.json", eos_id)
    return Tokenizer(hf, pad_id, hf.bos_token_id, eos_id, len(hf), stop_ids)


def _stop_ids(path: Path, eos_id: int) -> tuple[int, ...]:
    """Return ``eos_id`` and the other end-of-text ids of a generation config."""
    try:
        more = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except FileNotFoundError:
        more = None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    more = [more] if isinstance(more, int) else more or []
    return tuple(dict.fromkeys([eos_id, *more]))


def _train(texts: Iterable[str], vocab_size: int) -> Any:
    """Return byte-level BPE of at most `vocab_size` tokens, trained on `texts`."""
    if vocab_size < SMALLEST_VOCAB:
        raise UserError(
            f"corpus.vocab_size={vocab_size} is too small: 256 bytes and "
            f"{len(SPECIAL)} special tokens need at least {SMALLEST_VOCAB}"
        )
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _save(backend: Any, folder: Path) -> None:
    """Write `backend` as a Hugging Face folder that appears whole or not at all."""
    pad, bos, eos = SPECIAL
    hf = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos
    )
    with whole_folder(folder) as draft:
        hf.save_pretrained(draft)


def _transformers() -> Any:
    """Return the module, imported without its notice that PyTorch is missing."""
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_news)
    import transformers

    logger.removeFilter(_is_news)
    return transformers


def _is_news(message: logging.LogRecord) -> bool:
    """Return false for the notice that PyTorch is missing: it always is."""
    return "PyTorch was not found" not in message.getMessage()
