"""The stages of a run on one mesh: the loss of every step, first answers, seconds."""

import io
import time

import jax
import numpy as np
from rich.console import Console

from dareu_jax.config import LoraConfig
from dareu_jax.models import generate
from dareu_jax.parallel import make_mesh
from dareu_jax.runs.stages import Run
from dareu_jax.training.progress import Progress
from dareu_jax.training.tracking import Tracker


class OnMesh:
    """What one mesh gives: the loss of every step of every stage, and answers.

    Args:
      cfg: the run, of whose every stage the first ``steps`` steps are taken.
      folder: of the run; sizes: of the mesh; rank: of the adapters.
    """

    def __init__(self, cfg, folder, sizes, steps=20, rank=4):
        said = Progress(Console(file=io.StringIO()))
        self.run = run = Run(cfg, cfg.seeds[0], folder, Tracker(folder), said)
        devices = jax.devices()[: int(np.prod(sizes))]
        run.__dict__["mesh"] = make_mesh(*sizes, devices=devices)
        self.steps, self.losses, self.seconds = steps, {}, {}
        with jax.set_mesh(run.mesh):
            run.__dict__["original"] = self.train("finetune", run.model, cfg.finetune)
            prior = run.decoder("prior")
            run.__dict__["prior"] = prior, self.train("prior", prior, cfg.prior)
            self.fit_classifier()
            self.tokens = self.answers()
            self.unlearn("dareu", run)
            self.unlearn("adapters", self.with_adapters(rank))

    def take(self, label, state, step_fn, steps, names):
        """Takes steps; keeps the metrics called ``names``, none: all of them."""
        times = []
        for step in range(steps):
            begun = time.perf_counter()
            state, metrics = step_fn(state, step)
            for name in names or metrics:
                key = label if names else f"{label} {name}"
                self.losses[key, step] = float(metrics[name])
            times.append(time.perf_counter() - begun)
        self.seconds[label] = float(np.median(times[1:]))
        return state

    def train(self, name, model, cfg):
        """The first steps of supervised training."""
        run = self.run
        stream = run.stream(name, run.corpus.train, cfg.batch_size)
        state, step_fn, _ = run.training(name, model, cfg, stream, None)
        return self.take(name, state, step_fn, self.steps, ["loss"]).params

    def fit_classifier(self):
        """The first steps of the reward's classifier."""
        indexer = self.run.indexer
        params, build = self.run.original, indexer.build
        acc = build._init(params, key=build.key)
        step_fn = build._step(params)
        acc = self.take("classifier", acc, step_fn, self.steps, ["loss"])
        index = build.kernel.finalize(params, acc)
        self.run.__dict__["classifier"] = indexer.as_reward(params, index)

    def answers(self):
        """Answers to the forget prompts, sampled in the layout of a rollout."""
        run, gold = self.run, self.run.tokens(self.run.split.forget)
        size = run.cfg.options("dareu").batch_size
        batch = run.place(jax.tree.map(lambda rows: rows[:size], gold))
        layouts = run.layouts
        with layouts.sampling():
            rollout = generate(
                run.model,
                layouts.params(run.original),
                *layouts.rows((batch.prompt, batch.prompt_mask)),
                max_new_tokens=16,
                temperature=1.0,
                stop_ids=run.tokenizer.stop_ids,
                key=jax.random.key(3),
            )
        return np.where(rollout.mask, rollout.tokens, -1)

    def with_adapters(self, rank):
        """The same run, of whose original adapters alone are trained."""
        run, lora = self.run, LoraConfig(rank=rank)
        cfg = run.cfg.model_copy(update={"lora": lora})
        other = Run(cfg, run.seed, run.folder, run.tracker, run.progress)
        known = ("mesh", "original", "prior", "classifier")
        other.__dict__.update({name: run.__dict__[name] for name in known})
        return other

    def unlearn(self, label, run):
        """The first iterations of DareU."""
        method, state, step_fn = run.prepare("dareu", run.cfg)
        self.take(label, state, step_fn, min(self.steps, method.steps), [])


def far_apart(found, wanted, least=1e-2):
    """``|found - wanted| / max(|wanted|, least)`` of every loss."""
    return {
        key: abs(found[key] - wanted[key]) / max(abs(wanted[key]), least)
        for key in wanted
    }
