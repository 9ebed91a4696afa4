"""`dareu evaluate`: a model and a suite in, a log of every row out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dareu_jax.attributor.model import Model, load_model
from dareu_jax.cache import user_cache
from dareu_jax.corpus.batches import CHAT, TEMPLATE
from dareu_jax.corpus.questions import tofu_questions
from dareu_jax.errors import UserError
from dareu_jax.evaluator.kept import Kept
from dareu_jax.evaluator.measure import Reading
from dareu_jax.evaluator.tofu import Judged
from dareu_jax.registry import did_you_mean
from dareu_jax.reporting.progress import Progress

SUITES = ("tofu",)
LOG = "TOFU_EVAL.json"
SUMMARY = "TOFU_SUMMARY.json"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line says; None: not said.

    Attributes:
      model: a folder that ``dareu import`` wrote; suite: its name.
      out: the folder of the log; data: of the suite's files.
      forget: which of TOFU's forget sets; first: only so many rows of each set.
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


def evaluated(asked: Asked, progress: Progress) -> Path:
    """Evaluates the model; returns the path of its log.

    Raises:
      UserError: bad input; that of files before the model is loaded.
    """
    if asked.suite not in SUITES:
        near = did_you_mean(asked.suite, SUITES)
        raise UserError(f"--suite {asked.suite}: no such suite{near}; tofu is there")
    data = user_cache() / "downloads"
    questions = tofu_questions(asked.data, asked.forget, data, asked.first)
    if asked.out.exists() and not asked.out.is_dir():
        raise UserError(f"--out {asked.out} is no folder; name another place")
    model = load_model(asked.model)
    reading = reading_of(asked, model)
    settings = {
        "model": model.fingerprint,
        "template": reading.template,
        "system": reading.system,
    }
    kept = Kept(asked.out / "parts", settings)
    log = Judged(model, reading, questions, kept, progress).log()
    write(asked.out / SUMMARY, {k: v["agg_value"] for k, v in log.items()})
    return write(asked.out / LOG, log)


def reading_of(asked: Asked, model: Model) -> Reading:
    """How the model reads: in its own chat template, where it has one.

    Raises:
      UserError: a template without a place for the question.
    """
    own = CHAT if model.tokenizer.has_chat else TEMPLATE
    template = own if asked.template is None else asked.template
    if "{prompt}" not in template and template != CHAT:
        raise UserError(
            f"--template {template!r:.60} lacks {{prompt}}, the place of the question "
            "(chat: the tokenizer's own template)"
        )
    return Reading(template, asked.system, asked.batch_size, asked.max_new_tokens)


def write(path: Path, value: Any) -> Path:
    """Writes JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    partial.replace(path)
    return path
