"""What a run needs on every device, before anything is loaded."""

import dataclasses
import functools
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jax.sharding import AbstractMesh

from dareu_jax.config import ModelConfig, RunConfig
from dareu_jax.errors import UserError
from dareu_jax.models import DecoderConfig, decoder_config, over_imported
from dareu_jax.models.hf.imported import DECODER, open_imported
from dareu_jax.parallel import abstract_mesh, check_divisible, rollout_mesh
from dareu_jax.registry import KERNELS, METHODS, MODELS
from dareu_jax.runs.checks import check_oracle, check_part
from dareu_jax.runs.inputs import Inputs, parts_of
from dareu_jax.runs.memory import Footprint, OnDevice
from dareu_jax.unlearning import make_dareu, method_config, uses_prior

GIB = 2**30
MEMORY = {"v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
"""High-bandwidth memory of one chip, from Google's TPU documentation."""


class Chips(NamedTuple):
    """A slice: its name, how many devices it has, and the bytes of each."""

    name: str
    devices: int
    memory: int


class Row(NamedTuple):
    """A step of the run: what is held while it runs, and what it needs itself."""

    name: str
    held: int
    own: Footprint
    methods: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes per device while it runs."""
        return self.held + self.own.total


class Estimate(NamedTuple):
    """Bytes per device: what unlearning holds, by name, and every step."""

    chips: Chips
    held: dict[str, int]
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
    """Returns the slice that ``v5e-16``, ``v5p-8``, ``v6e-8`` or ``cpu`` names.

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
    """Works out the bytes of every step of a run on every device.

    Batches of tokens and heads of one number per owner are left out: they are small.

    Args:
      cfg: the run; chips: where.

    Raises:
      UserError: a shape that cannot be known yet, or one that does not fit the mesh.
    """
    with tempfile.TemporaryDirectory() as trial:
        sizes = Sizes(cfg, chips, Inputs(cfg, cfg.seeds[0], Path(trial)))
    by_method: dict[Row, list[str]] = {}
    for name in cfg.methods:
        own = sizes.dareus.get(name)
        rows = sizes.loss(name, sizes.losses[name]) if own is None else sizes.dareu(own)
        for row in rows:
            by_method.setdefault(row, []).append(name)
    unlearning = [row._replace(methods=tuple(by_method[row])) for row in by_method]
    every = [*sizes.training(), *unlearning, *sizes.evaluation()]
    return Estimate(chips, sizes.held, every)


class Sizes:
    """The decoders of a run as one device sees them, and what each step needs."""

    def __init__(self, cfg: RunConfig, chips: Chips, inputs: Inputs):
        mesh = cfg.mesh
        self.cfg, self.inputs, self.parts = cfg, inputs, parts_of(cfg)
        self.mesh = abstract_mesh(mesh.data, mesh.fsdp, mesh.tensor, chips.devices)
        check_oracle(cfg)
        KERNELS.get(cfg.reward.kernel)
        if cfg.reward.kernel not in ("classifier", "watermark"):
            raise UserError(
                f"reward.kernel = {cfg.reward.kernel}: an estimate knows the size of "
                "the classifier and of watermark alone; leave the key out to see the "
                "rest"
            )
        configs = {name: method_config(cfg, name) for name in cfg.methods}
        self.dareus = {
            n: c for n, c in configs.items() if METHODS.get(n).make is make_dareu
        }
        self.losses = {n: c for n, c in configs.items() if n not in self.dareus}
        self.sides: dict[str, OnDevice] = {}
        for name in self.parts:
            self.sides[name] = self._side(name, self.mesh)
        kv_heads = self.sides["model"].cfg.kv_heads
        self.sampling = rollout_mesh(self.mesh, kv_heads, mesh.rollout_tensor)
        self.there = self._side("model", self.sampling)
        self.is_moved = self.sampling != self.mesh
        self.prompt, self.response = self._lengths()

    def _lengths(self) -> tuple[int, int]:
        """P and T: as set, or as the tokenizer finds them in the corpus."""
        corpus = self.cfg.corpus
        prompt, response = corpus.max_prompt_tokens, corpus.max_response_tokens
        if prompt is not None and response is not None:
            return prompt, response
        if corpus.tokenizer is None and self._is_awaited(self.cfg.model):
            raise UserError(
                "corpus.max_prompt_tokens and corpus.max_response_tokens must be set "
                f"until {self.cfg.model.path} is there, to read its tokenizer"
            )
        return self.inputs.lengths

    def _is_awaited(self, model: ModelConfig) -> bool:
        """Whether a part is to be imported, and has not been yet."""
        return model.path is not None and not (Path(model.path) / DECODER).exists()

    def _side(self, name: str, mesh: AbstractMesh) -> OnDevice:
        part, shape = self.parts[name], self._shape(name)
        vocab = self.sides["model"].cfg.vocab if self.sides else shape.vocab
        check_part(part, shape, vocab)
        lora = part.lora
        adapters = () if lora is None else (lora.rank, lora.targets)
        return OnDevice(part.trained(shape), mesh, *adapters)

    def _shape(self, name: str) -> DecoderConfig:
        """The shape of a part: imported, of its preset, or of the run's vocabulary."""
        part = self.parts[name]
        key, model = f"{part.prefix}model", part.model
        if self._is_awaited(model):
            return over_imported(model, self._preset(model, key), key)
        if model.path is not None:
            return over_imported(model, open_imported(Path(model.path)).cfg, key)
        if name == "model":
            return self.inputs.decoder(name).cfg
        return decoder_config(model, self.sides["model"].cfg.vocab)

    def _preset(self, model: ModelConfig, key: str) -> DecoderConfig:
        """The shape that ``preset`` gives a model which is not there yet."""
        vocab = MODELS.get(model.preset).get("vocab")
        if vocab is None:
            known = [n for n in MODELS.names() if "vocab" in MODELS.get(n)]
            raise UserError(
                f"{key}.path: nothing is imported in {model.path} yet; set "
                f"{key}.preset to its shape: {', '.join(known)}"
            )
        return decoder_config(ModelConfig(preset=model.preset), vocab)

    @functools.cached_property
    def held(self) -> dict[str, int]:
        """What stays on the devices while the policy is updated."""
        one, cfg = self.sides["model"], self.cfg
        adapts, imported = one.rank is not None, cfg.model.path is not None
        weights = one.frozen if adapts else one.trainable
        own = one.trainable if adapts and imported else weights
        oracle = own if cfg.retrained.path is None else weights
        return {
            "weights": weights,
            "adapters": one.trainable if adapts else 0,
            "optimiser": one.optimiser,
            "behaviour policy": one.trainable,
            "weights to sample with": self.there.frozen if self.is_moved else 0,
            "reference": one.trainable if adapts else weights,
            "retrained": 0 if cfg.retrained.skip else oracle,
            **{name: self._beside(name) for name in ("classifier", "judge")},
            "shuffled classifier": self._second_classifier(),
            "prior": self._beside("prior") if self._reads_prior() else 0,
        }

    def _reads_prior(self) -> bool:
        return any(map(uses_prior, self.dareus.values()))

    def _second_classifier(self) -> int:
        """The control's classifier, trained on shuffled labels; a base is shared."""
        one = self.sides["classifier"]
        shuffles = any(cfg.reward.shuffle_owners for cfg in self.dareus.values())
        return one.trainable if shuffles else 0

    def _beside(self, name: str) -> int:
        """A decoder beside the policy; a base that is adapted before is there."""
        names = list(self.parts)
        before = {self._base(other) for other in names[: names.index(name)]}
        one, base = self.sides[name], self._base(name)
        return one.trainable + (0 if base and base in before else one.frozen)

    def _base(self, name: str) -> tuple[Path, str] | None:
        """What identifies the frozen parameters of a part; None: it has none."""
        part = self.parts[name]
        if part.lora is None or part.model.path is None:
            return None
        return Path(part.model.path).resolve(), self.sides[name].cfg.param_dtype

    def row(self, name: str, batch: int, held: int, own: Footprint) -> Row:
        """A step of ``batch`` rows, which the mesh must divide."""
        check_divisible(batch, self.mesh)
        return Row(name, held, own)

    def training(self) -> Iterator[Row]:
        """Fine-tuning, kernel, judge and prior; what came before stays."""
        cfg, there, p, t = self.cfg, self.held, self.prompt, self.response
        tuned = self.sides["model"]
        if tuned.rank is not None and cfg.model.path is None:
            tuned = OnDevice(tuned.cfg, self.mesh)
        held = tuned.frozen + tuned.trainable
        classifier, judge = cfg.classifier.batch_size, cfg.evaluation.judge.batch_size
        for name, size in (("classifier", classifier), ("judge", judge)):
            side = self.sides[name]
            held += there[name]
            own = side.train(size, 0, t, copies=0)
            yield self.row(name, size, held + side.optimiser, own)
        if cfg.finetune.epochs:
            size, state = cfg.finetune.batch_size, tuned.trainable + tuned.optimiser
            own = tuned.train(size, p, t, copies=2)
            yield self.row("fine-tuning", size, held + state, own)
        held += there["retrained"]
        if there["shuffled classifier"]:
            side, held = self.sides["classifier"], held + there["shuffled classifier"]
            own = side.train(classifier, 0, t, copies=0)
            yield self.row(
                "shuffled classifier", classifier, held + side.optimiser, own
            )
        if self._reads_prior():
            side, size = self.sides["prior"], cfg.prior.batch_size
            held += there["prior"] + side.optimiser
            yield self.row("prior", size, held, side.train(size, p, t, copies=2))

    def dareu(self, cfg: RunConfig) -> Iterator[Row]:
        """Rollout, judging, PPO and distillation."""
        hp, one, p = cfg.options("dareu"), self.sides["model"], self.prompt
        t, held = hp.max_new_tokens or self.response, sum(self.held.values())
        size = hp.batch_size * hp.samples_per_prompt
        others = 1 + uses_prior(cfg) + (hp.kl_anchor == "behaviour")
        trunks, kept = (2 if hp.kl_in == "loss" else 1), hp.retain_batch_size
        taught = self.response if hp.distil_on == "gold" else t
        steps = {
            "rollout": (size, self.rollout(size, p, t)),
            "judge answers": (size, one.judge(size, p, t, others)),
            "PPO update": (size, one.train(size, p, t, 2 * trunks, trunks)),
            "distillation": (kept, one.train(kept, p, taught, 5, trunks=2)),
        }
        if hp.distil_on == "reference":
            steps["retain rollout"] = (kept, self.rollout(kept, p, t))
        check_divisible(hp.batch_size, self.mesh)
        for step, (batch, own) in steps.items():
            if own.gradients:
                own = dataclasses.replace(own, results=one.trainable)
            yield self.row(step, batch, held, own)

    def rollout(self, size: int, prompt: int, response: int) -> Footprint:
        """Sampling, in its own layout; what is trained is moved there for it."""
        check_divisible(size, self.sampling)
        own = self.there.rollout(size, prompt, response)
        moved = self.there.trainable if self.is_moved else 0
        return dataclasses.replace(own, results=own.results + moved)

    def loss(self, name: str, cfg: RunConfig) -> Iterator[Row]:
        """One step on a forget and a retain batch."""
        one, size = self.sides["model"], getattr(cfg, name).batch_size
        own = one.losses(size, self.prompt, self.response)
        held = sum(self.held.values()) - self.held["behaviour policy"]
        yield self.row("loss update", size, held, own)

    def evaluation(self) -> Iterator[Row]:
        """Greedy answers of one model and log-probs, while the others stay."""
        cfg, one, p = self.cfg.evaluation, self.sides["model"], self.prompt
        size, tokens = cfg.batch_size, cfg.max_new_tokens or self.response
        held, longest = sum(self.held.values()), max(tokens, self.response)
        yield self.row("answers to judge", size, held, self.rollout(size, p, tokens))
        scores = one.judge(size, p, longest, others=0)
        yield self.row("log-probs to judge", size, held, scores)
