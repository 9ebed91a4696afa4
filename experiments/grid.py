"""Grids of learning rates and step counts; run:

python experiments/grid.py experiments/quickstart/config.yaml --out runs/grid --seed 0

Every method of GRID runs once per learning rate; it is judged at each step count on the
way, for learning rates are constant. The choice never looks at the retrained model: the
highest retain ROUGE among runs with attribution (reward judge) at most .10; ties go to
the lower attribution in hundredths, then to the smaller learning rate, then to fewer
steps. Writes grid_seed0.json beside the config.
"""

import argparse
import json
from pathlib import Path

import jax
from rich.console import Console

from dareu_jax.config import load_config, with_overrides
from dareu_jax.runs.evaluate import evaluate, evaluate_params, suite_of, tow_of
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.plan import plan
from dareu_jax.runs.stages import Session, prepare, result_of
from dareu_jax.training.progress import Progress
from dareu_jax.training.tracking import Tracker
from dareu_jax.unlearning import method_config

LOSS_RATES, LOSS_STEPS = (1e-4, 3e-4, 1e-3), (3, 6, 10, 20, 40)
RL_RATES, RL_STEPS = (1.5e-4, 5e-4, 1.5e-3), (5, 10, 15)
GRID = {
    "grad_diff": ("grad_diff.steps", LOSS_RATES, LOSS_STEPS),
    "npo": ("npo.steps", LOSS_RATES, LOSS_STEPS),
    "dareu": ("dareu.data_epochs", RL_RATES, RL_STEPS),
    "dareu_paper": ("dareu.data_epochs", RL_RATES, RL_STEPS),
    "prior_only": ("dareu.data_epochs", RL_RATES, RL_STEPS),
    "dareu_shuffled": ("dareu.data_epochs", RL_RATES, RL_STEPS),
}
SHOWN = (
    "forget_rouge",
    "retain_rouge",
    "test_rouge",
    "attribution_reward",
    "attribution_unseen",
    "retrained_likelihood",
    "forget_repeated",
    "forget_unfinished",
)


def means(log):
    return {name: value["agg_value"] for name, value in log["metrics"].items()}


def shared_by_all(session):
    """The results of all stages that methods and evaluations read, by name."""
    results = {}
    for stage in plan(session.inputs.cfg):
        if stage.kind in ("model", "index"):
            results[stage.name] = result_of(session, stage.name, results)
    return results


def try_rate(session, results, suite, name, rate, retrained):
    """Runs one learning rate, judging it at every step count."""
    steps_key, _, counts = GRID[name]
    section = steps_key.split(".")[0]
    changes = {f"{section}.learning_rate": rate, steps_key: max(counts)}
    cfg = with_overrides(method_config(session.inputs.cfg, name), changes)
    method, state, step_fn = prepare(session, name, cfg, results)
    rows = []
    for step in range(max(counts)):
        state, _ = step_fn(state, step)
        if step + 1 in counts:
            log = evaluate_params(session.inputs, suite, method.params_of(state))
            metrics = means(log)
            row = {"method": name, "learning_rate": rate, "steps": step + 1}
            row |= {shown: round(metrics[shown], 4) for shown in SHOWN}
            row |= {
                f"tow_{k}": round(v, 4) for k, v in tow_of(metrics, retrained).items()
            }
            row["answers"] = log["answers"]["forget"][:3]
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def choose(rows):
    """The row with the highest retain ROUGE whose attribution is at most .10."""
    allowed = [row for row in rows if row["attribution_reward"] <= 0.10]

    def rank(row):
        attribution = round(row["attribution_reward"], 2)
        retain = round(row["retain_rouge"], 3)
        return retain, -attribution, -row["learning_rate"], -row["steps"]

    return max(allowed, key=rank) if allowed else None


def try_all(session, methods, path):
    """Tries every rate of every method; writes what is known after each method."""
    results = shared_by_all(session)
    suite = suite_of(session, results)
    oracles = {
        name: means(evaluate(session, suite, name, results[name]))
        for name in ("original", "retrained")
    }
    report = {"oracles": oracles}
    for name in methods:
        rows = []
        for rate in GRID[name][1]:
            rows += try_rate(session, results, suite, name, rate, oracles["retrained"])
        best = max(rows, key=lambda row: row["tow_rouge"])
        report[name] = {"chosen": choose(rows), "best_tow": best, "rows": rows}
        path.write_text(json.dumps(report, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", default=list(GRID))
    args, overrides = parser.parse_known_args()
    asked = f"methods=[{','.join(args.methods)}]"
    cfg = load_config(args.config, [*overrides, asked])
    inputs = Inputs(cfg, args.seed, args.out)
    path = args.config.parent / f"grid_seed{args.seed}.json"
    with Tracker(args.out) as tracker, jax.set_mesh(inputs.mesh):
        session = Session(inputs, tracker, Progress(Console()))
        try_all(session, args.methods, path)


if __name__ == "__main__":
    main()
