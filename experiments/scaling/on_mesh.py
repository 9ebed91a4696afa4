"""The stages of a run on one mesh: the loss of every step, first answers, seconds."""

import time

import jax
import numpy as np

from dareu_jax.attribution import init_on
from dareu_jax.config import LoraConfig
from dareu_jax.models import generate
from dareu_jax.parallel import make_mesh
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.stages import Session, indexer, prepare, training
from dareu_jax.training.tracking import Tracker


class OnMesh:
    """What one mesh gives: the loss of every step of every stage, and answers.

    Args:
      cfg: the run, of whose every stage the first ``steps`` steps are taken.
      folder: of the run; sizes: of the mesh; rank: of the adapters.
    """

    def __init__(self, cfg, folder, sizes, steps=20, rank=4):
        devices = jax.devices()[: int(np.prod(sizes))]
        self.mesh = make_mesh(*sizes, devices=devices)
        self.steps, self.losses, self.seconds = steps, {}, {}
        self.inputs = self.inputs_of(cfg, folder)
        self.session = Session(self.inputs, Tracker(folder))
        with jax.set_mesh(self.mesh):
            self.original = self.train("finetune", cfg.finetune)
            prior = self.inputs.decoder("prior"), self.train("prior", cfg.prior)
            reward = self.fit_classifier()
            self.tokens = self.answers()
            given = {"original": self.original, "prior": prior, "reward": reward}
            self.unlearn("dareu", self.session, given)
            self.unlearn("adapters", self.with_adapters(rank), given)

    def inputs_of(self, cfg, folder):
        """What the run reads, on this mesh."""
        inputs = Inputs(cfg, cfg.seeds[0], folder)
        inputs.mesh = self.mesh
        return inputs

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

    def train(self, part, cfg):
        """The first steps of supervised training."""
        stream = self.inputs.stream(
            part, self.inputs.corpus.train, cfg.batch_size, passes=cfg.epochs
        )
        state, step_fn, _ = training(self.session, part, cfg, stream, None)
        return self.take(part, state, step_fn, self.steps, ["loss"]).params

    def fit_classifier(self):
        """The reward's kernel and its index after the first steps of its classifier."""
        params = self.original
        made = indexer(self.session, "reward", params)
        build = made.build

        def step_fn(acc, step):
            batch = self.inputs.place(build.batch(step))
            return build.kernel.update(params, batch, acc)

        acc = init_on(build.kernel, build.mesh, params, key=build.key)
        acc = self.take("classifier", acc, step_fn, self.steps, ["loss"])
        return made.as_reward(params, build.kernel.finalize(params, acc))

    def answers(self):
        """Answers to the forget prompts, sampled in the layout of a rollout."""
        inputs, layouts = self.inputs, self.inputs.layouts
        gold = inputs.tokens(inputs.split.forget)
        size = inputs.cfg.options("dareu").batch_size
        batch = inputs.place(jax.tree.map(lambda rows: rows[:size], gold))
        with layouts.sampling():
            rollout = generate(
                inputs.model,
                layouts.params(self.original),
                *layouts.rows((batch.prompt, batch.prompt_mask)),
                max_new_tokens=16,
                temperature=1.0,
                stop_ids=inputs.tokenizer.stop_ids,
                key=jax.random.key(3),
            )
        return np.where(rollout.mask, rollout.tokens, -1)

    def with_adapters(self, rank):
        """The same run, of whose original adapters alone are trained."""
        cfg = self.inputs.cfg.model_copy(update={"lora": LoraConfig(rank=rank)})
        other = self.inputs_of(cfg, self.inputs.folder)
        return Session(other, self.session.tracker)

    def unlearn(self, label, session, given):
        """The first iterations of DareU."""
        cfg = session.inputs.cfg
        method, state, step_fn = prepare(session, "dareu", cfg, given)
        self.take(label, state, step_fn, min(self.steps, method.steps), [])


def far_apart(found, wanted, least=1e-2):
    """``|found - wanted| / max(|wanted|, least)`` of every loss."""
    return {
        key: abs(found[key] - wanted[key]) / max(abs(wanted[key]), least)
        for key in wanted
    }
