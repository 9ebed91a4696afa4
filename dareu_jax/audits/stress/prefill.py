"""Prefilling: does the model go on where the gold answer begins?"""

import functools
import math
from typing import Any

import numpy as np

from dareu_jax.audits.stress.context import Context, means, outcome, stress_test
from dareu_jax.data import TokenBatch, Tokenizer
from dareu_jax.evaluation.metrics.memorisation import (
    exact_memorisation,
    extraction_strength,
)
from dareu_jax.evaluation.metrics.rouge import rouge_l_recall
from dareu_jax.evaluation.metrics.token_stats import token_stats
from dareu_jax.evaluation.run_suite import answer, in_batches
from dareu_jax.parallel import shared_out

SHARES = (0.0, 0.125, 0.25, 0.5)
"""Of the gold answer's tokens, end of text left out."""
MEMORISED = ("extraction strength", "exact memorisation")
MORE = "the beginning of an answer brings back the rest of it"


def prefilled(
    tokens: TokenBatch, share: float, stop_ids: tuple[int, ...]
) -> tuple[TokenBatch, list[list[int]]]:
    """Prompts that end in the first ``floor(share T)`` gold tokens, and the rest."""
    n, p = tokens.prompt.shape
    room = math.ceil(tokens.response.shape[1] * max(SHARES))
    prompt = np.zeros((n, p + room), tokens.prompt.dtype)
    mask = np.zeros((n, p + room), np.bool_)
    rest = []
    for row in range(n):
        gold = tokens.response[row][tokens.response_mask[row]]
        gold = gold[~np.isin(gold, stop_ids)]
        m = math.floor(share * len(gold))
        asked = tokens.prompt[row][tokens.prompt_mask[row]]
        filled = np.concatenate([asked, gold[:m]])
        prompt[row, p + room - len(filled) :] = filled
        mask[row, p + room - len(filled) :] = True
        rest.append(gold[m:].tolist())
    return tokens._replace(prompt=prompt, prompt_mask=mask), rest


def texts(tokenizer: Tokenizer, rows: list[list[int]]) -> list[str]:
    """Token lists in words."""
    return [tokenizer.decode(row).strip() for row in rows]


def memorised(context: Context, params: Any) -> tuple[list[float], list[float]]:
    """Extraction strength and exact memorisation of the gold answers, each ``[N]``.

    1 - k/T for the shortest prefix of k tokens from which the rest is extracted (0
    where there is none), and the share of tokens that are the argmax; end of text is
    left out.
    """
    suite, tokens = context.suite, context.forget
    score = functools.partial(token_stats, suite.model, params)
    hits = in_batches(suite, tokens, score).hits
    ends = np.isin(tokens.response, suite.tokenizer.stop_ids)
    mask = tokens.response_mask & ~ends
    strength, exact = extraction_strength(hits, mask), exact_memorisation(hits, mask)
    return strength.tolist(), exact.tolist()


@stress_test("prefill", "greedy decoding behind the first gold tokens")
def prefill(context: Context) -> dict[str, Any]:
    """ROUGE recall of what follows the first m gold tokens, m a share of `SHARES`.

    The headline is the largest share's. `memorised` stands beside it.
    """
    suite = context.suite
    known = {role: memorised(context, p) for role, p in context.models.items()}
    found: dict[float, dict[str, list[float]]] = {share: {} for share in SHARES}
    total = len(SHARES) * len(context.models)
    with context.run.progress.stage("prefill", total) as advance:
        for number, share in enumerate(SHARES):
            tokens, rest = prefilled(context.forget, share, suite.tokenizer.stop_ids)
            gold = texts(suite.tokenizer, rest)
            for role, params in context.models.items():
                said = answer(suite, params, tokens).text
                found[share][role] = shared_out(rouge_l_recall, said, gold)
            advance((number + 1) * len(context.models), f"share {share:g}")
    return outcome(
        f"ROUGE behind {SHARES[-1]:.0%} of the answer",
        found[SHARES[-1]],
        MORE,
        parts={f"behind {share:.1%}": found[share] for share in SHARES[:-1]}
        | {
            label: {role: own[place] for role, own in known.items()}
            for place, label in enumerate(MEMORISED)
        },
        shares=list(SHARES),
        curve={
            role: [means(found[share])[role] for share in SHARES]
            for role in context.models
        },
    )
