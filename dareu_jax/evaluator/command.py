"""`dareu evaluate`: a model and a suite in, a log of every row out."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from dareu_jax.attributor.model import Model, load_model
from dareu_jax.cache import user_cache
from dareu_jax.corpus.batches import CHAT, TEMPLATE
from dareu_jax.corpus.questions import TofuQuestions, tofu_questions
from dareu_jax.corpus.shared import read_owned
from dareu_jax.errors import UserError
from dareu_jax.evaluation.log_files import score_files
from dareu_jax.evaluator.choices import choices_log, read_choices
from dareu_jax.evaluator.kept import Kept
from dareu_jax.evaluator.measure import Reading
from dareu_jax.evaluator.muse import muse_log, read_muse
from dareu_jax.evaluator.owners import owners_log, split
from dareu_jax.evaluator.suite import Judge
from dareu_jax.evaluator.tables import Table
from dareu_jax.evaluator.tofu import tofu_log
from dareu_jax.pipeline import write_json
from dareu_jax.registry import did_you_mean
from dareu_jax.reporting.log_plots import plot_files
from dareu_jax.reporting.progress import Progress
from dareu_jax.reporting.scores import print_scores

BARE = "{prompt}"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line says; None: not said.

    Attributes:
      model: a folder that ``dareu import`` wrote; suite: a name of `SUITES`.
      out: the folder of the log; data: of the suite's files, or its one file.
      forget: which of TOFU's forget sets, or names of owners; first: only so many
        rows of each of TOFU's sets.
      template: around a question; system: before it, with ``chat``.
      batch_size: texts at a time; max_new_tokens: of an answer.
    """

    model: Path
    suite: str
    out: Path
    data: Path | None = None
    forget: str = "forget10"
    first: int | None = None
    template: str | None = None
    system: str | None = None
    batch_size: int = 16
    max_new_tokens: int = 200


class Suite(NamedTuple):
    """A suite: what it reads, and what it makes of a model.

    Attributes:
      read: ``asked -> data``, before a model is loaded.
      log: ``(judge, data, progress) -> tables``.
      is_bare: prompts are as they are in the files, without a template.
    """

    read: Callable[[Asked], Any]
    log: Callable[[Judge, Any, Progress], dict[str, Table]]
    is_bare: bool = False


def given(asked: Asked) -> Path:
    """The data, where a suite cannot download it; raises `UserError` without."""
    if asked.data is None:
        raise UserError(f"--suite {asked.suite} needs --data, its files")
    return asked.data


def read_tofu(asked: Asked) -> TofuQuestions:
    """TOFU's questions, downloaded where no folder is given."""
    downloads = user_cache() / "downloads"
    return tofu_questions(asked.data, asked.forget, downloads, asked.first)


SUITES = {
    "tofu": Suite(read_tofu, tofu_log),
    "owners": Suite(
        lambda asked: split(read_owned(given(asked)), asked.forget),
        owners_log,
    ),
    "muse": Suite(
        lambda asked: read_muse(given(asked)),
        muse_log,
        is_bare=True,
    ),
    "choices": Suite(
        lambda asked: (read_choices(given(asked)), given(asked).stem),
        choices_log,
        is_bare=True,
    ),
}


def evaluated(asked: Asked, progress: Progress) -> Path:
    """Evaluates the model; returns the path of its log.

    Raises:
      UserError: bad input; that of files before the model is loaded.
    """
    if asked.suite not in SUITES:
        near, known = did_you_mean(asked.suite, SUITES), ", ".join(SUITES)
        raise UserError(f"--suite {asked.suite}: unknown{near}; known: {known}")
    suite = SUITES[asked.suite]
    data = suite.read(asked)
    if asked.out.exists() and not asked.out.is_dir():
        raise UserError(f"--out {asked.out} is no folder; name another place")
    model = load_model(asked.model)
    reading = reading_of(asked, model)
    settings = {
        "model": model.fingerprint,
        "template": reading.template,
        "system": reading.system,
    }
    judge = Judge(model, reading, Kept(asked.out / "parts", settings))
    log = suite.log(judge, data, progress)
    name = asked.suite.upper()
    short = {metric: table["agg_value"] for metric, table in log.items()}
    path = asked.out / f"{name}_EVAL.json"
    write_json(asked.out / f"{name}_SUMMARY.json", short)
    write_json(path, log)
    return path


def print_log(console: Console, path: Path, reference: Path | None) -> None:
    """Prints what a log comes to, beside the reference's where it is of TOFU's kind.

    Raises:
      UserError: a reference that cannot be read, or of other rows.
    """
    log = json.loads(path.read_text(encoding="utf-8"))
    if "forget_Q_A_Prob" in log:
        print_scores(console, score_files(path, reference, partial=True))
        plots = path.with_suffix(".png")
        if plot_files(plots, path, reference, partial=True):
            console.print(f"plots: {plots}", markup=False, soft_wrap=True)
        return
    for metric, table in log.items():
        console.print(f"{metric}: {table['agg_value']:.4f}", markup=False)


def reading_of(asked: Asked, model: Model) -> Reading:
    """How the model reads: in its own chat template, where it has one.

    Raises:
      UserError: a template without a place for the question.
    """
    own = CHAT if model.tokenizer.has_chat else TEMPLATE
    own = BARE if SUITES[asked.suite].is_bare else own
    template = own if asked.template is None else asked.template
    if "{prompt}" not in template and template != CHAT:
        raise UserError(
            f"--template {template!r:.60} lacks {{prompt}}, the place of the question "
            "(chat: the tokenizer's own template)"
        )
    return Reading(template, asked.system, asked.batch_size, asked.max_new_tokens)
