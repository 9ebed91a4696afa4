"""Suite of owners: records of some owners against those of all others."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dareu_jax import corpus as owned
from dareu_jax.corpus.records import OTHERS
from dareu_jax.corpus.shared import owners_of, shares_of
from dareu_jax.corpus.sources.jsonl import read_owned
from dareu_jax.errors import UserError
from dareu_jax.evaluator.suite import Judge
from dareu_jax.evaluator.tables import Table, probabilities, values
from dareu_jax.registry import did_you_mean
from dareu_jax.reporting.progress import Progress
from dareu_jax.runs.evaluate import eval_records
from dareu_jax.runs.folder import check_corpus
from dareu_jax.runs.inputs import Inputs

NAME = re.compile(r"[^\W\d_]+(?:[ .'’-]+[^\W\d_]+)*\.?")
"""Words and nothing else: "Ann Lee", not "owner_07"."""
Sets = Mapping[str, Sequence[owned.Record]]


def owners_sets(run: Inputs | None, data: Path | None, forget: str | None) -> Sets:
    """Return records by set: of ``data``, or those that a run judges its models on.

    Args:
      run: that trained the model, or None; data: a JSONL file of records.
      forget: names of owners, ``a,b``; None: those that withdrew from the run.

    Raises:
      UserError: nothing says which records or owners; see `split`.
    """
    if run is not None:
        if data is None:
            return run_sets(run, forget)
        forget = forget or ",".join(run.cfg.corpus.forget)
    if data is None:
        raise UserError("--suite owners needs --data, its records; a run has its own")
    if forget is None:
        raise UserError("--suite owners needs --forget, owners to forget: alice,bob")
    return split(read_owned(data), forget)


def run_sets(run: Inputs, forget: str | None) -> Sets:
    """Return a run's own records, split as in the run or at other owners.

    Raises:
      UserError: they have changed since; see `split`.
    """
    check_corpus(run.corpus, run.folder)
    return eval_records(run) if forget is None else split(run.corpus.train, forget)


def split(
    records: Sequence[owned.Record], forget: str
) -> dict[str, list[owned.Record]]:
    """Return records by set: those of the owners named in ``a,b``, and all others.

    Raises:
      UserError: somebody owns nothing, or nobody else owns anything.
    """
    names = [name.strip() for name in forget.split(",")]
    there = sorted({r.owner for r in records} - {owned.NOBODY})
    for name in names:
        if name not in there:
            near = did_you_mean(name, there)
            raise UserError(f"--forget {name}: owns no record{near}")
    sets = {
        "forget": [r for r in records if r.owner in names],
        "retain": [r for r in records if r.owner not in names],
    }
    if not sets["retain"]:
        raise UserError(f"--forget {forget}: there is no record of anybody else")
    return sets


def owners_log(judge: Judge, sets: Sets, progress: Progress) -> dict[str, Table]:
    """Return probability and perplexity of gold answers, ROUGE and quality of own."""
    out: dict[str, Table] = {}
    names = [name for name in owners_of(sets["retain"]) if is_name(name)]
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
            others = [others_of(record, names) for record in rows] if names else None
            out |= judge.answers(name, name, asked, gold, others=others)
    return out


def is_name(owner: str) -> bool:
    """Return whether an answer can mention an owner by name."""
    return owner != OTHERS and NAME.fullmatch(owner) is not None


def others_of(record: owned.Record, names: Sequence[str]) -> list[str]:
    """Return the ``names`` of everybody but a record's own owner."""
    own = dict(shares_of(record))
    return [name for name in names if name not in own]
