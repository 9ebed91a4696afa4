"""Does an imported model say what transformers says of its source?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dareu_jax.audits.doctor.checks import Check, below, failed, in_words
from dareu_jax.audits.doctor.interpreter import Said, ask, source_of
from dareu_jax.audits.doctor.output import Report
from dareu_jax.audits.doctor.subject import as_dtype
from dareu_jax.audits.doctor.tokens import check_tokenizer, named
from dareu_jax.data.batches import pad
from dareu_jax.data.tokenizer_check import TEXTS
from dareu_jax.data.widths import rounded_up
from dareu_jax.data.wording import CHAT, Wording
from dareu_jax.errors import UserError
from dareu_jax.models.decode import greedy
from dareu_jax.models.hf.imported import open_imported
from dareu_jax.models.loaded import MULTIPLE, LoadedModel, load_model, padded
from dareu_jax.models.scoring import hidden_states, logits_of, response_logps
from dareu_jax.parallel import make_mesh

Array = np.ndarray
LOGITS, LOSSES = 1e-3, 1e-4
"""Largest differences, absolute, of two right float32 computations."""
NEW_TOKENS = 16
ASKED = tuple((text, number % 2 == 1) for number, text in enumerate(TEXTS))
"""Every second text is asked in the chat template where there is one."""
OURS = "import the source again; where that changes nothing, report its config.json"


class Found(NamedTuple):
    """How the imported model's words differ from those of transformers."""

    ids: list[str]  # texts whose ids differ
    logits: float  # largest difference
    argmax: float  # share of positions where the likeliest token is the same
    answers: list[str]  # texts whose greedy answers differ
    losses: float  # largest difference


class Conformance(Report):
    """A report whose verdict is about the import, not about scores."""

    @property
    def verdict(self) -> str:
        """One sentence on all checks."""
        bad, ran = failed(self.all), [c for c in self.all if c.passed is not None]
        if not bad:
            return (
                f"The imported model says what {PEER} says: all {len(ran)} checks "
                "passed."
            )
        more = f" ({len(bad) - 1} more failed)" if len(bad) > 1 else ""
        return (
            f"The imported model fails against {PEER}: {in_words(bad[0])}{more}; "
            f"{bad[0].remedy}."
        )


PEER = "transformers"


def conformance(folder: Path, python: str, source: Path | None = None) -> Conformance:
    """Compare an imported model with transformers, both in float32 on the CPU.

    Args:
      python: an interpreter that has torch and transformers.
      source: the Hugging Face folder; None: the one that was imported.

    Raises:
      UserError: no such model, source or interpreter, or transformers fails.
    """
    imported = open_imported(folder, "model")
    with ask(source_of(imported, source), python, ASKED, NEW_TOKENS) as said:
        mesh = make_mesh(devices=jax.devices("cpu")[:1])
        model = as_dtype(load_model(folder, mesh), "float32")
        found = differences(model, said)
        versions = "transformers {} on torch {}".format(*said.versions)
    checks = {PEER: checks_of(found), "tokenizer": [check_tokenizer(model.tokenizer)]}
    text = f"{len(TEXTS)} texts, against {versions} ({python})"
    return Conformance(str(folder), "float32", "cpu", text, checks)


def differences(model: LoadedModel, said: Said) -> Found:
    """Return how a model differs from what transformers said.

    Logits are of the ids of transformers; answers and losses of the model's own.
    """
    ids = ids_of(model)
    pairs = zip(ids, said.ids, strict=True)
    logits, argmax = compare_logits(model, said)
    losses = np.subtract(losses_of(model, ids), said.losses)
    return Found(
        ids=of_texts(ours != theirs for ours, theirs in pairs),
        logits=logits,
        argmax=argmax,
        answers=of_texts(
            ours != theirs[: len(ours)]  # ours may end earlier, at the end of a turn
            for ours, theirs in zip(answers_of(model, ids), said.answers, strict=True)
        ),
        losses=float(np.abs(losses).max()),
    )


def of_texts(differ: Iterator[bool]) -> list[str]:
    """Return the texts that differ."""
    return [text for text, other in zip(TEXTS, differ, strict=True) if other]


