"""Where the logs of evaluations keep their values, one table per format."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dareu_jax.errors import UserError

KNOWN = (
    "open-unlearning's *_EVAL.json, locuslab/tofu's eval_log*.json and "
    "eval_log_aggregated.json, and owners.json of a run"
)


LIMITS = ("limit", "gold_tokens")
"""Columns of how an answer was cut; a log that has none of them lacks nothing."""
MAY_LACK = ("generation", "gold", "unfinished", "extraction", *LIMITS)


class Source(NamedTuple):
    """A column of a set: its metric in the log, and the place inside of a row.

    Attributes:
      field: key or position in every row; None: the row is the value.
      loss: the log has ``-ln`` of what the column is.
    """

    metric: str
    field: str | int | None = None
    loss: bool = False


class Part(NamedTuple):
    """A set of questions: metric -> row -> value, and where its columns are."""

    tables: Mapping[str, Any]
    columns: Mapping[str, Source]
    may_lack: tuple[str, ...] = MAY_LACK


class Layout(NamedTuple):
    """A log taken apart: its format, sets by name, scores by attack and split."""

    format: str
    sets: Mapping[str, Part]
    attacks: Mapping[str, Mapping[str, Any]]


def layout(tree: Any, path: Path) -> Layout:
    """Return the parts of a log by its keys, a single set by its file's name too."""
    if isinstance(tree, dict) and tree:
        if isinstance(tree.get("metrics"), dict) and "answers" in tree:
            return ours(tree)
        if any(file in tree for file in LOCUSLAB_FILES):
            return locuslab_aggregated(tree)
        if "avg_gt_loss" in tree:
            return locuslab(tree, path)
        if any(isinstance(v, dict) and "agg_value" in v for v in tree.values()):
            return open_unlearning(tree)
        if all(isinstance(v, int | float) for v in tree.values()):
            raise UserError(f"{path} has aggregates alone; give the log with the rows")
    raise UserError(f"{path} is a log of no known format; known: {KNOWN}")


# --- open-unlearning


def trained_set(short: str) -> dict[str, Source]:
    """Return the columns of forget and retain: one right answer and wrong ones."""
    rouge = f"{short}_Q_A_ROUGE"
    return {
        "probability": Source(f"{short}_Q_A_Prob", "prob"),
        "rouge": Source(rouge, "rougeL_recall"),
        "right_loss": Source(f"{short}_Q_A_PARA_Prob", "avg_loss"),
        "wrong_loss": Source(f"{short}_Q_A_PERT_Prob", "avg_loss"),
        "generation": Source(rouge, "generation"),
        "gold": Source(rouge, "ground_truth"),
        "unfinished": Source(f"{short}_text_quality", "unfinished"),
        "limit": Source(f"{short}_text_quality", "limit"),
        "gold_tokens": Source(f"{short}_text_quality", "gold_tokens"),
    }


def choice_set(short: str) -> dict[str, Source]:
    """Return the columns of real authors and world facts: one right answer of four."""
    right, wrong = f"{short}_Q_A_Prob", f"{short}_Q_A_PERT_Prob"
    return trained_set(short) | {
        "right_loss": Source(right, "avg_loss"),
        "wrong_loss": Source(wrong, "avg_loss"),
        "wrong_probability": Source(wrong, "prob"),
    }


PARAPHRASED = "forget_Q_PARA_A_ROUGE"
OWN_SETS = {
    "forget_paraphrased": {
        "rouge": Source(PARAPHRASED, "rougeL_recall"),
        "generation": Source(PARAPHRASED, "generation"),
        "gold": Source(PARAPHRASED, "ground_truth"),
    },
    "test": trained_set("test"),
}
"""Those that open-unlearning has not, and a log can be without."""
OPEN_UNLEARNING_SETS = {
    "forget": trained_set("forget")
    | {"extraction": Source("extraction_strength", "score")},
    "retain": trained_set("retain"),
    "real_authors": choice_set("ra"),
    "world_facts": choice_set("wf"),
}


def open_unlearning(tree: Mapping[str, Any]) -> Layout:
    """Read ``{metric: {"agg_value", "value_by_index": {row: {field: value}}}}``."""
    tables = {metric: rows_of(value) for metric, value in tree.items()}
    sets = {k: Part(tables, columns) for k, columns in OPEN_UNLEARNING_SETS.items()}
    sets |= {k: Part(tables, own, tuple(own)) for k, own in OWN_SETS.items()}
    metrics = {x.metric for part in sets.values() for x in part.columns.values()}
    if not metrics & tree.keys():  # of MUSE, which has attacks
        sets = {}
    attacks = {
        metric.removeprefix("mia_"): {
            split: rows_of(value.get(split)) for split in ("forget", "holdout")
        }
        for metric, value in tree.items()
        if metric.startswith("mia_") and isinstance(value, dict)
    }
    return Layout("open-unlearning", sets, attacks)


