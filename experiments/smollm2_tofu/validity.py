r"""Which kernels tell a model's answers from those of one that never saw the owner?

    dareu run experiments/smollm2_tofu/config.yaml "methods=[]" model.path=MODEL \
        corpus.path=TOFU_FOLDER --out RUN
    python experiments/smollm2_tofu/validity.py RUN --base MODEL --out validity.json
    python experiments/smollm2_tofu/validity.py --table validity.json

For every kernel, with the echo of the prompt kept and hidden: mean attribution of the
greedy answers to the forget prompts by the original, the retrained model and the one
before fine-tuning, and the AUC of the first over the others with a 95 % interval over
records. What is in the file already is left out.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from dareu_jax import attribute, load_model
from dareu_jax.attribution.calibration import fit_calibration, probabilities
from dareu_jax.config import ClassifierConfig, attribution_config
from dareu_jax.data.ownership import ownership
from dareu_jax.evaluation.metrics.bootstrap import interval_of
from dareu_jax.runs.folder import finished, read_log
from dareu_jax.runs.load import opened, whole_model
from dareu_jax.runs.validity import higher

KERNELS = (
    *("classifier", "watermark", "bm25", "ngram", "representation"),
    *("grad_dot", "grad_cos", "projected", "constant", "random"),
)
ROWS = ("original", "retrained", "base")


def answers_of(inputs, seed, base, limit):
    """Answers of every row to the forget prompts, and these prompts."""
    prompts = [record.prompt for record in inputs.split.forget]
    logs = {row: read_log(inputs.folder, seed, row) for row in ROWS[:2]}
    said = {row: log["answers"]["forget"] for row, log in logs.items()}
    model = load_model(base)._replace(wording=inputs.wording)
    return prompts, {**said, "base": model.generate(prompts, limit, 20)}


def attributions(model, inputs, kernel, echo, prompts, said):
    """Attribution in [0, 1] of every row's answers to the owners that withdraw."""
    records, cfg = inputs.corpus.train, inputs.cfg
    made = attribute(
        model,
        records,
        kernel=kernel,
        attribution=attribution_config(echo=echo),
        classifier=ClassifierConfig(**cfg.classifier.model_dump(exclude={"lora"})),
        wording=inputs.wording,
        batch_size=20,
        seed=inputs.seed,
    )
    columns = [made.owners.index(owner) for owner in cfg.corpus.forget]
    change = None
    if not made.kernel.is_probability:
        known = made.score([(r.prompt, r.response) for r in records])
        change = fit_calibration(known, ownership(records, made.owners))
    found = {}
    for row, answers in said.items():
        scores = made.score(list(zip(prompts, answers, strict=True)))
        if change is not None:
            scores = np.asarray(probabilities(change, scores))
        found[row] = scores[:, columns].sum(axis=1).astype(float).tolist()
    return found


def measured(found):
    """Means, and AUC of the original over the others with its interval."""
    values = {row: np.asarray(x) for row, x in found.items()}
    out = {row: float(x.mean()) for row, x in values.items()}
    for other in ROWS[1:]:
        pair = values["original"], values[other]
        low, high = interval_of(higher, *pair)
        out[f"auc over {other}"] = [higher(*pair), low, high]
    return {**out, "values": found}


def measure(given):
    cfg, _ = finished(given.run)
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    for seed in cfg.seeds:
        inputs = opened(cfg, seed, given.run)
        model = whole_model(inputs, "original")
        limit = cfg.evaluation.max_new_tokens
        prompts, said = answers_of(inputs, seed, given.base, limit)
        rows = known.setdefault(str(seed), {})
        rows["answers"] = {"prompts": prompts, **said}
        for kernel in given.kernels:
            for echo in ("keep", "hide"):
                name = f"{kernel}, echo {echo}"
                if name in rows:
                    continue
                found = attributions(model, inputs, kernel, echo, prompts, said)
                rows[name] = measured(found)
                given.out.write_text(json.dumps(known, indent=1) + "\n")
                print(line_of(name, [rows[name]]), flush=True)


def line_of(name, seeds):
    """A line of the table in Markdown: means over seeds, each seed's AUC."""
    means = (np.mean([one[row] for one in seeds]) for row in ROWS)
    cells = [f"{x:.3f}" for x in means]
    for other in ROWS[1:]:
        each = [one[f"auc over {other}"] for one in seeds]
        cells.append(", ".join(f"{a:.2f} [{b:.2f}, {c:.2f}]" for a, b, c in each))
    return f"| {name} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a finished run folder")
    parser.add_argument("--base", type=Path, help="the model before its fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("validity.json"))
    parser.add_argument("--kernels", nargs="+", default=KERNELS)
    parser.add_argument("--table", type=Path, help="only print the table of results")
    given = parser.parse_args()
    if given.table is None:
        measure(given)
        return
    print("| kernel | original | retrained | base | AUC over retrained | over base |")
    print("|---|---|---|---|---|---|")
    seeds = list(json.loads(given.table.read_text()).values())
    for name in seeds[0]:
        if name != "answers":
            print(line_of(name, [one[name] for one in seeds]))


if __name__ == "__main__":
    main()
