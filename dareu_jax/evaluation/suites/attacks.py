"""Membership attacks and memorisation of given texts, by one model or two."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax import data
from dareu_jax.errors import UserError, did_you_mean
from dareu_jax.evaluation.metrics.membership import ATTACKS, gradnorm, reference
from dareu_jax.evaluation.metrics.memorisation import (
    exact_memorisation,
    extraction_strength,
)
from dareu_jax.evaluation.metrics.rows import finite
from dareu_jax.evaluation.metrics.token_stats import TokenStats, token_stats
from dareu_jax.evaluation.run_suite import mean_logp
from dareu_jax.evaluation.suites.measure import by_length
from dareu_jax.models.loaded import LoadedModel

WITH_END = ("loss", "zlib", "reference")
"""Attacks for which the end of text counts, as in open-unlearning."""
MEMORISED = {
    "exact_memorization": exact_memorisation,
    "extraction_strength": extraction_strength,
}
GIVEN = {"logps", "mean", "std", "mask", "texts"}
FORWARD = tuple(name for name, x in ATTACKS.items() if GIVEN.issuperset(x.needs))
"""Attacks that one forward pass of the model itself is enough for."""


class Given(NamedTuple):
    """N texts, of which a model says how likely they are.

    Attributes:
      tokens: the texts are its responses; texts: the same in words.
      has_end: whether the last token of each is the end of text.
    """

    tokens: data.TokenBatch
    texts: list[str]
    has_end: bool

    @property
    def words(self) -> np.ndarray:
        """Return the mask ``[N, T]`` of their tokens without the end of text."""
        mask = self.tokens.response_mask
        ends = np.cumsum(mask, axis=1) >= mask.sum(axis=1, keepdims=True)
        return mask & ~ends if self.has_end else mask


def attacks_named(asked: Sequence[str] | None, has_reference: bool) -> tuple[str, ...]:
    """Return the `ATTACKS` asked for; None: all that need no further model.

    Raises:
      UserError: an unknown attack, ``reference`` without a model or one without it.
    """
    if asked is None:
        return (*FORWARD, "reference") if has_reference else FORWARD
    names = tuple(dict.fromkeys(asked))
    for name in names:
        if name not in ATTACKS:
            near, known = did_you_mean(name, ATTACKS), ", ".join(ATTACKS)
            raise UserError(f"--attacks {name}: unknown{near}; known: {known}")
    if "reference" in names and not has_reference:
        raise UserError("--attacks reference needs --reference-model, another model")
    if has_reference and "reference" not in names:
        raise UserError(
            "--reference-model is for the attack reference; add it to --attacks"
        )
    return names


def memory_scores(model: LoadedModel, size: int, given: Given) -> dict[str, np.ndarray]:
    """Return the `FORWARD` attacks and memorisation ``[N]``, by name."""
    stats, words = statistics(model, size, given.tokens), given.words
    have: dict[str, Any] = {**stats._asdict(), "texts": given.texts}
    out = {}
    for name in FORWARD:
        have["mask"] = given.tokens.response_mask if name in WITH_END else words
        attack = ATTACKS[name]
        out[name] = attack.score(**{need: have[need] for need in attack.needs})
    return out | {name: of(have["hits"], words) for name, of in MEMORISED.items()}


def statistics(model: LoadedModel, size: int, tokens: data.TokenBatch) -> TokenStats:
    """Return `TokenStats` ``[N, T]`` of responses."""
    width = tokens.response.shape[1]

    def score(batch: data.TokenBatch) -> TokenStats:
        stats = token_stats(model.decoder, model.params, batch)
        more = width - batch.response.shape[1]
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, more))), stats)

    return by_length(model, tokens, size, score)


def mean_losses(model: LoadedModel, size: int, given: Given) -> np.ndarray:
    """Return mean nats per token ``[N]``; raises `UserError` if one is not finite."""
    score = functools.partial(mean_logp, model.decoder, model.params)
    logps = by_length(model, given.tokens, size, score)
    return finite("loss of the reference model", -logps)


def beyond_reference(losses: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return `reference` ``[N]`` from mean losses, as if each text had one token."""
    every = np.ones((len(losses), 1), bool)
    return reference(-losses[:, None], -others[:, None], every)


def gradient_norms(model: LoadedModel, size: int, given: Given) -> np.ndarray:
    """Return `gradnorm` ``[N]``, as in open-unlearning without the end of text.

    Another number of processes sums over devices in another order: same within 1e-6.
    """
    score = functools.partial(gradnorm, model.decoder, model.params)
    tokens = given.tokens._replace(response_mask=given.words)
    norms = by_length(model, tokens, size, score)
    return finite("gradnorm attack", norms)
