"""`dareu doctor`: every check of one model on the devices at hand."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from dareu_jax.audits.doctor.checks import (
    Check,
    Score,
    check_batching,
    check_devices,
    check_error,
    check_finite,
    check_padding,
    check_probe,
    check_ranks,
    check_repeat,
    check_saturation,
    exact_limit,
    native_limit,
    relative,
)
from dareu_jax.audits.doctor.output import Report
from dareu_jax.audits.doctor.subject import (
    HIGHEST,
    Scorer,
    Subject,
    Text,
    as_dtype,
    jiggled,
    kernel_of,
    load,
    make_text,
    on_one,
    oracle,
    read_text,
    unknown_text,
)
from dareu_jax.data import TokenBatch
from dareu_jax.errors import UserError

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
    subject, tokenizer = load(folder)
    check_kernels(subject, kernels)
    try:
        if records is None:
            text = make_text(subject, tokenizer, rows)
        else:
            text = read_text(records, tokenizer, rows)
        unknown = unknown_text(text.queries, tokenizer)
        checks = {"gradients": check_gradients(subject, text, unknown)}
        for name in dict.fromkeys(kernels):
            checks[name] = check_kernel(subject, name, text)
    except jax.errors.JaxRuntimeError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"{folder} does not fit the memory of {devices_in_words()} with the "
            "gradients of its owners; lower --rows (2: two owners) or take more devices"
        ) from None
    said = "the model's own" if records is None else str(records)
    return Report(str(folder), subject.dtype, devices_in_words(), said, checks)


def check_kernels(subject: Subject, kernels: Sequence[str]) -> None:
    """Raises `UserError` when a kernel is unknown or a control."""
    for name in kernels:
        if kernel_of(subject, name, 2).is_control:
            raise UserError(
                f"--kernel {name} is a control, its scores say nothing by design; "
                f"take one such as {ENGINE}"
            )


def is_full(error: Exception) -> bool:
    """Whether an error of the devices is that their memory is full."""
    return "RESOURCE_EXHAUSTED" in str(error)


def devices_in_words() -> str:
    """Such as ``8 x TPU v5e``."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def check_gradients(subject: Subject, text: Text, unknown: TokenBatch) -> list[Check]:
    """The engine of all gradient kernels against ``vmap(grad)``, and saturation."""
    exact = as_dtype(subject, "float32")
    score = Scorer(exact, ENGINE, text, HIGHEST)
    found = score(text.queries)
    limit = limit_of(score, text.queries, found)
    true, usual = (oracle(exact, text, batch) for batch in (text.queries, unknown))
    return [
        check_probe(found, true.scores, limit),
        check_saturation(true.norms, usual.norms),
    ]


def limit_of(score: Scorer, queries: TokenBatch, scores: np.ndarray) -> float:
    """The limit for exact float32 ``scores`` that should be the same."""
    moved = score(queries, jiggled(score.subject.params))
    return exact_limit(relative(moved, scores))


def check_kernel(subject: Subject, name: str, text: Text) -> list[Check]:
    """Precision, then what must not change scores: in float32 and as they are."""
    queries, fills = text.queries, text.fills
    exact = Scorer(as_dtype(subject, "float32"), name, text, HIGHEST)
    reference = exact(queries)
    limit = limit_of(exact, queries, reference)
    score = Scorer(subject, name, text)
    scores, checks = score(queries), []
    for dtype in dict.fromkeys([*DTYPES, subject.dtype]):
        found = scores
        if dtype != subject.dtype:
            found = Scorer(as_dtype(subject, dtype), name, text)(queries)
        checks.append(check_ranks(dtype, found, reference))
        checks.append(check_error(dtype, found, reference))
    if not np.array_equal(scores, reference):
        checks += [
            check._replace(name=f"{check.name}, exact float32")
            for check in check_invariance(exact, queries, fills, limit)
        ]
        limit = native_limit(limit, scores, reference)
    one, devices = alone(subject, name, text), len(jax.devices())
    return [
        *checks,
        *check_invariance(score, queries, fills, limit),
        check_devices(scores, one, devices, limit),
        check_finite(scores),
        check_repeat(score, queries),
    ]


def check_invariance(
    score: Score, queries: TokenBatch, fills: tuple[int, int], limit: float
) -> list[Check]:
    """Padding, and the batch's other rows."""
    return [
        check_padding(score, queries, fills, limit),
        check_batching(score, queries, limit),
    ]


def alone(subject: Subject, name: str, text: Text) -> np.ndarray | None:
    """The scores on one device; None: there is no other, or it is too small."""
    if len(jax.devices()) == 1:
        return None
    try:
        return Scorer(on_one(subject), name, text)(text.queries)
    except jax.errors.JaxRuntimeError as error:
        if is_full(error):
            return None
        raise
