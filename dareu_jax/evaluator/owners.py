"""Any owners' records: those of some against those of all others."""

from collections.abc import Sequence

from dareu_jax import corpus as owned
from dareu_jax.errors import UserError
from dareu_jax.evaluator.suite import Judge
from dareu_jax.evaluator.tables import Table, probabilities
from dareu_jax.registry import did_you_mean
from dareu_jax.reporting.progress import Progress


def split(
    records: Sequence[owned.Record], forget: str
) -> dict[str, list[owned.Record]]:
    """Records by set: those of the owners named, ``a,b``, and the others'.

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


def owners_log(
    judge: Judge, sets: dict[str, list[owned.Record]], progress: Progress
) -> dict[str, Table]:
    """Probability, ROUGE and text quality of both sets."""
    out: dict[str, Table] = {}
    for name, rows in sets.items():
        with progress.stage(name, 1):
            asked, gold = [r.prompt for r in rows], [r.response for r in rows]
            losses = judge.losses(f"{name}_gold", list(zip(asked, gold)))
            out[f"{name}_Q_A_Prob"] = probabilities(losses)
            out |= judge.answers(name, name, asked, gold)
    return out