def ids_of(model: LoadedModel) -> list[list[int]]:
    """Return the ids of every text, as a run gives them to the model."""
    rows = []
    for text, is_chat in ASKED:
        asks = is_chat and model.tokenizer.has_chat
        wording = Wording(CHAT if asks else "{prompt}")
        rows.append(model.tokenizer.prompt(text, wording))
    return rows


def compare_logits(model: LoadedModel, said: Said) -> tuple[float, float]:
    """Return the largest difference of logits, and the share of equal argmax.

    Tokens whose logits are closer than two differences at their limit are equal.
    """
    largest, same = [], []
    for number, ours in enumerate(logits_of_texts(model, said.ids)):
        theirs = said.logits(number)
        check_vocabulary(ours.shape[1], theirs.shape[1])
        largest.append(np.abs(ours - theirs).max())
        best = np.take_along_axis(theirs, ours.argmax(-1)[:, None], axis=-1)[:, 0]
        same.append(best >= theirs.max(-1) - 2 * LOGITS)
    return float(np.max(largest)), float(np.concatenate(same).mean())


def logits_of_texts(model: LoadedModel, ids: list[list[int]]) -> Iterator[Array]:
    """Yield the logits ``[T, V]`` float32 of every text, one at a time."""
    decoder, params = model.decoder, model.params

    def score(params: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = hidden_states(decoder, params, tokens, mask)
        return logits_of(decoder, params, hidden)

    jitted, width = jax.jit(score), rounded_up(max(map(len, ids)), MULTIPLE)
    for row in ids:
        tokens, mask = pad([row], width, model.tokenizer.pad_id)
        with jax.set_mesh(model.mesh):
            yield np.asarray(jitted(params, tokens, mask))[0, : len(row)]


def check_vocabulary(ours: int, theirs: int) -> None:
    """Raise `UserError` when the two models have other numbers of tokens."""
    if ours != theirs:
        raise UserError(
            f"the imported model has {ours} logits, that of transformers {theirs}; "
            "import the source again, or give the right one as --source"
        )


def losses_of(model: LoadedModel, ids: list[list[int]]) -> Array:
    """Return the mean of -log p of every token but the first of each text: ``[N]``."""
    tokens = padded(model, [row[:1] for row in ids], [row[1:] for row in ids])
    score = jax.jit(lambda batch: response_logps(model.decoder, model.params, batch))
    logps = model.over(tokens, len(ids), score).sum(axis=1)
    return -logps / np.maximum(tokens.response_mask.sum(axis=1), 1)


def answers_of(model: LoadedModel, ids: list[list[int]]) -> list[list[int]]:
    """Return the likeliest tokens behind each text, the end of text included."""
    tokens = padded(model, ids, [[] for _ in ids])
    ends, layouts = model.tokenizer.stop_ids, model.layouts
    decode = greedy(model.decoder, model.params, ends, NEW_TOKENS, layouts=layouts)
    said = model.over(tokens, len(ids), decode)
    rows = zip(said.tokens, said.mask, strict=True)
    return [row[keep].tolist() for row, keep in rows]


def checks_of(found: Found) -> list[Check]:
    """Return the rows of the table."""
    ids, answers = len(found.ids), len(found.answers)
    argmax = Check(
        "argmax",
        found.argmax,
        1.0,
        bool(found.argmax >= 1.0),
        "share of positions with the same likeliest token",
        OURS,
        ">=",
    )
    return [
        below(
            "ids",
            ids,
            0,
            f"texts with other ids{named(found.ids)}",
            "compare its tokenizer_config.json with tokenizer.json: losses and answers "
            "below are of other tokens",
        ),
        below("logits", found.logits, LOGITS, "largest difference", OURS),
        argmax,
        below(
            "greedy answers",
            answers,
            0,
            f"texts with another answer{named(found.answers)}",
            "where ids and logits hold, compare the eos_token_id in config.json and "
            "generation_config.json",
        ),
        below("losses", found.losses, LOSSES, "largest difference, nats a token", OURS),
    ]
