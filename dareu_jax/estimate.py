"""What a run needs on every device, before anything is loaded."""

import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from dareu_jax.config import ModelConfig, RunConfig
from dareu_jax.errors import UserError
from dareu_jax.imported import DECODER
from dareu_jax.inputs import Inputs, Part, parts_of
from dareu_jax.memory import Footprint, OnDevice
from dareu_jax.models import DecoderConfig, decoder_config
from dareu_jax.parallel import abstract_mesh, check_divisible
from dareu_jax.registry import METHODS, MODELS
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
        own, is_dareu = method_config(cfg, name), METHODS.get(name) is make_dareu
        for row in sizes.dareu(own) if is_dareu else sizes.loss(name, own):
            by_method.setdefault(row, []).append(name)
    unlearning = [row._replace(methods=tuple(by_method[row])) for row in by_method]
    rows = [*sizes.training(), *unlearning, sizes.evaluation()]
    return Estimate(chips, sizes.held(), rows)


class Sizes:
    """The decoders of a run as one device sees them, and what each step needs."""

    def __init__(self, cfg: RunConfig, chips: Chips, inputs: Inputs):
        mesh = cfg.mesh
        self.cfg, self.inputs = cfg, inputs
        self.mesh = abstract_mesh(mesh.data, mesh.fsdp, mesh.tensor, chips.devices)
        self.parts = parts_of(cfg)
        self.sides = {name: self._side(name) for name in self.parts}
        limits = (cfg.corpus.max_prompt_tokens, cfg.corpus.max_response_tokens)
        self.prompt, self.response = self._lengths(limits)

    def _lengths(self, limits: tuple[int | None, int | None]) -> tuple[int, int]:
        """P and T: as set, or as the tokenizer finds them in the corpus."""
        prompt, response = limits
        if prompt is not None and response is not None:
            return prompt, response
        if self._is_awaited(self.parts["model"].model):
            raise UserError(
                "corpus.max_prompt_tokens and corpus.max_response_tokens must be set "
                f"until {self.cfg.model.path} is there, to read its tokenizer"
            )
        return self.inputs.lengths

    def _is_awaited(self, model: ModelConfig) -> bool:
        """Whether a part is to be imported, and has not been yet."""
        return model.path is not None and not (Path(model.path) / DECODER).exists()

    def _side(self, name: str) -> OnDevice:
        part = self.parts[name]
        if not self._is_awaited(part.model) and not self._is_awaited(self.cfg.model):
            shape = self.inputs.decoder(name).cfg
        else:
            shape = self._preset(part)
        if (lora := part.lora) is None:
            return OnDevice(shape, self.mesh)
        shape = dataclasses.replace(
            shape, lora_alpha=lora.alpha, lora_dropout=lora.dropout
        )
        return OnDevice(shape, self.mesh, lora.rank, lora.targets)

    def _preset(self, part: Part) -> DecoderConfig:
        """The shape that ``preset`` gives a model which is not there yet."""
        main = MODELS.get(self.cfg.model.preset).get("vocab")
        vocab = MODELS.get(part.model.preset).get("vocab", main)
        if part.model.path is not None and "vocab" not in MODELS.get(part.model.preset):
            known = [n for n in MODELS.names() if "vocab" in MODELS.get(n)]
            raise UserError(
                f"{part.prefix}model.path: nothing is imported in {part.model.path} "
                f"yet; set {part.prefix}model.preset to its shape: {', '.join(known)}"
            )
        return decoder_config(part.model, vocab)

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
            "reference": one.trainable if adapts else weights,
            "retrained": 0 if cfg.retrained.skip else oracle,
            **{name: self._beside(name) for name in ("classifier", "judge", "prior")},
        }

    def _beside(self, name: str) -> int:
        """A decoder beside the policy; a base that is adapted before is there."""
        one, part = self.sides[name], self.parts[name]
        names = list(self.parts)
        before = [self.parts[other] for other in names[: names.index(name)]]
        adapted = {p.model.path for p in before if p.lora is not None}
        shared = part.lora is not None and part.model.path in adapted
        return one.trainable + (0 if shared else one.frozen)

    def row(self, name: str, batch: int, held: int, own: Footprint) -> Row:
        """A step of ``batch`` rows, which the mesh must divide."""
        check_divisible(batch, self.mesh)
        return Row(name, held, own)

    def training(self) -> Iterator[Row]:
        """Fine-tuning, kernel, judge and prior; what came before stays."""
        cfg, there, p, t = self.cfg, self.held(), self.prompt, self.response
        tuned = self.sides["model"]
        if tuned.rank is not None and cfg.model.path is None:
            tuned = OnDevice(tuned.cfg, self.mesh)
        held = tuned.frozen + tuned.trainable
        for name, config in (
            ("classifier", cfg.classifier),
            ("judge", cfg.evaluation.judge),
        ):
            side, size = self.sides[name], config.batch_size
            held += there[name]
            own = side.train(size, 0, t, copies=0)
            yield self.row(name, size, held + side.optimiser, own)
        if cfg.finetune.epochs:
            size, state = cfg.finetune.batch_size, tuned.trainable + tuned.optimiser
            own = tuned.train(size, p, t, copies=2)
            yield self.row("fine-tuning", size, held + state, own)
        side, size = self.sides["prior"], cfg.prior.batch_size
        held += there["retrained"] + there["prior"] + side.optimiser
        yield self.row("prior", size, held, side.train(size, p, t, copies=2))

    def dareu(self, cfg: RunConfig) -> Iterator[Row]:
        """Rollout, judging, PPO and distillation."""
        hp, one, p = cfg.dareu, self.sides["model"], self.prompt
        t, held = hp.max_new_tokens or self.response, sum(self.held().values())
        size = hp.batch_size * hp.samples_per_prompt
        others = 1 + uses_prior(cfg) + (hp.kl_anchor == "behaviour")
        trunks = 2 if hp.kl_in == "loss" else 1
        update = one.train(size, p, t, 2 * trunks, trunks)
        distil = one.train(hp.retain_batch_size, p, self.response, 5, trunks=2)
        steps = {
            "rollout": (size, one.rollout(size, p, t)),
            "judge answers": (size, one.judge(size, p, t, others)),
            "PPO update": (size, update),
            "distillation": (hp.retain_batch_size, distil),
        }
        for step, (batch, own) in steps.items():
            if own.gradients:
                own = dataclasses.replace(own, results=one.trainable)
            yield self.row(step, batch, held, own)

    def loss(self, name: str, cfg: RunConfig) -> Iterator[Row]:
        """One step on a forget and a retain batch."""
        one, size = self.sides["model"], getattr(cfg, name).batch_size
        own = one.losses(size, self.prompt, self.response)
        held = sum(self.held().values()) - self.held()["behaviour policy"]
        yield self.row("loss update", size, held, own)

    def evaluation(self) -> Row:
        """Greedy answers of one model, while the others stay."""
        cfg, one = self.cfg.evaluation, self.sides["model"]
        tokens = cfg.max_new_tokens or self.response
        own = one.rollout(cfg.batch_size, self.prompt, tokens)
        held = sum(self.held().values())
        return self.row("evaluation", cfg.batch_size, held, own)


