"""`dareu_paper` on the quickstart, with its details switched back one at a time.

    python experiments/paper_details/details.py --out runs/paper_details

What is done already is not done again. Writes the table to results.json beside this
file, unless --table says where, and prints it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from dareu_jax.config import load_config
from dareu_jax.registry import METHODS, load_plugin
from dareu_jax.runs import pipeline
from dareu_jax.training.progress import Progress

HERE = Path(__file__).parent
QUICKSTART = HERE.parent / "quickstart" / "config.yaml"
METRICS = {
    "forget ROUGE ≈": "forget_rouge",
    "retain ROUGE ↑": "retain_rouge",
    "ToW ROUGE ↑": "tow_rouge",
    "ToW prob. ↑": "tow_probability",
    "attribution, reward ↓": "attribution_reward",
    "attribution, unseen ↓": "attribution_unseen",
    "log-lik. under retrained ↑": "retrained_likelihood",
    "tokens ≈": "forget_length",
    "looping ↓": "forget_repeated",
}
KNOWN = {"original": "", "retrained": "", "dareu_paper": "as the paper has it"}


def numbers(results, rows):
    """The metrics of every row as lists over seeds, and why a row stopped early."""
    seeds = results["seeds"]
    table = {}
    for row in rows:
        each = [
            one["models"][row] | {f"tow_{k}": v for k, v in one["tow"][row].items()}
            for one in seeds.values()
        ]
        found = {name: [float(x[name]) for x in each] for name in METRICS.values()}
        stopped = [results["stopped"][seed].get(row) for seed in seeds]
        table[row] = found | {"stopped": stopped}
    return table


def line(row, about, found):
    """One row of the table in Markdown, mean ± standard deviation over seeds."""
    cells = [row, about]
    for name in METRICS.values():
        mean, spread = np.mean(found[name]), np.std(found[name], ddof=0)
        many = len(found[name]) > 1
        cells.append(f"{mean:.3f}" + (f"±{spread:.3f}" if many else ""))
    cells.append(str(sum(reason is not None for reason in found["stopped"])))
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", type=Path, default=HERE / "results.json")
    args, overrides = parser.parse_known_args()
    load_plugin(str(HERE / "rows.py"))
    added = {name: say for name, say in METHODS.items() if name.startswith("paper_")}
    asked = [f"plugins=[{HERE / 'rows.py'}]", f"seeds={args.seeds}"]
    asked.append(f"methods=[dareu_paper,{','.join(added)}]")
    cfg = load_config(QUICKSTART, [*asked, *overrides])
    progress = Progress(Console())
    rows = KNOWN | added
    rows = {name: rows[name] for name in ("original", "retrained", *cfg.methods)}
    table = numbers(pipeline.run(cfg, args.out, progress).results, rows)
    args.table.write_text(json.dumps(table, indent=1) + "\n")
    head = ["row", "differs from dareu_paper in", *METRICS, "stopped seeds"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row, found in table.items():
        print(line(row, rows[row], found))


if __name__ == "__main__":
    main()
