"""Go down the plan of a run: what every step needs on each device, by shapes alone."""

import dataclasses
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dareu_jax.config import FinetuneConfig, RunConfig, Section
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder
from dareu_jax.parallel import check_divisible, named_leaves, state_axes
from dareu_jax.registry import METHODS
from dareu_jax.runs.checks import warn_of_prior
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.memory import Footprint, OnDevice, leaf_bytes
from dareu_jax.runs.pipeline import needed_after
from dareu_jax.runs.plan import Planned, plan
from dareu_jax.runs.reward_index import classifier_of, fitted_of
from dareu_jax.runs.shapes import Shapes, traced_kernel, traced_state
from dareu_jax.runs.stages import is_imported
from dareu_jax.training.accumulation import rows_by_size
from dareu_jax.unlearning import (
    Prior,
    RewardIndex,
    judges_logits,
    make_dareu,
    method_config,
    needs_of,
    uses_prior,
)
from dareu_jax.unlearning.dareu import uses_base
from dareu_jax.unlearning.method import Need
from dareu_jax.unlearning.reward_stages import called, reward_stage
from dareu_jax.unlearning.setting import anchors_of
from dareu_jax.unlearning.supervised import LossMethodConfig

Parts = Counter[str]
"""Bytes per device by what they are for."""
Step = tuple[str, int, Footprint]
"""The name of a step, rows of its batch, and what it needs itself."""
REST = "rest of the state"
STATE = {
    "opt_state": "optimiser",
    "behaviour": "behaviour policy",
    "attributed": "attributed policy",
}
"""Fields of a method's state, and what they are for."""
GIB = 2**30
MEMORY = {"v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
"""High-bandwidth memory of one chip, from Google's TPU documentation."""


class Chips(NamedTuple):
    """A slice: its name, how many devices it has, and the bytes of each."""

    name: str
    devices: int
    memory: int


class Row(NamedTuple):
    """A step of the run: what is held while it runs, and what it needs itself.

    Attributes:
      name: of the step; held: bytes per device; own: beside them.
      stages: names of those that have it, at the same size.
    """

    name: str
    held: int
    own: Footprint
    stages: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes per device while it runs."""
        return self.held + self.own.total


class Estimate(NamedTuple):
    """Bytes per device: the most that unlearning holds, by name, and every step."""

    chips: Chips
    held: Parts
    rows: list[Row]

    @property
    def peak(self) -> Row:
        """The step that needs most."""
        return max(self.rows, key=lambda row: row.total)

    @property
    def fits(self) -> bool:
        """Whether the largest step fits in a device's memory."""
        return self.peak.total <= self.chips.memory


def read_chips(name: str) -> Chips:
    """Return the slice that ``v5e-16``, ``v5p-8``, ``v6e-8`` or ``cpu`` names.

    Raises:
      UserError: no such slice.
    """
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Chips(name, 1, memory)
    match = re.fullmatch(r"(v5e|v5p|v6e)-([1-9][0-9]*)", name)
    if match is None or (match[1] == "v5p" and int(match[2]) % 2):
        raise UserError(
            f"--chips {name}: no such slice; give cpu, or v5e-N, v6e-N (N chips) or "
            "v5p-N (N cores, two a chip), such as v5e-16"
        )
    cores = 2 if match[1] == "v5p" else 1
    return Chips(name, int(match[2]) // cores, MEMORY[match[1]])


def estimate(cfg: RunConfig, chips: Chips) -> Estimate:
    """Go through the plan of a run; return the bytes of every step on every device.

    Batches of tokens are left out: they are small.

    Args:
      cfg: the run; chips: where.

    Raises:
      UserError: a shape that cannot be known yet, or one that does not fit the mesh.
    """
    stages, rows = plan(cfg), dict[Row, list[str]]()
    todo = {stage.name: True for stage in stages}
    with tempfile.TemporaryDirectory() as trial:
        shapes = Shapes(cfg, chips.devices, Inputs(cfg, cfg.seeds[0], Path(trial)))
        sizes = Sizes(cfg, shapes, is_cpu=chips.name == "cpu")
        for stage in stages:
            for row in sizes.steps[stage.kind](stage):
                rows.setdefault(row, []).append(stage.row)
            sizes.results = needed_after(stage, stages, todo, sizes.results)
    warn_of_prior(cfg, shapes.sides["prior"].cfg, shapes.sides["model"].cfg)
    every = [row._replace(stages=tuple(names)) for row, names in rows.items()]
    return Estimate(chips, sizes.unlearning, every)


class Sizes:
    """What is held on a device while the plan is gone through, and what steps need.

    Attributes:
      bases: frozen parameters that parts of the run adapt, from their first use on.
      results: bytes of what stages left and later ones read.
      given: shapes of what a method that reads a stage is given.
      builds: rows of a batch and needs of the build of an index.
      unlearning: the most that any method holds, by name.
      steps: ``stage -> rows`` for every kind of stage.
      is_cpu: whether one CPU has all, which reads large batches in parts.
    """

    def __init__(self, cfg: RunConfig, shapes: Shapes, is_cpu: bool):
        self.cfg, self.shapes, self.one = cfg, shapes, shapes.sides["model"]
        self.is_cpu = is_cpu and shapes.mesh.size == 1
        self.bases: dict[tuple[Path, str], Parts] = {}
        self.results: dict[str, Parts] = {}
        self.given: dict[str, Any] = {}
        self.builds: dict[str, tuple[int, Footprint]] = {}
        self.unlearning = Parts()
        self.policy = "adapters" if cfg.lora else "weights"
        self.steps: dict[str, Callable[[Planned], Iterator[Row]]] = {
            "model": self.model,
            "index": self.index,
            "method": self.method,
            "evaluation": self.evaluation,
        }

    def held(self) -> Parts:
        """Return what is held: bases, and results that are still read."""
        return sum([*self.bases.values(), *self.results.values()], Parts())

    def use_base(self, part: str, name: str) -> None:
        """Count what a part adapts as ``name`` from now on, unless another did so."""
        model, lora = self.shapes.parts[part].model, self.shapes.parts[part].lora
        if lora is not None and model.path is not None:
            side = self.shapes.sides[part]
            key = Path(model.path).resolve(), side.cfg.param_dtype
            self.bases.setdefault(key, Parts({name: side.frozen}))

    def shares_base(self) -> bool:
        """Return whether the base is the model that adapters are trained on."""
        paths = self.cfg.options("dareu").base_path, self.cfg.model.path
        base, model = (path and Path(path).resolve() for path in paths)
        return base in (None, model)

    def row(self, name: str, batch: int, held: int, own: Footprint) -> Row:
        """Return a step that reads ``batch`` rows, which the mesh must divide."""
        check_divisible(batch, self.shapes.mesh)
        return Row(name, held, own)

    def at_once(
        self, given: int | None, side: OnDevice, rows: int, response: int
    ) -> int | None:
        """Return how many rows a gradient step reads at a time, see `rows_at_once`."""
        if given is not None or not self.is_cpu:
            return given and math.gcd(given, rows)
        return rows_by_size(side.cfg, rows, self.shapes.prompt + response)

    def model(self, stage: Planned) -> Iterator[Row]:
        """Yield the training of ``original``, ``retrained`` or ``prior``."""
        cfg, one, at = self.cfg, self.one, self.shapes
        hp: FinetuneConfig = cfg.finetune
        side, name, part = at.original, "fine-tuning", "model"
        if stage.name == "prior":
            side, name, part, hp = at.sides["prior"], "prior", "prior", cfg.prior
            self.given["prior"] = Prior(Decoder(side.cfg), side.params)
        self.use_base(part, "prior" if part == "prior" else "weights")
        if not is_imported(cfg, stage):
            held = self.held().total() + side.trainable + side.optimiser
            rows, t = hp.batch_size, at.response
            size = self.at_once(hp.microbatch_size, side, rows, t)
            own = side.train(rows, at.prompt, t, copies=2, at_once=size)
            yield self.row(name, size or rows, held, own)
        left = {stage.name: side.trainable}
        if stage.name == "original":
            own_base = 0 if cfg.model.path else one.frozen
            left = {"reference": one.trainable, "weights": own_base}
        elif stage.name == "retrained" and cfg.retrained.path:
            left = {"retrained": one.frozen or one.trainable}
        elif stage.name == "base":
            left = {"base": one.frozen or one.trainable}
            if cfg.lora and self.shares_base():
                left = {"base": 0}
            self.given["base"] = Prior(Decoder(one.cfg), one.params)
        self.results[stage.name] = Parts(left)

    def index(self, stage: Planned) -> Iterator[Row]:
        """Yield the build of an attribution index."""
        at, fitted, reward = self.shapes, fitted_of(stage.name), self.cfg.reward.kernel
        assert fitted is not None
        kernel = "classifier" if stage.name == "judge" else reward
        name = called(stage.name, reward)
        built = traced_kernel(at, kernel, fitted)
        hp = classifier_of(at.inputs, fitted)
        size, part = hp.batch_size, hp.microbatch_size
        if built.kernel.is_fitted:
            self.use_base(fitted.part, name)
            own = at.sides[fitted.part].train(
                size, 0, at.response, copies=0, at_once=part
            )
            own = dataclasses.replace(own, results=built.state)
        else:
            added = built.state if built.kernel.differentiates else 0
            own = at.attribution(built.kernel, fitted, size, at.response)
            own = dataclasses.replace(own, gradients=added, results=2 * built.state)
        held = self.held().total() + built.snapshots
        yield self.row(name, part or size, held, own)
        self.builds[stage.name] = size, own
        self.given[stage.name] = RewardIndex(built.kernel, built.index, lambda _: None)
        self.results[stage.name] = Parts({name: built.size + built.snapshots})

    def method(self, stage: Planned) -> Iterator[Row]:
        """Yield the steps of an unlearning method."""
        cfg, name = method_config(self.cfg, stage.name), stage.name
        held = self.held() + self.state(name, cfg)
        is_dareu = METHODS.get(name).make is make_dareu
        if is_dareu:
            held += self.beside_dareu(cfg)
        self.unlearning |= held
        options = dict(METHODS.options()).get(name, Section)
        in_turn = issubclass(options, LossMethodConfig)  # others may do otherwise
        steps = (
            self.dareu(cfg) if is_dareu else self.losses(needs_of(name, cfg), in_turn)
        )
        for step, size, own in steps:
            yield self.row(step, size, held.total(), own)
        self.results[name] = Parts({self.policy: self.one.trainable})

    def state(self, name: str, cfg: RunConfig) -> Parts:
        """Return the bytes of a method's state, by what they are for."""
        state = traced_state(self.shapes, name, cfg, self.given)
        parts, mesh = Parts(), self.shapes.mesh
        sizes = leaf_bytes(state, mesh, state_axes(state))
        for (path, _), size in zip(named_leaves(state), sizes, strict=True):
            known = (STATE[field] for field in path.split("/") if field in STATE)
            parts[next(known, REST)] += size
        policy = min(parts[REST], self.one.trainable)
        return parts - Parts({REST: policy}) + Parts({self.policy: policy})

    def beside_dareu(self, cfg: RunConfig) -> Parts:
        """Return what DareU holds beside its state and what it reads."""
        parts, at = Parts(), self.shapes
        if at.is_moved:
            parts["weights to sample with"] = at.there.frozen
        if cfg.reward.refresh_every:
            parts["index built again"] = self.results[reward_stage(cfg)].total()
        return parts

    def dareu(self, cfg: RunConfig) -> Iterator[Step]:
        """Yield rollout, attribution, judging, PPO, distillation and a new index."""
        hp, one, at, p = cfg.options("dareu"), self.one, self.shapes, self.shapes.prompt
        t, reward = hp.max_new_tokens or at.response, reward_stage(cfg)
        asked = p + at.response * (hp.prefix_share > 0)
        size, kept = hp.batch_size * hp.samples_per_prompt, hp.retain_batch_size
        is_old = hp.kl_anchor == "behaviour"
        others = 1 + uses_prior(cfg) + uses_base(cfg) + is_old
        trunks = 1 + len(anchors_of(hp.kl_anchor)) * (hp.kl_in == "loss")
        kernel, fitted = self.given[reward].kernel, fitted_of(reward)
        assert fitted is not None
        check_divisible(hp.batch_size, at.mesh)
        yield "rollout", size, at.rollout(size, asked, t)
        yield "attribution", size, at.attribution(kernel, fitted, size, t)
        own = one.judge(size, asked, t, others, judges_logits(cfg))
        yield "judge answers", size, own
        # a joint step has both gradients at once
        is_joint, written = hp.retain_step == "joint", one.trainable
        both = written * (2 if is_joint else 1)
        rows, part = hp.rows_per_update, hp.microbatch_size
        part = self.at_once(part, one, rows, t)
        own = one.train(rows, asked, t, 2 * trunks, trunks, part)
        # what the devices must share: parts by number need not be
        shared = hp.microbatch_size or hp.minibatch_size or size
        yield "PPO update", shared, dataclasses.replace(own, results=both)
        answer = at.response if hp.distil_on == "gold" else t
        rows, part = hp.retain_rows_per_update, hp.microbatch_size
        part = self.at_once(part, one, rows, answer)
        own = one.train(rows, p, answer, 5, 2, part)
        shared = hp.microbatch_size or kept
        yield "distillation", shared, dataclasses.replace(own, results=both)
        if hp.distil_on == "reference":
            yield "retain rollout", kept, at.rollout(kept, p, t)
        if cfg.reward.refresh_every:
            yield "index built again", *self.builds[reward]

    def losses(self, needs: Mapping[str, Need], in_turn: bool) -> Iterator[Step]:
        """Yield a step on losses of all batches that a method needs."""
        largest = max(needs.values(), key=lambda need: need.at_once or need.batch_size)
        size, count = largest.batch_size, sum(x.batches for x in needs.values())
        prompt, response = self.shapes.prompt, self.shapes.response
        part = largest.at_once
        if in_turn:
            part = self.at_once(part, self.one, size, response)
        own = self.one.losses(
            size, prompt, response, batches=count, at_once=part, in_turn=in_turn
        )
        yield "loss update", part or size, own

    def evaluation(self, stage: Planned) -> Iterator[Row]:
        """Yield greedy answers and log-probs of one model."""
        cfg, at, held = self.cfg.evaluation, self.shapes, self.held().total()
        size, tokens = cfg.batch_size, cfg.max_new_tokens or at.response
        own = at.rollout(size, at.prompt, tokens)
        moved = at.is_moved * at.there.frozen
        own = dataclasses.replace(own, results=own.results + moved)
        yield self.row("answers to judge", size, held, own)
        own = self.one.judge(size, at.prompt, max(tokens, at.response), others=0)
        yield self.row("log-probs to judge", size, held, own)
