"""DareU with one attribution function after another as reward, judged by all of them.

    python experiments/kernel_rewards/compare.py --out runs/kernel_rewards

Every seed has one original, one retrained model, one prior and one unseen classifier;
each reward then starts from the same original. What is done already is not done again.
With --free nothing holds the policy: no anchor, so that a reward can be gamed.
"""

import argparse
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from dareu_jax.config import load_config, with_overrides
from dareu_jax.evaluation.run_suite import Judged, RunSuite, evaluate_model
from dareu_jax.runs.evaluate import suite_of, tow_of
from dareu_jax.runs.folder import stage_folder
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.reward_index import Fitted, Indexer
from dareu_jax.runs.stages import Session, result_of, snapshots, unlearn
from dareu_jax.storage.checkpoints import newest_meta
from dareu_jax.storage.files import write_json
from dareu_jax.training.progress import Progress
from dareu_jax.training.tracking import Tracker
from dareu_jax.unlearning import method_config

QUICKSTART = Path(__file__).parent.parent / "quickstart" / "config.yaml"
REWARDS = {
    "classifier": {},
    "grad_dot": {"reward.kernel": "grad_dot"},
    "ekfac": {"reward.kernel": "ekfac"},
    "projected": {"reward.kernel": "projected"},
    "representation": {"reward.kernel": "representation"},
    "bm25": {"reward.kernel": "bm25"},
    "watermark": {"reward.kernel": "watermark"},
    "grad_dot, refreshed": {"reward.kernel": "grad_dot", "reward.refresh_every": 3},
    "none": {"reward.attribution_weight": 0.0},
}
FREE = {"dareu.kl_coef": 0.0, "dareu.kl_anchor": "reference"}
JUDGES = ("grad_dot", "ekfac", "projected", "representation", "bm25", "watermark")
SHARED = ("finetune_original", "finetune_retrained", "prior", "judge")


def session_of(out: Path, seed: int, changes: dict) -> Session:
    """A seed of the quickstart with other settings of the reward."""
    cfg = with_overrides(load_config(QUICKSTART, []), changes)
    out.mkdir(parents=True, exist_ok=True)
    return Session(Inputs(cfg, seed, out), Tracker(out), Progress(Console()))


def results_of(session: Session, *names: str) -> dict:
    """The results of stages, each of which may read those before it."""
    results: dict = {}
    for name in names:
        results[name] = result_of(session, name, results)
    return results


def judges_of(base: Session, results: dict) -> dict:
    """Every judge with its index: the unseen classifier and calibrated kernels."""
    original = results["original"]
    found = {"unseen classifier": results["judge"]}
    for name in JUDGES:
        made = Indexer(
            base.inputs,
            f"judge_{name}",
            name,
            Fitted("classifier", f"judge_{name}"),
            where=base.stage,
            snapshots=functools.partial(snapshots, base.inputs, original),
        )
        found[name] = made.built(original)
    return found


def seed_of(out: Path, seed: int, held: dict) -> dict:
    """Rows of one seed: metrics of the models by the name of their reward.

    ``held``: settings of all of them.
    """
    base = session_of(out / "shared", seed, {})
    rows: dict[str, dict] = {}
    with jax.set_mesh(base.inputs.mesh):
        stages = ("original", "reward", "judge", "retrained", "prior")
        results = results_of(base, *stages)
        suite = suite_of(base, results)
        suite = dataclasses.replace(suite, judges=judges_of(base, results))
        for name in ("original", "retrained"):
            rows[name] = row_of(suite, results[name])
        for name, changes in REWARDS.items():
            folder = out / name.replace(", ", "_")
            path = folder / f"row_{seed}.json"
            if not path.exists():
                for stage in SHARED:
                    here, there = (
                        stage_folder(of, seed, stage)
                        for of in (base.inputs.folder, folder)
                    )
                    shutil.copytree(here, there, dirs_exist_ok=True)
                one = session_of(folder, seed, {**changes, **held})
                write_json(path, unlearned_row(suite, one))
                jax.clear_caches()  # a process has memory maps for so many programs
            rows[name] = json.loads(path.read_text(encoding="utf-8"))
    for row in rows.values():
        row["tow"] = tow_of(row, rows["retrained"])["rouge"]
    return rows


def unlearned_row(suite: RunSuite, one: Session) -> dict:
    """The row of `dareu` by the reward of one session, with its seconds."""
    results = results_of(one, "original", "reward", "prior")
    params = unlearn(one, "dareu", method_config(one.inputs.cfg, "dareu"), results)
    about = [
        newest_meta(stage_folder(one.inputs.folder, one.inputs.seed, stage))
        for stage in ("reward", "dareu")
    ]
    row = row_of(suite, params)
    row["seconds"] = sum(each["wall_s"] for each in about)
    row["stopped"] = about[1].get("stopped")
    return row


def row_of(suite: RunSuite, params) -> dict:
    """Every metric of one model, every judge's, and answers to the forget prompts."""
    logs, answers = evaluate_model(suite, params)
    judged = Judged(suite, params)
    row = {name: values["agg_value"] for name, values in logs.items()}
    row |= {name: float(judged.attribution(name).mean()) for name in suite.judges}
    return {**row, "answers": answers["forget"].text}


def summary(seeds: list[dict]) -> dict:
    """Mean and standard deviation over seeds of every number of every row."""
    out: dict = {}
    for name in seeds[0]:
        numbers = [k for k, v in seeds[0][name].items() if isinstance(v, float)]
        values = {k: [one[name][k] for one in seeds] for k in numbers}
        out[name] = {
            k: {"mean": float(np.mean(v)), "std": float(np.std(v)), "seeds": v}
            for k, v in values.items()
        }
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--free", action="store_true")
    given = parser.parse_args()
    held = FREE if given.free else {}
    done = [seed_of(given.out, seed, held) for seed in given.seeds]
    write_json(given.out / "results.json", {"seeds": done, "summary": summary(done)})
