"""`dareu fidelity`: attribution kernels against models retrained without owners."""

import tempfile
from pathlib import Path
from typing import Any

import jax

from dareu_jax.audits.fidelity.plan import check_plan, contenders
from dareu_jax.audits.fidelity.plot import plot
from dareu_jax.audits.fidelity.summary import ceiling, print_fidelity, summarise
from dareu_jax.audits.fidelity.trial import Trial
from dareu_jax.config import RunConfig, dump_config
from dareu_jax.data import adopt
from dareu_jax.errors import UserError
from dareu_jax.runs.folder import CONFIG, CORPUS, check_corpus, claimed
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.pipeline import environment, scale_of
from dareu_jax.runs.stages import Session
from dareu_jax.storage.files import write_json, write_text, write_whole
from dareu_jax.training.progress import Progress
from dareu_jax.training.tracking import Tracker


def fidelity(cfg: RunConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Retrains, scores and compares; does all that is not yet done in ``folder``.

    Raises:
      UserError: bad input, or a folder that holds a run of another configuration.
    """
    kernels = contenders(cfg)
    if cfg.finetune.epochs == 0:
        raise UserError("dareu fidelity retrains the model; set finetune.epochs")
    if not claimed(cfg, folder):
        with tempfile.TemporaryDirectory() as place:
            corpus = check_plan(cfg, Path(place), progress)
            adopt(Path(place) / "data", folder / "data")
        write_text(folder / CORPUS, corpus.fingerprint + "\n")
        write_text(folder / CONFIG, dump_config(cfg))
    scores, found = [], []
    with Tracker(folder) as tracker:
        for seed in cfg.seeds:
            inputs = Inputs(cfg, seed, folder)
            check_corpus(inputs.corpus, folder)
            with jax.set_mesh(inputs.mesh):
                trial = Trial(Session(inputs, tracker, progress))
                scores.append({k: trial.scores(k, *v) for k, v in kernels.items()})
                found.append(trial.outcomes())
            jax.clear_caches()  # thousands of programs exhaust a process's memory maps
    draws = cfg.fidelity.draws
    results = {
        "scale": scale_of(inputs),
        "retrainings": sum(f.retrainings for f in found),
        "queries": sum(len(f.owner) for f in found),
        "ceiling": ceiling(found),
        "kernels": {
            label: summarise([s[label] for s in scores], found, draws)
            for label in kernels
        },
        "environment": environment(),
    }
    write_json(folder / "fidelity.json", results)
    write_whole(folder / "fidelity.svg", plot(results))
    return results