COLUMNS = {
    "held": lambda row: row.held,
    "gradients,\nresults": lambda row: row.own.gradients + row.own.results,
    "activations": lambda row: row.own.kept + row.own.layer,
    "logits": lambda row: row.own.logits,
    "KV cache": lambda row: row.own.cache,
    "gathered": lambda row: row.own.gathered,
    "total": lambda row: row.total,
}


def print_estimate(console: Console, found: Estimate) -> None:
    """Prints what is held, what every step needs, and whether it fits."""
    chips, peak = found.chips, found.peak
    unit, name = (GIB, "GiB") if peak.total >= GIB else (2**20, "MiB")
    devices = f"{chips.devices} device" + "s" * (chips.devices > 1)
    console.print(f"{chips.name}: {devices} of {chips.memory / GIB:.0f} GiB\n")
    held = _table(f"{name} held while unlearning", ["per device"])
    for part, size in found.held.items():
        held.add_row(part, f"{size / unit:.2f}")
    console.print(held)
    console.print()
    console.print(_steps(found, unit, name))
    verdict = "fits" if found.fits else "does not fit"
    console.print(
        f"\n{verdict}: {peak.name} takes {peak.total / chips.memory:.0%} of a device.\n"
        "Of activations and logits the larger counts: they are never needed at once.\n"
        "Not counted: the compiler's padding, tokens, and what other programs use."
    )


def _steps(found: Estimate, unit: int, name: str) -> Table:
    """One line per step; methods are named where a step differs between them."""
    steps = _table(f"{name} per device", list(COLUMNS))
    names = [row.name for row in found.rows]
    for row in found.rows:
        many = names.count(row.name) > 1
        step = f"{row.name}: {', '.join(row.methods)}" if many else row.name
        sizes = [f"{of(row) / unit:.2f}" for of in COLUMNS.values()]
        steps.add_row(step, *sizes, style="bold" if row is found.peak else None)
    return steps


def _table(first: str, columns: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, vertical="bottom")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    return table
