"""Decoders, kernels and states of methods of a run that are shapes and nothing else."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from dareu_jax.attribution import Kernel, Setup
from dareu_jax.attribution.kernel import axes_of
from dareu_jax.config import ModelConfig, RunConfig
from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    decoder_config,
    join,
    over_imported,
    split,
)
from dareu_jax.models.hf.imported import DECODER, open_imported
from dareu_jax.parallel import abstract_mesh, check_divisible, rollout_mesh
from dareu_jax.registry import KERNELS, METHODS, MODELS
from dareu_jax.runs.checks import check_oracle, check_part
from dareu_jax.runs.inputs import Inputs, parts_of
from dareu_jax.runs.memory import Footprint, OnDevice, leaf_bytes
from dareu_jax.runs.reward_index import Fitted, classifier_of
from dareu_jax.unlearning import MethodInputs, needs_of, reads_of


class Shapes:
    """The decoders of a run as one device sees them.

    Attributes:
      sides: every decoder of `parts_of`; original: ``model`` as fine-tuning leaves it.
      there: ``model`` in the layout in which text is sampled, and whether that is
        another one, ``is_moved``.
      prompt, response: P and T.
    """

    def __init__(self, cfg: RunConfig, devices: int, inputs: Inputs):
        mesh = cfg.mesh
        self.cfg, self.inputs, self.parts = cfg, inputs, parts_of(cfg)
        self.mesh = abstract_mesh(mesh.data, mesh.fsdp, mesh.tensor, devices)
        check_oracle(cfg)
        self.sides: dict[str, OnDevice] = {}
        for name in self.parts:
            self.sides[name] = self._side(name, self.mesh)
        one = self.original = self.sides["model"]
        if cfg.lora and not (cfg.model.path and cfg.finetune.epochs):
            self.original = OnDevice(one.cfg, self.mesh)  # a method adds adapters
        sampling = rollout_mesh(self.mesh, one.cfg.kv_heads, mesh.rollout_tensor)
        self.there, self.is_moved = self._side("model", sampling), sampling != self.mesh
        self.prompt, self.response = self._lengths()

    def _lengths(self) -> tuple[int, int]:
        """Return P and T: as set, or as the tokenizer finds them in the corpus."""
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
        """Return whether a part is to be imported, and has not been yet."""
        return model.path is not None and not (Path(model.path) / DECODER).exists()

    def _side(self, name: str, mesh: AbstractMesh) -> OnDevice:
        part, shape = self.parts[name], self._shape(name)
        vocab = self.sides["model"].cfg.vocab if self.sides else shape.vocab
        check_part(part, shape, vocab)
        lora = part.lora
        adapters = () if lora is None else (lora.rank, lora.targets)
        return OnDevice(part.trained(shape), mesh, *adapters)

    def _shape(self, name: str) -> DecoderConfig:
        """Return the shape of a part: imported, of its preset, or of the corpus."""
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
        """Return the shape that ``preset`` gives a model which is not there yet."""
        vocab = MODELS.get(model.preset).get("vocab")
        if vocab is None:
            known = [n for n in MODELS.names() if "vocab" in MODELS.get(n)]
            raise UserError(
                f"{key}.path: nothing is imported in {model.path} yet; set "
                f"{key}.preset to its shape: {', '.join(known)}"
            )
        return decoder_config(ModelConfig(preset=model.preset), vocab)

    def rollout(self, size: int, prompt: int, response: int) -> Footprint:
        """Return what sampling needs, in a layout of its own; the policy is moved."""
        check_divisible(size, self.there.mesh)
        own = self.there.rollout(size, prompt, response)
        moved = self.is_moved * self.there.trainable
        return dataclasses.replace(own, results=own.results + moved)

    def attribution(
        self, kernel: Kernel, fitted: Fitted, size: int, response: int
    ) -> Footprint:
        """Return what a kernel needs to look at a batch of responses."""
        if kernel.is_fitted:
            side, prompt = self.sides[fitted.part], 0
        else:
            side, prompt = self.original, self.prompt
        if kernel.differentiates:
            own = side.train(size, prompt, response, copies=2)
            return dataclasses.replace(own, gradients=0)
        if not kernel.is_fitted and not kernel.follows_model:
            return Footprint()
        layer = side.forward(size, prompt + response)
        return Footprint(layer=layer, gathered=side.gathered()[0])


class Traced(NamedTuple):
    """A kernel that is made from shapes, and bytes per device.

    Attributes:
      kernel: it; index: the shapes of its index; size: bytes of the index.
      state: bytes of the largest accumulator.
      snapshots: bytes of the checkpoints that it keeps.
    """

    kernel: Kernel
    index: Any
    size: int
    state: int
    snapshots: int


def traced_kernel(at: Shapes, name: str, fitted: Fitted) -> Traced:
    """Trace the build of an index, and count what it makes.

    Arrays of the model, of a base and of checkpoints that an index passes on are not
    counted with it.

    Args:
      at: the decoders; name: of the kernel; fitted: what it trains.
    """
    cfg, side, sizes = at.cfg, at.sides[fitted.part], list[int]()
    setup = _setup(at, name, fitted)
    taken = cfg.finetune.snapshots if cfg.finetune.epochs else 0
    is_fresh = at.parts[fitted.part].model.path is None

    def build(params: Any, start: Any, trained: Any) -> tuple[Any, ...]:
        frozen = split(params)[1], split(start or {})[1]
        members = [(join(frozen[0], own), 1.0) for own in trained]
        kernel = KERNELS.get(name)(
            dataclasses.replace(setup, start=lambda: start, snapshots=lambda: members)
        )
        trees = [kernel.init(params, key=jax.random.key(0))]
        for number in range(1, kernel.passes):
            trees.append(kernel.advance(params, trees[-1], number))
        trees.append(kernel.finalize(params, trees[-1]))
        shared = {id(x) for x in jax.tree.leaves((params, frozen, members))}
        for tree in trees:
            each = leaf_bytes(tree, at.mesh, axes_of(kernel, tree))
            own = zip(jax.tree.leaves(tree), each, strict=True)
            sizes.append(sum(size for leaf, size in own if id(leaf) not in shared))
        return trees[-1]

    params, start = at.original.params, None if is_fresh else side.params
    index = jax.eval_shape(build, params, start, [split(params)[0]] * taken)
    kernel = KERNELS.get(name)(setup)
    snapshots = taken * at.original.trainable if kernel.reads_snapshots else 0
    return Traced(kernel, index, sizes[-1], max(sizes[:-1]), snapshots)


def _setup(at: Shapes, name: str, fitted: Fitted) -> Setup:
    """Return what a kernel is made from, but for what it reads."""
    cfg = at.cfg
    setup = Setup(
        model=Decoder(at.sides["model"].cfg),
        owners=len(cfg.corpus.forget) + 1,
        cfg=cfg.attribution,
        classifier=classifier_of(at.inputs, fitted),
        steps=1,
        backbone=Decoder(at.sides[fitted.part].cfg),
    )
    if cfg.corpus.merge_others or KERNELS.get(name)(setup).is_fitted:
        return setup  # only the small head of a fitted kernel depends on the owners
    return dataclasses.replace(setup, owners=len(at.inputs.corpus.owners))


def traced_state(
    at: Shapes, name: str, cfg: RunConfig, given: Mapping[str, Any]
) -> Any:
    """Return the shapes of the state of method ``name``.

    Args:
      at: the decoders; cfg: of the method's row.
      given: what stages that it reads leave, by name, see `MethodInputs`.
    """
    needs = needs_of(name, cfg)
    rows = needs["forget"].batch_size if "forget" in needs else 1

    def init(params: Any) -> Any:
        inputs = MethodInputs(
            model=Decoder(at.sides["model"].cfg),
            reference=params,
            frozen=split(params)[1],
            forget_columns=tuple(range(len(cfg.corpus.forget))),
            forget_owner=jnp.zeros(rows, jnp.int32),
            response_tokens=at.response,
            stop_ids=(),
            gold_length=1.0,
            stages={read: given[read] for read in reads_of(name, cfg)},
        )
        made = METHODS.get(name).make(cfg, inputs)
        return made.init(params, key=jax.random.key(0))

    return jax.eval_shape(init, at.sides["model"].params)
