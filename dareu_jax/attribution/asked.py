"""`dareu attribute`: read files, return scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from dareu_jax.attribution.attribute import build, unbuilt
from dareu_jax.attribution.attributor import Attributor, Named, Options
from dareu_jax.attribution.finite import check_scores
from dareu_jax.attribution.store import Spec, check_records, load, read_spec, save
from dareu_jax.config import all_keys, build_config
from dareu_jax.config.load import parse_value, set_key
from dareu_jax.data.ownership import owners_of
from dareu_jax.data.sources.jsonl import Query, read_owned, read_queries
from dareu_jax.errors import UserError, did_you_mean
from dareu_jax.models.loaded import load_model
from dareu_jax.training.progress import Progress, counter

SECTIONS = ("attribution", "classifier")


@dataclass(frozen=True)
class Attributed:
    """What was asked and found.

    Attributes:
      kernel: as registered; queries, answers: Q of each.
      owners: O names; scores: ``[Q, O]`` float32 in the kernel's unit.
      top: the records of each query, or None where they were not asked for.
      top_of: whose records those are; None: anybody's.
    """

    kernel: str
    queries: Sequence[Query]
    answers: Sequence[str]
    owners: Sequence[str]
    scores: np.ndarray
    top: Sequence[Sequence[Named]] | None
    top_of: str | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line says; None: not said.

    Attributes:
      model, records, queries: paths; index: a folder to read or to make.
      kernel: see `Options`; wording: fields of `Wording`; changes: ``key=value`` of
        `SECTIONS`.
      batch_size: texts at a time; top: records named per answer.
      owner: whose records; max_new_tokens: of an answer that the model gives.
    """

    model: Path
    records: Path
    queries: Path
    index: Path | None = None
    kernel: str | None = None
    wording: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[str] = ()
    batch_size: int = 8
    top: int = 0
    owner: str | None = None
    max_new_tokens: int = 64


def attributed(asked: Asked, progress: Progress) -> Attributed:
    """Attribute the answers; build the index, and keep it where asked to.

    Raises:
      UserError: bad input; that of files and options before anything is computed.
    """
    saved = asked.index if asked.index is not None and asked.index.exists() else None
    spec = None if saved is None else read_spec(saved)
    options = options_of(asked, spec)
    records, queries = read_owned(asked.records), read_queries(asked.queries)
    if asked.owner is not None:
        check_owner(asked.owner, owners_of(records), asked.records)
    if saved is not None and spec is not None:
        check_records(saved, spec, records)
    model = load_model(asked.model)
    made = unbuilt(model, options, records)
    if asked.top:
        made.check_single()
    if saved is not None:
        made = load(saved, model, records, batch_size=asked.batch_size)
        return shown(made, queries, asked, progress)
    if asked.index is not None:
        above = next(x for x in asked.index.absolute().parents if x.exists())
        if not above.is_dir():
            raise UserError(
                f"--index {asked.index}: {above} is no folder; name another place"
            )
    made = build(made, progress)
    if asked.index is not None:
        save(made, asked.index)
    return shown(made, queries, asked, progress)


def options_of(asked: Asked, spec: Spec | None) -> Options:
    """Return the options asked for; those of an index where nothing else is asked.

    Raises:
      UserError: no such kernel or key, a value out of range, or others than those of
        the index.
    """
    base = Options() if spec is None else spec.options(asked.batch_size)
    tree = {name: getattr(base, name).model_dump(mode="json") for name in SECTIONS}
    for item in asked.changes:
        key, sign, value = item.partition("=")
        known = [key for key in all_keys() if key.split(".")[0] in SECTIONS]
        if not sign or key not in known:
            raise UserError(
                f"--set {item}: no such option{did_you_mean(key, known)}; give KEY="
                "VALUE of attribution or classifier, such as attribution.damping=0.01"
            )
        set_key(tree, key, parse_value(item, value))
    sections = build_config(tree, "--set")
    wanted = dataclasses.replace(
        base,
        kernel=asked.kernel or base.kernel,
        wording=dataclasses.replace(base.wording, **asked.wording),
        attribution=sections.attribution,
        classifier=sections.classifier,
        batch_size=asked.batch_size,
    )
    if asked.index is not None and spec is not None:
        check_same(asked.index, wanted, base)
    return wanted


def check_same(index: Path, wanted: Options, built: Options) -> None:
    """Raise `UserError` where other options are wanted than an index has."""
    before, after = (
        flatten_dict(options.read_by_kernel(), sep=".") for options in (built, wanted)
    )
    for key, value in before.items():
        if after[key] != value:
            raise UserError(
                f"--index {index} was built with {key} = {value!r:.60}, not "
                f"{after[key]!r:.60}; leave that out, or name another folder"
            )


def check_owner(owner: str, owners: Sequence[str], where: Path) -> None:
    """Raise `UserError` when nobody of that name owns a record."""
    if owner not in owners:
        known = ", ".join(owners[:8]) + ", ..." * (len(owners) > 8)
        near = did_you_mean(owner, tuple(owners))
        raise UserError(f"--owner {owner!r} owns nothing in {where}{near}; {known} do")


def shown(
    made: Attributor, queries: Sequence[Query], asked: Asked, progress: Progress
) -> Attributed:
    """Return `answered`, and show how many answers are given and scored."""
    missing = sum(query.response is None for query in queries)
    with progress.stage("scores of the answers", missing + len(queries)) as advance:
        model = made.model._replace(counted=counter(advance))
        return answered(dataclasses.replace(made, model=model), queries, asked)


def answered(made: Attributor, queries: Sequence[Query], asked: Asked) -> Attributed:
    """Score every answer; an answer that is not given, the model gives.

    Raises:
      UserError: a score is no finite number.
    """
    missing = [q.prompt for q in queries if q.response is None]
    own = iter(made.answer(missing, asked.max_new_tokens) if missing else ())
    answers = [next(own) if q.response is None else q.response for q in queries]
    pairs = [(q.prompt, a) for q, a in zip(queries, answers, strict=True)]
    scores = made.score(pairs)
    names = [f"answer {query.id!r}" for query in queries]
    check_scores(made.options.kernel, scores, names, made.owners)
    named = made.top_records(pairs, asked.top, asked.owner) if asked.top else None
    return Attributed(
        kernel=made.options.kernel,
        queries=queries,
        answers=answers,
        owners=made.owners,
        scores=scores,
        top=named,
        top_of=asked.owner,
    )