def rows_of(value: Any) -> Any:
    """Return ``value_by_index`` of a metric, or None."""
    return value.get("value_by_index") if isinstance(value, dict) else None


# --- locuslab/tofu

LOCUSLAB_FILES = {
    "eval_log.json": "retain",
    "eval_log_forget.json": "forget",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}
NAMED_AFTER = {
    "forget": r"forget",
    "real_authors": r"real_?author",
    "world_facts": r"real_?world|world_?fact",
    "retain": r"^eval_log\.json$",
}
LOCUSLAB_COLUMNS = {
    "probability": Source("avg_gt_loss", loss=True),
    "rouge": Source("rougeL_recall"),
    "right_loss": Source("avg_paraphrased_loss"),
    "wrong_loss": Source("average_perturb_loss"),
    "generation": Source("generated_text", 1),
    "gold": Source("generated_text", 2),
}
LOCUSLAB_CHOICE = LOCUSLAB_COLUMNS | {
    "wrong_probability": Source("average_perturb_loss", loss=True)
}


def locuslab_part(set_name: str, tables: Any) -> Part:
    """Read ``{metric: {row: value}}`` of one set."""
    choice = set_name in ("real_authors", "world_facts")
    columns = LOCUSLAB_CHOICE if choice else LOCUSLAB_COLUMNS
    return Part(tables if isinstance(tables, dict) else {}, columns)


def locuslab_aggregated(tree: Mapping[str, Any]) -> Layout:
    """Read ``{file: {metric: {row: value}}}`` of the four files."""
    sets = {k: locuslab_part(k, tree.get(file)) for file, k in LOCUSLAB_FILES.items()}
    return Layout("locuslab-tofu-aggregated", sets, {})


def locuslab(tree: Mapping[str, Any], path: Path) -> Layout:
    """Read one set, that of the file's name; the forget set where it says none."""
    found = [k for k, pattern in NAMED_AFTER.items() if re.search(pattern, path.name)]
    set_name = found[0] if found else "forget"
    choice = "normalized_gt_loss" in tree
    if choice != (set_name in ("real_authors", "world_facts")):
        which = "one right answer of four" if choice else "paraphrased answers"
        files = ", ".join(LOCUSLAB_FILES)
        raise UserError(f"{path} is no {set_name} set: it has {which}; name it {files}")
    part = locuslab_part(set_name, tree)
    return Layout("locuslab-tofu", {set_name: part}, {})


# --- runs of this package


def ours(tree: Mapping[str, Any]) -> Layout:
    """Read ``{"metrics": {metric: {"agg_value", "value_by_index": {row: value}}}}``.

    Beside them ``{"answers": {split: [text]}}``, in the order of the rows, and
    ``{"max_new_tokens": limit, "gold_tokens": {split: [tokens]}}``.
    """
    tables = {metric: rows_of(value) for metric, value in tree["metrics"].items()}
    said = tree["answers"] if isinstance(tree["answers"], dict) else {}
    for split, texts in said.items():
        if isinstance(texts, list):
            tables[f"{split}_answers"] = {str(n): x for n, x in enumerate(texts)}
    golds = tree.get("gold_tokens")
    for split, counts in golds.items() if isinstance(golds, dict) else ():
        numbered = {str(n): x for n, x in enumerate(counts)}
        tables[f"{split}_gold_tokens"] = numbered
        tables[f"{split}_limit"] = dict.fromkeys(numbered, tree.get("max_new_tokens"))
    splits = ["forget", "retain"]
    splits += ["test"] if {"test_rouge", "test_probability"} & tables.keys() else []
    sets = {
        split: Part(
            tables,
            {
                "probability": Source(f"{split}_probability"),
                "rouge": Source(f"{split}_rouge"),
                "generation": Source(f"{split}_answers"),
                "unfinished": Source(f"{split}_unfinished"),
                "limit": Source(f"{split}_limit"),
                "gold_tokens": Source(f"{split}_gold_tokens"),
            },
        )
        for split in splits
    }
    return Layout("dareu", sets, {})
