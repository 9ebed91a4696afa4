"""The same losses and the same first answers on any mesh, for every stage of a run."""

import functools
from io import StringIO
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from dareu_jax.config import LoraConfig, load_config
from dareu_jax.generation import generate
from dareu_jax.parallel import make_mesh
from dareu_jax.reporting.progress import Progress
from dareu_jax.stages import Run
from dareu_jax.tracking import Tracker

pytestmark = pytest.mark.usefixtures("quick_compiling")

REPO = Path(__file__).resolve().parents[2]
MESHES = [(2, 1, 1), (2, 2, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
STEPS = 20


class Seen:
    """What one mesh gives: the loss of every step of every stage, and answers.

    Args:
      folder: of the run; sizes: of the mesh.
    """

    def __init__(self, folder, sizes):
        cfg = load_config(REPO / "tests" / "tiny.yaml", ["prior.epochs=4"])
        said = Progress(Console(file=StringIO()))
        self.run = run = Run(cfg, 0, folder, Tracker(folder), said)
        devices = jax.devices()[: int(np.prod(sizes))]
        run.__dict__["mesh"] = make_mesh(*sizes, devices=devices)
        self.losses = {}
        with jax.set_mesh(run.mesh):
            run.__dict__["original"] = self.train("finetune", run.model, cfg.finetune)
            prior = run.decoder("prior")
            run.__dict__["prior"] = prior, self.train("prior", prior, cfg.prior)
            self.fit_classifier()
            self.tokens = self.answers()
            self.unlearn("dareu", run)
            self.unlearn("adapters", self.with_adapters())

    def train(self, name, model, cfg):
        run = self.run
        stream = run.stream(name, run.corpus.train, cfg.batch_size)
        state, step_fn, _ = run.training(name, model, cfg, stream, None)
        for step in range(STEPS):
            state, metrics = step_fn(state, step)
            self.losses[name, step] = float(metrics["loss"])
        return state.params

    def fit_classifier(self):
        indexer = self.run.indexer
        params, build = self.run.original, indexer.build
        acc = build._init(params, key=build.key)
        for step in range(STEPS):
            acc, metrics = build._step(params)(acc, step)
            self.losses["classifier", step] = float(metrics["loss"])
        index = build.kernel.finalize(params, acc)
        self.run.__dict__["classifier"] = indexer.as_reward(params, index)

    def answers(self):
        run, gold = self.run, self.run.tokens(self.run.split.forget)
        batch, layouts = run.place(gold), self.run.layouts
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

    def with_adapters(self):
        """The same run, of whose original adapters alone are trained."""
        run, lora = self.run, LoraConfig(rank=4)
        cfg = run.cfg.model_copy(update={"lora": lora})
        other = Run(cfg, 0, run.folder, run.tracker, run.progress)
        known = ("mesh", "original", "prior", "classifier")
        other.__dict__.update({name: run.__dict__[name] for name in known})
        return other

    def unlearn(self, label, run):
        method, state, step_fn = run.prepare("dareu", run.cfg)
        for step in range(method.steps):
            state, metrics = step_fn(state, step)
            for name, value in metrics.items():
                self.losses[f"{label} {name}", step] = float(value)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    @functools.cache
    def on(sizes):
        return Seen(tmp_path_factory.mktemp("run"), sizes)

    return on


@pytest.mark.parametrize("sizes", MESHES)
def test_losses_are_those_of_one_device(seen, sizes):
    found, wanted = seen(sizes).losses, seen((1, 1, 1)).losses
    assert found.keys() == wanted.keys()
    far = {
        key: (found[key], wanted[key])
        for key in wanted
        if abs(found[key] - wanted[key]) > 1e-4 * max(abs(wanted[key]), 1e-2)
    }
    assert not far


@pytest.mark.parametrize("sizes", MESHES)
def test_the_first_answers_are_those_of_one_device(seen, sizes):
    np.testing.assert_array_equal(seen(sizes).tokens, seen((1, 1, 1)).tokens)
