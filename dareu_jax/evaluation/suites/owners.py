"""Suite of owners: records of some owners against those of all others."""

import re
from collections.abc import Mapping, Sequence

from dareu_jax.data import NOBODY, Record
from dareu_jax.data.ownership import owners_of, shares_of
from dareu_jax.data.records import OTHERS
from dareu_jax.errors import UserError, did_you_mean
from dareu_jax.evaluation.logs.tables import Table, probabilities, values
from dareu_jax.evaluation.suites.judge import Judge
from dareu_jax.training.progress import Progress

NAME = re.compile(r"[^\W\d_]+(?:[ .'’-]+[^\W\d_]+)*\.?")
"""Owners whom an answer can mention: "Ann Lee", not "owner_07"."""
Sets = Mapping[str, Sequence[Record]]


def split(records: Sequence[Record], names: Sequence[str]) -> dict[str, list[Record]]:
    """Return records by set: those of the owners named, and all others.

    Raises:
      UserError: somebody owns nothing, or nobody else owns anything.
    """
    there = sorted({r.owner for r in records} - {NOBODY})
    for name in names:
        if name not in there:
            hint = did_you_mean(name, there)
            if set(map(str.strip, name.split(","))) <= set(there):
                hint = "; name several owners by --forget A --forget B"
            raise UserError(f"--forget {name}: owns no record{hint}")
    sets = {
        "forget": [r for r in records if r.owner in names],
        "retain": [r for r in records if r.owner not in names],
    }
    if not sets["retain"]:
        many = ", ".join(names)
        raise UserError(f"--forget {many}: there is no record of anybody else")
    return sets


def owners_log(judge: Judge, sets: Sets, progress: Progress) -> dict[str, Table]:
    """Return probability and perplexity of gold answers, ROUGE and quality of own."""
    out: dict[str, Table] = {}
    names = [x for x in owners_of(sets["retain"]) if x != OTHERS and NAME.fullmatch(x)]
    for name, rows in sets.items():
        with progress.stage(name, 1):
            asked, gold = [r.prompt for r in rows], [r.response for r in rows]
            pairs = list(zip(asked, gold))
            losses = judge.losses(f"{name}_gold", pairs)
            found = judge.perplexity(pairs, losses)
            out[f"{name}_Q_A_Prob"] = probabilities(losses)
            out[f"{name}_Q_A_Perplexity"] = values(
                "perplexity", found.rows, found.total
            )
            owners = [dict(shares_of(record)) for record in rows]
            others = [[x for x in names if x not in own] for own in owners]
            out |= judge.answers(
                name, name, asked, gold, others=others if names else None
            )
    return out
