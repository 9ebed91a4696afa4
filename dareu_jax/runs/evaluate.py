"""Judge every model of a run on the same records."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dareu_jax import data
from dareu_jax.attribution import Kernel, attribution_accuracy
from dareu_jax.data.widths import rounded_up
from dareu_jax.evaluation import run_suite
from dareu_jax.evaluation.metrics.tow import SPLITS, tow
from dareu_jax.runs.folder import log_path
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.stages import Results, Session
from dareu_jax.storage.files import write_json
from dareu_jax.training.progress import counter


def evaluate(
    session: Session, suite: run_suite.RunSuite, row: str, params: Any
) -> dict[str, Any]:
    """Judge a row of the table and write its log; return the log."""
    inputs, begun = session.inputs, time.monotonic()
    is_original = row == "original"
    title, rows = f"seed {inputs.seed} evaluate_{row}", rows_of(suite, is_original)
    with session.progress.stage(title, rows) as advance:
        suite = dataclasses.replace(suite, counted=counter(advance))
        log = evaluate_params(inputs, suite, params, classifiers=is_original)
    log["wall_s"] = time.monotonic() - begun
    write_json(log_path(inputs.folder, inputs.seed, row), log)
    return log


def rows_of(suite: run_suite.RunSuite, classifiers: bool) -> int:
    """Return how many rows are read and answered to judge a model, about.

    Metrics of a plug-in may need more. Every batch is as large as the others.
    """
    size = suite.batch_size
    rows = {k: rounded_up(len(x.index), size) for k, x in suite.tokens.items()}
    judges, oracles = len(suite.judges), int(suite.retrained is not None)
    asked = 2 * sum(rows.values()) + (judges + oracles) * rows["forget"]
    known = sum(rows.get(split, 0) for split in SPLITS[:2])
    return asked + 2 * judges * known * classifiers


def evaluate_params(
    inputs: Inputs, suite: run_suite.RunSuite, params: Any, classifiers: bool = False
) -> dict[str, Any]:
    """Judge parameters on forget, retain and test; optionally the judges too."""
    metrics, given = run_suite.evaluate_model(suite, params)
    texts = {split: answers.text for split, answers in given.items()}
    gold = {
        split: x.response_mask.sum(axis=1).tolist() for split, x in suite.tokens.items()
    }
    log: dict[str, Any] = {
        "metrics": metrics,
        "answers": texts,
        "max_new_tokens": suite.max_new_tokens,
        "gold_tokens": gold,
    }
    if classifiers:
        log["classifiers"] = {
            name: classifier_report(inputs, suite, judge, given)
            for name, judge in suite.judges.items()
        }
    return log


def suite_of(session: Session, results: Results) -> run_suite.RunSuite:
    """Return what every model of a seed is judged on and by."""
    inputs = session.inputs
    cfg, records = inputs.cfg.evaluation, eval_records(inputs)
    tokens = {split: inputs.tokens(rows) for split, rows in records.items()}
    return run_suite.RunSuite(
        model=inputs.model,
        tokenizer=inputs.tokenizer,
        tokens=tokens,
        gold={split: [r.response for r in rows] for split, rows in records.items()},
        judges={
            "attribution_reward": results["reward"],
            "attribution_unseen": results["judge"],
        },
        forget_columns=inputs.forget_columns,
        retrained=results.get("retrained"),
        reference=results["original"],
        batch_size=cfg.batch_size,
        max_new_tokens=cfg.max_new_tokens or inputs.lengths[1],
        place=inputs.place,
        layouts=inputs.layouts,
        preemption=session.preemption,
        widths=widths_of(inputs, tokens.values()),
    )


def widths_of(inputs: Inputs, splits: Iterable[data.TokenBatch]) -> data.Widths:
    """Return the widths of batches in which every model of the run is judged."""
    return data.fit_widths(
        np.concatenate([data.lengths_of(tokens) for tokens in splits]),
        inputs.lengths,
        batch_size=inputs.cfg.evaluation.batch_size,
        passes=len(inputs.cfg.methods) + 2,  # and the original and the retrained
        among=inputs.widths,
    )


def eval_records(inputs: Inputs) -> dict[str, tuple[data.Record, ...]]:
    """Return the records that models are judged on, per split that has any."""
    retain, limit = inputs.split.retain, inputs.cfg.evaluation.retain_records
    if limit is not None and limit < len(retain):
        rows = np.linspace(0, len(retain) - 1, limit).round().astype(int)
        retain = tuple(retain[row] for row in rows)
    forget, test = inputs.split.forget, inputs.split.test
    records = {"forget": forget, "retain": retain, "test": test}
    return {split: rows for split, rows in records.items() if rows}


def classifier_report(
    inputs: Inputs,
    suite: run_suite.RunSuite,
    judge: tuple[Kernel, Any],
    given: dict[str, run_suite.Answers],
) -> dict[str, Any]:
    """Accuracy on gold responses and on the original's, whole and by prefix length."""
    score = functools.partial(attribution_accuracy, judge[0], suite.reference, judge[1])
    report: dict[str, Any] = {}
    records, owners = eval_records(inputs), inputs.corpus.owners
    rows = {s: data.owner_labels(records[s], owners) for s in SPLITS[:2]}
    for kind in ("gold", "generations"):
        hits = []
        for split, labels in rows.items():
            tokens = suite.tokens[split]
            if kind == "generations":
                tokens = run_suite.with_answers(tokens, given[split])
            tokens = tokens._replace(index=labels)
            hits.append(run_suite.in_batches(suite, tokens, score)[labels >= 0])
        by_length = np.concatenate(hits).mean(axis=0)
        report[kind] = float(by_length[-1])
        report[f"{kind}_by_prefix"] = [round(float(x), 4) for x in by_length]
    return report


def tow_of(model: Mapping[str, float], retrained: Mapping[str, float]) -> dict:
    """Tug-of-War on ROUGE-L recall and on probability, over the splits judged."""
    splits = [split for split in SPLITS if f"{split}_rouge" in model]
    return {
        kind: tow(
            {split: model[f"{split}_{kind}"] for split in splits},
            {split: retrained[f"{split}_{kind}"] for split in splits},
            splits,
        )
        for kind in ("rouge", "probability")
    }
