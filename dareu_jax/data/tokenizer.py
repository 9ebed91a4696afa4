"""Tokenizers: a Hugging Face folder, or byte-level BPE trained on the corpus."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from dareu_jax.data.tokenizer_check import TEXTS, texts_that_differ
from dareu_jax.data.wording import CHAT, Wording
from dareu_jax.errors import UserError
from dareu_jax.storage.files import read_json, whole_folder

SPECIAL = ("<pad>", "<bos>", "<eos>")
"""Special tokens of a trained tokenizer; the place is the id."""
SMALLEST_VOCAB = 256 + len(SPECIAL)
"""Every byte and every special token: no text is ever unknown."""
ANCHOR = "\0"
"""A character that vocabularies do not join to its neighbours."""


class Turn(NamedTuple):
    """What surrounds an answer.

    Attributes:
      lead: a text that ends where an answer starts.
      start: what an answer's first token begins with.
      before: tokens in front of an answer, such as an empty block of thoughts.
      end: tokens behind it.
    """

    lead: str
    start: str
    before: list[int]
    end: list[int]


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer and its ids.

    Attributes:
      stop_ids: any of them ends an answer.
      adds_bos: whether it begins a text with bos by itself.
      differ: texts that the class which transformers takes for its folder gives other
        ids than its tokenizer.json, which is used.
    """

    hf: Any
    pad_id: int
    bos_id: int | None
    eos_id: int
    vocab_size: int
    stop_ids: tuple[int, ...]
    adds_bos: bool
    differ: tuple[str, ...] = ()

    def encode(self, text: str, *, markup: bool = False) -> list[int]:
        """Return the tokens of `text`, in which ``markup`` allows special tokens.

        Raises:
          UserError: a token that the model has no embedding of.
        """
        encoded = self.hf(
            text, add_special_tokens=False, split_special_tokens=not markup
        )
        ids = list(encoded["input_ids"])
        if ids and max(ids) >= self.vocab_size:
            token = self.hf.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"{text!r:.60} has the token {token!r}, which the model has no "
                "embedding of; take it out of the text"
            )
        return ids

    def with_bos(self, ids: list[int], add: bool | None = None) -> list[int]:
        """Return the tokens of a text, behind bos where it is wanted and not there.

        ``add`` None: wanted where the tokenizer adds it by itself.
        """
        wanted = self.adds_bos if add is None else add
        if not wanted or self.bos_id is None or ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

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

    def prompt(self, prompt: str, wording: Wording) -> list[int]:
        """Return the tokens of a question, up to where the answer begins."""
        if wording.is_chat:
            ids = self.encode(self._render(wording, prompt), markup=True)
            return self.with_bos(ids, bool(wording.add_bos))
        ids = self.encode(wording.filled(prompt), markup=True)
        return self.with_bos(ids, wording.add_bos)

    def turn(self, wording: Wording, *, whole: bool = False) -> Turn:
        """Return what surrounds an answer: the token that ends it.

        With ``whole`` all that the chat template writes behind a question.
        """
        if not wording.is_chat:
            lead, start = wording.filled(ANCHOR), wording.answer_start
            return Turn(lead, start, before=[], end=[self.eos_id])
        asked = self._render(wording, ANCHOR)
        answered = self._render(wording, ANCHOR, ANCHOR)
        head, _, behind = answered.rpartition(ANCHOR)
        between = head.removeprefix(asked) if head.startswith(asked) else ""
        start, block = (between, "") if between.isspace() else ("", between)
        start += wording.answer_prefix
        if not whole:
            return Turn(asked, start, before=[], end=[self._end_of_turn(behind)])
        return Turn(
            lead=asked + block,
            start=start,
            before=self._behind(asked, block, markup=True),
            end=self._behind(ANCHOR, behind, markup=True) or [self.eos_id],
        )

    def _end_of_turn(self, behind: str) -> int:
        """Return the special token that a template writes behind an answer, or eos."""
        added = self.hf.added_tokens_decoder
        ids = self.encode(behind.lstrip(), markup=True)[:1]
        special = {self.eos_id, *self.hf.all_special_ids}
        is_end = [i for i in ids if i in special or (i in added and added[i].special)]
        return is_end[0] if is_end else self.eos_id

    def _render(self, wording: Wording, prompt: str, answer: str | None = None) -> str:
        """Return the chat template's text, up to the assistant's turn or with it."""
        if not self.hf.chat_template:
            raise UserError(
                "corpus.template = 'chat', but the tokenizer has no chat template; "
                "write the template out, with {prompt} in it"
            )
        said = (("system", wording.system), ("user", prompt), ("assistant", answer))
        try:
            return self.hf.apply_chat_template(
                [{"role": who, "content": x} for who, x in said if x is not None],
                chat_template=dated(self.hf.get_chat_template(), wording.chat_date),
                tokenize=False,
                add_generation_prompt=answer is None,
                **{"date_string": wording.chat_date, **wording.chat_arguments},
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
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
        ids = (self.pad_id, self.bos_id, self.eos_id, self.vocab_size, self.adds_bos)
        text = json.dumps([parts, ids], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


DIRECTIVES = ("-d", "-m", *"aAbBdHIjmMpSUwWyY")
"""Of ``strftime``, those that a template can ask for."""


def dated(template: str, date: str) -> str:
    """Return a chat template whose ``strftime_now`` tells a fixed date.

    Raises:
      UserError: the date is not written as in ``26 Jul 2024``.
    """
    try:
        day = datetime.strptime(date, "%d %b %Y")
    except ValueError:
        raise UserError(
            f"corpus.chat_date = {date!r}: write it as in 26 Jul 2024"
        ) from None
    said = "".join(
        f" | replace('%{one}', '{day.strftime(f'%{one}')}')" for one in DIRECTIVES
    )
    macro = "{% macro strftime_now(how) %}{{ how" + said + " }}{% endmacro %}\n"
    return macro + template


_DECIDING = ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")


def load_tokenizer(
    spec: str | None,
    texts: Iterable[str],
    vocab_size: int,
    folder: Path,
    rows: int | None = None,
) -> Tokenizer:
    """Return the tokenizer in folder `spec`, or one trained on `texts`.

    One is trained where ``spec`` is None, and kept in ``folder``; the texts are not
    read where it is there. ``rows``: see `read_tokenizer`. Raises `UserError` for a
    folder or vocabulary that cannot be.
    """
    if spec is not None:
        return read_tokenizer(Path(spec), rows=rows)
    if not folder.exists():
        _save(_train(texts, vocab_size), folder)
    return read_tokenizer(folder)


def read_tokenizer(
    folder: Path, key: str = "corpus.tokenizer", rows: int | None = None
) -> Tokenizer:
    """Return the tokenizer in `folder`; raise `UserError`, with `key`, if none.

    No code of the folder is run. ``rows``: embeddings that the model has; a padding
    token beyond them is replaced by eos. None: one for every token.
    """
    if not folder.is_dir():
        raise UserError(
            f"{key}: no folder {str(folder)!r}; give a local Hugging Face "
            "tokenizer folder, or null to train one on the corpus"
        )
    try:
        hf, differ = _read(folder)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{key}: folder {str(folder)!r} holds no tokenizer that transformers can "
            f"read without code of its own ({reason:.200}); it needs tokenizer.json "
            "and tokenizer_config.json"
        ) from error
    return _wrap(hf, folder, key, rows, differ)


def _read(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """Return a folder's Hugging Face tokenizer, and `Tokenizer.differ`.

    transformers takes a class by the names in the folder. Where that class gives other
    ids than tokenizer.json, or cannot be built, the file is right: models are trained
    with it. A class that the folder brings along is never taken.
    """
    library = _transformers()
    config, bare = folder / "tokenizer_config.json", None
    has_own_class = config.exists() and bool(read_json(config).get("auto_map"))
    if (folder / "tokenizer.json").exists() and not has_own_class:
        bare = library.PreTrainedTokenizerFast.from_pretrained(str(folder))
    try:
        declared = library.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        differ = () if bare is None else texts_that_differ(declared, bare)
    except Exception:
        if bare is None:
            raise
        return bare, TEXTS
    return (bare, differ) if differ else (declared, ())


def _wrap(
    hf: Any, folder: Path, key: str, rows: int | None, differ: tuple[str, ...]
) -> Tokenizer:
    """Return `hf` with its special ids checked; pad falls back to eos."""
    if hf.eos_token_id is None:
        raise UserError(
            f"{key}: {str(folder)!r} has no eos token, so a response could "
            'not end; set "eos_token" in its tokenizer_config.json'
        )
    eos_id, size = hf.eos_token_id, len(hf) if rows is None else min(len(hf), rows)
    has_pad = hf.pad_token_id is not None and hf.pad_token_id < size
    first = list(hf("a")["input_ids"])[:1]
    plain = Tokenizer(
        hf=hf,
        pad_id=hf.pad_token_id if has_pad else eos_id,
        bos_id=hf.bos_token_id,
        eos_id=eos_id,
        vocab_size=size,
        stop_ids=_stop_ids(folder / "generation_config.json", eos_id),
        adds_bos=hf.bos_token_id is not None and first == [hf.bos_token_id],
        differ=differ,
    )
    return dataclasses.replace(plain, stop_ids=(*plain.stop_ids, *_ends(plain)))


def _ends(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the token that a chat template writes behind an answer, if it is new."""
    try:
        end = tokenizer.turn(Wording(CHAT)).end if tokenizer.has_chat else []
    except UserError:  # it wants arguments; said when it is used
        return ()
    return tuple(token for token in end if token not in tokenizer.stop_ids)


def _stop_ids(path: Path, eos_id: int) -> tuple[int, ...]:
    """Return ``eos_id`` and the other end-of-text ids of a generation config."""
    if not path.exists():
        return (eos_id,)
    more = read_json(path).get("eos_token_id")
    more = more if isinstance(more, list) else [] if more is None else [more]
    if not all(type(token) is int for token in more):
        raise UserError(f"{path}: eos_token_id = {more!r:.60} must be token ids")
    return tuple(dict.fromkeys([eos_id, *more]))


def _train(texts: Iterable[str], vocab_size: int) -> Any:
    """Return byte-level BPE of at most `vocab_size` tokens, trained on `texts`."""
    if vocab_size < SMALLEST_VOCAB:
        raise UserError(
            f"corpus.vocab_size={vocab_size} is too small: 256 bytes and "
            f"{len(SPECIAL)} special tokens need at least {SMALLEST_VOCAB}"
        )
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

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
    bos = SPECIAL[1]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, 1)]
    )
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
