"""Judge a model by a benchmark: a log of every row."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dareu_jax.data.sources.jsonl import read_owned
from dareu_jax.data.tofu_questions import TofuQuestions, tofu_questions
from dareu_jax.data.wording import Wording
from dareu_jax.errors import UserError, did_you_mean
from dareu_jax.evaluation.logs.tables import Table
from dareu_jax.evaluation.suites.attacks import attacks_named
from dareu_jax.evaluation.suites.choices import choices_log, read_choices
from dareu_jax.evaluation.suites.judge import Judge
from dareu_jax.evaluation.suites.kept import Kept
from dareu_jax.evaluation.suites.measure import Reading
from dareu_jax.evaluation.suites.muse import muse_log, read_muse
from dareu_jax.evaluation.suites.owners import Sets, owners_log, split
from dareu_jax.evaluation.suites.tofu import tofu_log
from dareu_jax.models.loaded import LoadedModel
from dareu_jax.parallel import first_then_others
from dareu_jax.runs.evaluate import eval_records
from dareu_jax.runs.folder import check_corpus
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.load import Subject, reference_of, subject_of
from dareu_jax.storage.files import user_cache, write_json
from dareu_jax.training.progress import Progress

BARE = Wording("{prompt} ")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line says, as its help explains; None: not said.

    One name alone may stand for a sequence of one.
    """

    model: Path
    suite: str
    out: Path
    data: Path | None = None
    forget: Sequence[str] | None = None
    first: int | None = None
    wording: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 16
    max_new_tokens: int = 200
    row: str | None = None
    seed: int | None = None
    attacks: Sequence[str] | None = None
    reference_model: Path | None = None

    def __post_init__(self) -> None:
        for name in ("forget", "attacks"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))


class Suite(NamedTuple):
    """A suite: what it reads before a model is loaded, and what it makes of one."""

    read: Callable[[Asked, Subject], Any]
    log: Callable[[Judge, Any, Progress], dict[str, Table]]
    is_bare: bool = False  # prompts are as in the files, without a template
    has_attacks: bool = False  # it has texts for membership attacks


def given(asked: Asked) -> Path:
    """Return the data that a suite cannot download; raises `UserError` without."""
    if asked.data is None:
        raise UserError(f"--suite {asked.suite} needs --data, its files")
    return asked.data


def data_of(suite: Suite, asked: Asked, subject: Subject) -> Any:
    """Return what a suite reads; raises `UserError` if it is malformed or missing."""
    try:
        return suite.read(asked, subject)
    except UserError as error:
        if asked.data is None:
            raise
        text = str(error).replace("corpus.path:", "--data:", 1)
        raise UserError(text) from None


def read_tofu(asked: Asked, subject: Subject) -> TofuQuestions:
    """Return TOFU's questions, downloaded where no folder is given."""
    downloads, names = user_cache() / "downloads", asked.forget or ["forget10"]
    if len(names) > 1:
        raise UserError(f"--forget: {' and '.join(names)}; suite tofu takes one set")
    (forget,) = names
    return first_then_others(
        lambda: tofu_questions(asked.data, forget, downloads, asked.first)
    )


SUITES = {
    "tofu": Suite(read_tofu, tofu_log, has_attacks=True),
    "owners": Suite(
        lambda asked, subject: owners_sets(subject.run, asked.data, asked.forget),
        owners_log,
    ),
    "muse": Suite(
        lambda asked, subject: read_muse(given(asked)),
        muse_log,
        is_bare=True,
        has_attacks=True,
    ),
    "choices": Suite(
        lambda asked, subject: (read_choices(given(asked)), given(asked).stem),
        choices_log,
        is_bare=True,
    ),
}


def evaluated(asked: Asked, progress: Progress) -> Path:
    """Evaluate the model and return the path of its log."""
    suite, attacks = checked(asked)
    subject = subject_of(asked.model, asked.row, asked.seed)
    data = data_of(suite, asked, subject)
    other = asked.reference_model
    compared = None if other is None else reference_of(other, asked.seed)
    model = subject.load()
    reading = reading_of(asked, model)
    settings = dataclasses.asdict(reading.wording)
    kept = Kept(asked.out / "parts", {"model": model.fingerprint, **settings})
    reference = None if compared is None else alike(asked, model, compared.load())
    judge = Judge(
        model, reading, kept, attacks=attacks, reference=reference, progress=progress
    )
    log = suite.log(judge, data, progress)
    short = {metric: table["agg_value"] for metric, table in log.items()}
    write_json(asked.out / f"{asked.suite.upper()}_SUMMARY.json", short)
    path = asked.out / f"{asked.suite.upper()}_EVAL.json"
    write_json(path, log)
    return path


def checked(asked: Asked) -> tuple[Suite, tuple[str, ...]]:
    """Return the suite and its attacks; raises `UserError` for an unknown name."""
    if asked.suite not in SUITES:
        near, known = did_you_mean(asked.suite, SUITES), ", ".join(SUITES)
        raise UserError(f"--suite {asked.suite}: unknown{near}; known: {known}")
    if asked.out.exists() and not asked.out.is_dir():
        raise UserError(f"--out {asked.out} is no folder; name another place")
    suite, other = SUITES[asked.suite], asked.reference_model
    if not suite.has_attacks and (asked.attacks or other):
        raise UserError(
            f"--suite {asked.suite} has no texts for attacks; leave --attacks and "
            "--reference-model out"
        )
    return suite, attacks_named(asked.attacks, other is not None)


def alike(asked: Asked, model: LoadedModel, reference: LoadedModel) -> LoadedModel:
    """Return the reference; raises `UserError` where it reads text as other tokens."""
    if reference.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise UserError(
            f"--reference-model {asked.reference_model} has another tokenizer than "
            f"{asked.model}; its loss is of other tokens, give one with the same"
        )
    return reference


def reading_of(asked: Asked, model: LoadedModel) -> Reading:
    """Return how a model reads: as in its run, or as its tokenizer says."""
    own = BARE if SUITES[asked.suite].is_bare else model.wording
    wording = dataclasses.replace(own, **asked.wording)
    return Reading(wording, asked.batch_size, asked.max_new_tokens)


def owners_sets(
    run: Inputs | None, data: Path | None, forget: Sequence[str] | None
) -> Sets:
    """Return records by set: of ``data``, or those that a run judges its models on."""
    if run is not None:
        if data is None:
            check_corpus(run.corpus, run.folder)
            if forget is None:
                return eval_records(run)
            return split(run.corpus.train, forget)
        forget = forget or run.cfg.corpus.forget
    if data is None:
        raise UserError("--suite owners needs --data, its records; a run has its own")
    if not forget:
        raise UserError("--suite owners needs --forget, an owner to forget")
    return split(read_owned(data), forget)
