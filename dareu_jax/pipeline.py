"""A run: every stage of every seed in order, then the results and the report.

corpus -> original, retrained, classifier, judge, prior -> every method -> evaluation
of all models alike -> results.json and report.html.
"""

import functools
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

import dareu_jax
from dareu_jax import corpus as owned
from dareu_jax.attribution import Kernel, attribution_accuracy
from dareu_jax.checks import check
from dareu_jax.config import RunConfig, completed, dump_config
from dareu_jax.errors import UserError
from dareu_jax.evaluation import SPLITS, tow
from dareu_jax.evaluation.evaluate import Answers, Suite, evaluate_model, in_batches
from dareu_jax.inputs import Inputs
from dareu_jax.parallel import (
    Preemption,
    agreed,
    first_then_others,
    is_first,
    wait_for_all,
)
from dareu_jax.reporting.progress import Progress
from dareu_jax.reporting.report import write_report
from dareu_jax.reporting.summary import summarise
from dareu_jax.stages import Run
from dareu_jax.tracking import Tracker, read


def run(
    cfg: RunConfig,
    folder: Path,
    progress: Progress,
    preemption: Preemption | None = None,
    traced: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Does all that is not yet done in ``folder``.

    Args:
      cfg: the configuration; folder: the run folder; progress: where news goes.
      preemption: whether the machine is being taken away.
      traced: first and last step of every stage to keep a profile of.

    Returns:
      What ``results.json`` holds, and every model's answers to the forget prompts of
      the first seed.

    Raises:
      UserError: bad input, or a folder that holds a run of another configuration.
      Preempted: the machine is being taken away; the same call continues.
    """
    corpus: owned.Corpus | None = None
    if not first_then_others(lambda: claimed(cfg, folder)):
        with tempfile.TemporaryDirectory() as trial:
            corpus = check(cfg, Path(trial), progress)
            if is_first():
                owned.adopt(Path(trial) / "data", folder / "data")
        write_text(folder / "corpus.sha256", corpus.fingerprint + "\n")
        write_text(folder / "config.resolved.yaml", dump_config(cfg))
    seeds: dict[str, Any] = {}
    stopped: dict[str, Any] = {}
    walls: dict[str, float] = {}
    answers: list[dict[str, Any]] = []
    with Tracker(folder, traced) as tracker:
        for seed in cfg.seeds:
            one = Run(cfg, seed, folder, tracker, progress, preemption)
            if corpus is not None:
                one.corpus = corpus
            corpus = one.corpus
            check_corpus(corpus, folder)
            with jax.set_mesh(one.mesh):
                seeds[str(seed)] = judge_seed(
                    one, answers if seed == cfg.seeds[0] else []
                )
            stopped[str(seed)] = one.stopped
            for stage, wall in one.wall_s.items():
                walls[stage] = walls.get(stage, 0.0) + wall / len(cfg.seeds)
    results = {
        "scale": scale_of(cfg, one),
        **summarise(seeds),
        "seeds": seeds,
        "stopped": stopped,
        "wall_s": {stage: round(wall, 2) for stage, wall in walls.items()},
        "environment": environment(),
    }
    results = keep_first_walls(folder / "results.json", results)
    write_json(folder / "results.json", results)
    if is_first():
        page = folder / "report.html"
        write_report(page, results, read(folder), answers, dump_config(cfg))
    return results, answers


def claimed(cfg: RunConfig, folder: Path) -> bool:
    """Whether the folder already holds a run of this configuration.

    Raises:
      UserError: the folder holds a run of another configuration.
    """
    path = folder / "config.resolved.yaml"
    if not path.exists():
        return False
    there = completed(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    key, was, now = first_difference(there, yaml.safe_load(dump_config(cfg)))
    if key:
        raise UserError(
            f"{folder} holds a run with {key} = {was!r}, this configuration says "
            f"{now!r}; choose another --out or delete the folder"
        )
    return True


def check_corpus(corpus: owned.Corpus, folder: Path) -> None:
    """Raises `UserError` when the records are not those that the run began with."""
    path = folder / "corpus.sha256"
    if path.read_text(encoding="utf-8").strip() != corpus.fingerprint:
        raise UserError(
            f"the corpus has changed since the run in {folder} began; choose another "
            "--out, or give back the records of corpus.path"
        )


def first_difference(a: Any, b: Any, key: str = "") -> tuple[str, Any, Any]:
    """Returns the first dotted key in which two trees differ, or empty strings."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*b, *a]):
            found = first_difference(a.get(name), b.get(name), f"{key}.{name}")
            if found[0]:
                return found
        return "", None, None
    return ("", None, None) if a == b else (key.removeprefix("."), a, b)


def judge_seed(one: Run, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Trains and evaluates every model of one seed.

    Args:
      one: the seed; answers: filled with the models' answers to the forget prompts.

    Returns:
      ``{"models": {name: {metric: value}}, "tow": ..., "classifiers": ...}``.
    """
    suite = suite_of(one)
    models: dict[str, dict[str, float]] = {}
    given: list[dict[str, Any]] = [
        {"prompt": r.prompt, "gold": r.response, "owner": r.owner, "answers": {}}
        for r in one.split.forget
    ]
    for name in (*one.oracles, *one.cfg.methods):
        log = evaluate(one, suite, name)
        models[name] = {metric: x["agg_value"] for metric, x in log["metrics"].items()}
        for row, text in zip(given, log["answers"]["forget"], strict=True):
            row["answers"][name] = text
    answers.extend(given)
    oracle = models.get("retrained", {})
    return {
        "models": models,
        "tow": {name: tow_of(row, oracle) for name, row in models.items() if oracle},
        "classifiers": evaluate(one, suite, "original")["classifiers"],
    }


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


def evaluate(one: Run, suite: Suite, name: str) -> dict[str, Any]:
    """Returns the log of one model, from disk when it is there."""
    path = one.folder / "logs" / f"seed_{one.seed}" / name / "owners.json"
    params = one.model_params(name)
    stage = f"evaluate_{name}"
    if not agreed(path.exists()):
        begun = time.monotonic()
        with one.progress.stage(f"seed {one.seed} {stage}", 1):
            log = evaluate_params(one, suite, params, classifiers=name == "original")
        log["wall_s"] = time.monotonic() - begun
        write_json(path, log)
    log = json.loads(path.read_text(encoding="utf-8"))
    one.wall_s[stage] = log["wall_s"]
    return log


def evaluate_params(
    one: Run, suite: Suite, params: Any, classifiers: bool = False
) -> dict[str, Any]:
    """Judges parameters on forget, retain and test; optionally the judges too."""
    metrics, given = evaluate_model(suite, params)
    log: dict[str, Any] = {
        "metrics": metrics,
        "answers": {split: answers.text for split, answers in given.items()},
    }
    if classifiers:
        log["classifiers"] = {
            name: classifier_report(one, suite, judge, given)
            for name, judge in suite.judges.items()
        }
    return log


def suite_of(one: Run) -> Suite:
    """What every model of a seed is judged on and by."""
    cfg = one.cfg.evaluation
    records = eval_records(one)
    return Suite(
        model=one.model,
        tokenizer=one.tokenizer,
        tokens={split: one.tokens(rows) for split, rows in records.items()},
        gold={split: [r.response for r in rows] for split, rows in records.items()},
        judges={
            "attribution_reward": one.classifier,
            "attribution_unseen": one.judge,
        },
        forget_columns=tuple(
            one.corpus.owners.index(owner) for owner in one.cfg.corpus.forget
        ),
        retrained=None if one.cfg.retrained.skip else one.retrained,
        reference=one.original,
        batch_size=cfg.batch_size,
        max_new_tokens=cfg.max_new_tokens or one.lengths[1],
        place=one.place_or_stop,
        layouts=one.layouts,
    )


def eval_records(one: Inputs) -> dict[str, tuple[owned.Record, ...]]:
    """Records per split that has any; at most ``evaluation.retain_records`` retain."""
    retain, limit = one.split.retain, one.cfg.evaluation.retain_records
    if limit is not None and limit < len(retain):
        rows = np.linspace(0, len(retain) - 1, limit).round().astype(int)
        retain = tuple(retain[row] for row in rows)
    records = {"forget": one.split.forget, "retain": retain, "test": one.split.test}
    return {split: rows for split, rows in records.items() if rows}


def classifier_report(
    one: Run, suite: Suite, judge: tuple[Kernel, Any], given: dict[str, Answers]
) -> dict[str, Any]:
    """Accuracy on gold responses and on the original's, whole and by prefix length."""
    kernel, index = judge
    report: dict[str, Any] = {}
    records = eval_records(one)
    rows = {s: owned.owner_labels(records[s], one.corpus.owners) for s in SPLITS[:2]}
    for kind in ("gold", "generations"):
        hits = []
        for split, labels in rows.items():
            tokens = suite.tokens[split]
            if kind == "generations":
                answers = given[split]
                tokens = tokens._replace(
                    response=answers.tokens, response_mask=answers.mask
                )
            tokens = tokens._replace(index=labels)
            score = functools.partial(
                attribution_accuracy, kernel, suite.reference, index
            )
            hits.append(in_batches(suite, tokens, score)[labels >= 0])
        by_length = np.concatenate(hits).mean(axis=0)
        report[kind] = float(by_length[-1])
        report[f"{kind}_by_prefix"] = [round(float(x), 4) for x in by_length]
    return report


def scale_of(cfg: RunConfig, one: Run) -> str:
    """The sentence that opens the report: how small the experiment is."""
    count = sum(leaf.size for leaf in jax.tree.leaves(one.original))
    seeds = f"{len(cfg.seeds)} seed" + "s" * (len(cfg.seeds) > 1)
    origin = "imported" if one.imported else "trained from scratch"
    facts = (
        f"{count / 1e6:.1f} M parameters {origin}, "
        f"{len(one.corpus.owners)} owners, {len(one.corpus.train)} records, "
        f"{len(cfg.corpus.forget)} owner(s) withdrawn, {seeds}."
    )
    return f"{cfg.scale} {facts}".strip()


def environment() -> dict[str, Any]:
    """Versions and devices that the numbers depend on."""
    return {
        "dareu_jax": dareu_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
    }


def keep_first_walls(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Keeps the bytes of a finished ``results.json``, when nothing but time differs."""
    if not path.exists():
        return results
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return results
    same = {**results, "wall_s": before.get("wall_s")} == before
    return before if same else results


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(path.suffix + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    wait_for_all(f"wrote {path}")
