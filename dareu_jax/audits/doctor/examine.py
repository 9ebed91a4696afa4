"""`dareu doctor`: every check of one model on the devices at hand."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from dareu_jax.audits.doctor import checks as checked
from dareu_jax.audits.doctor import subject
from dareu_jax.audits.doctor.checks import Check, Score
from dareu_jax.audits.doctor.output import Report
from dareu_jax.audits.doctor.tokens import check_tokenizer
from dareu_jax.data import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.models.context import lengths_of, warn_beyond
from dareu_jax.models.loaded import LoadedModel, load_model

DTYPES = ("float32", "bfloat16")
ENGINE = "grad_dot"
"""The kernel whose scores the oracle gives too."""


def examine(
    folder: Path,
    records: Path | None = None,
    kernels: Sequence[str] = (ENGINE,),
    rows: int = 16,
) -> Report:
    """Examines the imported model in ``folder``; nothing is written.

    Args:
      records: JSONL of owner, prompt, response; None: text of the model's own.
      kernels: of ``dareu list kernels``; rows: texts in the index, and asked.

    Raises:
      UserError: bad input, several processes, or too little memory.
    """
    if (hosts := jax.process_count()) > 1:
        raise UserError(f"doctor takes one process, here are {hosts}; use one host")
    model = load_model(folder)
    check_kernels(model, kernels)
    try:
        if records is None:
            text = subject.make_text(model, rows)
        else:
            text = subject.read_text(records, model.tokenizer, rows)
            every = [lengths_of(x) for x in (text.records.text, text.queries)]
            warn_beyond(model.context, itertools.chain(*every))
        unknown = subject.unknown_text(text.queries, model.tokenizer)
        checks = {"gradients": check_gradients(model, text, unknown)}
        checks["tokenizer"] = [check_tokenizer(model.tokenizer)]
        for name in dict.fromkeys(kernels):
            checks[name] = check_kernel(model, name, text)
    except jax.errors.JaxRuntimeError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"{folder} does not fit the memory of {devices_in_words()} with the "
            "gradients of its owners; lower --rows (2: two owners) or take more devices"
        ) from None
    said = "the model's own" if records is None else str(records)
    return Report(str(folder), dtype_of(model), devices_in_words(), said, checks)


def check_kernels(model: LoadedModel, kernels: Sequence[str]) -> None:
    """Raises `UserError` when a kernel is unknown or a control."""
    for name in kernels:
        if subject.kernel_of(model, name, 2).is_control:
            raise UserError(
                f"--kernel {name} is a control, its scores say nothing by design; "
                f"take one such as {ENGINE}"
            )


def dtype_of(model: LoadedModel) -> str:
    """The dtype that a model computes in."""
    return model.decoder.cfg.compute_dtype


def is_full(error: Exception) -> bool:
    """Whether an error of the devices is that their memory is full."""
    return "RESOURCE_EXHAUSTED" in str(error)


def devices_in_words() -> str:
    """Such as ``8 x TPU v5e``."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def check_gradients(
    model: LoadedModel, text: subject.Text, unknown: TokenBatch
) -> list[Check]:
    """The engine of all gradient kernels against ``vmap(grad)``, and saturation."""
    exact = subject.as_dtype(model, "float32")
    score = subject.Scorer(exact, ENGINE, text, subject.HIGHEST)
    found = score(text.queries)
    limit = limit_of(score, text.queries, found)
    scores, norms = subject.oracle(exact, text, text.queries)
    _, usual = subject.oracle(exact, text, unknown)
    return [
        checked.check_probe(found, scores, limit),
        checked.check_saturation(norms, usual),
    ]


def limit_of(score: subject.Scorer, queries: TokenBatch, scores: np.ndarray) -> float:
    """The limit for exact float32 ``scores`` that should be the same."""
    moved = score(queries, subject.jiggled(score.model.params))
    return checked.exact_limit(checked.relative(moved, scores))


def check_kernel(model: LoadedModel, name: str, text: subject.Text) -> list[Check]:
    """Precision, then what must not change scores: in float32 and as they are."""
    queries, fills = text.queries, text.fills
    exact = subject.Scorer(
        subject.as_dtype(model, "float32"), name, text, subject.HIGHEST
    )
    reference = exact(queries)
    limit = limit_of(exact, queries, reference)
    score = subject.Scorer(model, name, text)
    scores, checks = score(queries), []
    for dtype in dict.fromkeys([*DTYPES, dtype_of(model)]):
        found = scores
        if dtype != dtype_of(model):
            found = subject.Scorer(subject.as_dtype(model, dtype), name, text)(queries)
        checks.append(checked.check_ranks(dtype, found, reference))
        checks.append(checked.check_error(dtype, found, reference))
    if not np.array_equal(scores, reference):
        checks += [
            check._replace(name=f"{check.name}, exact float32")
            for check in check_invariance(exact, queries, fills, limit)
        ]
        limit = checked.native_limit(limit, scores, reference)
    one, devices = alone(model, name, text), len(jax.devices())
    return [
        *checks,
        *check_invariance(score, queries, fills, limit),
        checked.check_devices(scores, one, devices, limit),
        checked.check_finite(scores),
        checked.check_repeat(score, queries),
    ]


def check_invariance(
    score: Score, queries: TokenBatch, fills: tuple[int, int], limit: float
) -> list[Check]:
    """Padding, and the batch's other rows."""
    return [
        checked.check_padding(score, queries, fills, limit),
        checked.check_batching(score, queries, limit),
    ]


def alone(model: LoadedModel, name: str, text: subject.Text) -> np.ndarray | None:
    """The scores on one device; None: there is no other, or it is too small."""
    if len(jax.devices()) == 1:
        return None
    try:
        return subject.Scorer(subject.on_one(model), name, text)(text.queries)
    except jax.errors.JaxRuntimeError as error:
        if is_full(error):
            return None
        raise
