"""Bytes that a step needs on one device, worked out from shapes alone.

Arguments and results are exact. What a step uses in between is what its forward pass
keeps, as JAX's own trace has it, and the working set of one layer or of the logits;
`tests/runs/test_memory.py` compares it with what XLA allocates.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    abstract_params,
    hidden_states,
    init_adapters,
    join,
    split,
)
from dareu_jax.models.decoder import rule_of
from dareu_jax.models.fused_attention import queries_at_once
from dareu_jax.models.scoring import positions_at_once
from dareu_jax.parallel import batch_devices, shardings_for
from dareu_jax.training.optimiser import make_optimiser

FLOAT32 = 4
IN_PARTS = 4
"""Arrays like the logits that a gradient step on parts of them has at once."""


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes per device of one step, beside its arguments.

    Attributes:
      results: outputs that are not written over an argument.
      gradients: of everything trained.
      kept: what the forward pass keeps for the backward one.
      layer: the working set of one layer; logits: that of the vocabulary. The two are
        never needed at once.
      cache: keys and values of a rollout.
      gathered: parameters split over ``fsdp`` that a forward pass makes whole.
    """

    results: int = 0
    gradients: int = 0
    kept: int = 0
    layer: int = 0
    logits: int = 0
    cache: int = 0
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of it, at the moment when it is most."""
        other = self.results + self.gradients + self.kept + self.cache + self.gathered
        return other + max(self.layer, self.logits)


def device_bytes(tree: Any, mesh: AbstractMesh) -> int:
    """Return the bytes per device of a model's tree of arrays or of their shapes."""
    return sum(leaf_bytes(tree, mesh))


def leaf_bytes(tree: Any, mesh: AbstractMesh, axes: Any = None) -> list[int]:
    """Return the bytes per device of every leaf; arguments as of `shardings_for`."""
    places = jax.tree.leaves(shardings_for(tree, mesh, axes))
    return [
        math.prod(to.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, to in zip(jax.tree.leaves(tree), places, strict=True)
    ]


class OnDevice:
    """A decoder on a mesh, its trained and frozen parameters: what one device has.

    Args:
      cfg: its shape; rank: of its adapters, None: every parameter is trained.
      targets: the layers adapted; mesh: of the chips.
    """

    def __init__(
        self,
        cfg: DecoderConfig,
        mesh: AbstractMesh,
        rank: int | None = None,
        targets: tuple[str, ...] = (),
    ):
        self.cfg, self.mesh, self.rank, self.targets = cfg, mesh, rank, targets
        self.params = _params(cfg, rank, targets)
        trainable, frozen = split(self.params)
        self.trainable = device_bytes(trainable, mesh)
        self.frozen = device_bytes(frozen, mesh)
        wide = jax.tree.map(lambda x: x.update(dtype=jnp.float32), trainable)
        self.sums = device_bytes(wide, mesh)
        moments = jax.eval_shape(make_optimiser(1.0, 1).init, trainable)
        self.optimiser = device_bytes(moments, mesh)
        self.tensor = mesh.shape["tensor"]
        self.local = self._local()

    def gathered(self) -> tuple[int, int]:
        """Bytes of one layer and of the vocabulary's table, where ``fsdp`` splits."""
        if self.mesh.shape["fsdp"] == 1:
            return 0, 0
        params = _params(self.local, self.rank, self.targets)
        size = jnp.dtype(self.cfg.param_dtype).itemsize
        layers = jax.tree.leaves(params["layers"])
        one = sum(x.size * x.dtype.itemsize for x in layers) // self.cfg.layers
        return one, self._split(self.cfg.vocab) * self.cfg.embed * size

    def _split(self, size: int) -> int:
        """A dimension that ``tensor`` splits, where it divides."""
        return size // self.tensor if size % self.tensor == 0 else size

    def _local(self) -> DecoderConfig:
        """The shape as one device sees it: heads and ffn are split over ``tensor``."""
        cfg, parts = self.cfg, self.tensor
        whole = cfg.heads % parts or cfg.kv_heads % parts
        heads, kv = (n if whole else n // parts for n in (cfg.heads, cfg.kv_heads))
        ffn = self._split(cfg.ffn)
        return dataclasses.replace(cfg, heads=heads, kv_heads=kv, ffn=ffn)

    def rows(self, batch: int) -> int:
        """Rows of a batch on one device: all where the devices cannot share them."""
        devices = batch_devices(self.mesh)
        return batch if batch % devices else batch // devices

    def kept(self, batch: int, length: int, dropout: bool = False) -> int:
        """Bytes of every layer that the forward pass keeps for the backward one."""
        adapters = (self.rank, self.targets)
        return _kept(self.local, adapters, self.rows(batch), length, dropout)

    def streams(self, batch: int, length: int) -> dict[str, int]:
        """Bytes of one layer's stream, attention scores, ffn and adapter outputs."""
        cfg, tokens = self.local, self.rows(batch) * length
        size = jnp.dtype(cfg.compute_dtype).itemsize
        width = {"q": cfg.heads * cfg.head_dim, "k": cfg.kv_heads * cfg.head_dim}
        width |= {"v": width["k"], "o": cfg.embed, "down": cfg.embed}
        width |= {"gate": cfg.ffn if cfg.gated else 0, "up": cfg.ffn}
        return {
            "stream": tokens * cfg.embed * size,
            "scores": self.scores(batch, length),
            "ffn": tokens * cfg.ffn * size,
            "adapted": tokens * size * sum(width.get(t, 0) for t in self.targets),
        }

    def scores(self, batch: int, length: int) -> int:
        """Bytes of one layer's attention scores that exist at the same time."""
        queries = self.rows(batch) * queries_at_once(rule_of(self.local), length)
        return queries * length * self.local.heads * FLOAT32

    def logits(self, batch: int, length: int, trunks: int = 1) -> int:
        """Bytes of one trunk's logits, float32, at the positions that have them."""
        vocab = self.cfg.vocab
        at_once = positions_at_once(batch, vocab * trunks)
        positions = self.rows(batch) * min(length, at_once)
        return positions * self._split(vocab) * FLOAT32

    def forward(self, batch: int, length: int) -> int:
        """Working set of a layer in a forward pass."""
        one = self.streams(batch, length)
        return 2 * (one["stream"] + one["scores"] + one["ffn"])

    def backward(self, batch: int, length: int, dropout: bool = False) -> int:
        """Working set of a layer in a backward pass."""
        plain = dataclasses.replace(self.local, remat=False)
        adapters, rows = (self.rank, self.targets), self.rows(batch)
        own = _kept(plain, adapters, rows, length, dropout) // plain.layers
        if not self.cfg.is_rematerialised:
            return own
        if self.cfg.remat not in (True, "full"):
            own -= _kept(self.local, adapters, rows, length, dropout) // plain.layers
        one = self.streams(batch, length)
        moving = 2 * (one["stream"] + max(one["scores"], one["ffn"])) + one["adapted"]
        return own + moving

    def train(
        self,
        batch: int,
        prompt: int,
        response: int,
        copies: int,
        trunks: int = 1,
        at_once: int | None = None,
    ) -> Footprint:
        """A gradient step on a batch, results aside.

        Args:
          batch: B; prompt: P; response: T.
          copies: how many arrays like the logits exist at once, of `IN_PARTS` at most
            where they are made a part at a time; trunks: of how many decoders.
          at_once: rows read at a time, whose gradients are summed; None: all.
        """
        is_summed = at_once not in (None, batch)
        batch, length = at_once or batch, prompt + response
        dropout = self.cfg.lora_dropout > 0 or self.cfg.dropout > 0
        layer, table = self.gathered()
        if positions_at_once(batch, self.cfg.vocab * trunks) < response:
            copies = min(copies, IN_PARTS)
        return Footprint(
            gradients=self.trainable + is_summed * self.sums,
            kept=self.kept(batch, length, dropout),
            layer=self.backward(batch, length, dropout) + layer,
            logits=copies * self.logits(batch, response, trunks) + table,
            gathered=is_summed * table,  # once, for all parts
        )

    def losses(
        self,
        batch: int,
        prompt: int,
        response: int,
        batches: int = 2,
        at_once: int | None = None,
        in_turn: bool = True,
    ) -> Footprint:
        """A gradient step on losses of several batches, in turn or side by side."""
        one = self.train(batch, prompt, response, copies=3, at_once=at_once)
        gradients = min(batches, 2) * one.gradients
        if in_turn:
            return dataclasses.replace(one, gradients=gradients)
        return dataclasses.replace(
            one,
            gradients=gradients,
            kept=batches * one.kept,
            gathered=2 * self.gathered()[1],
        )

    def rollout(self, batch: int, prompt: int, response: int) -> Footprint:
        """Sampling a response: the cache, and one layer's beside."""
        cfg, slots, (one, table) = self.local, prompt + response, self.gathered()
        size = jnp.dtype(cfg.compute_dtype).itemsize
        heads = cfg.kv_heads * cfg.head_dim
        layer = 2 * self.rows(batch) * slots * heads * size
        return Footprint(
            cache=(cfg.layers + 1) * layer,
            layer=self.forward(batch, prompt),
            logits=4 * self.logits(batch, 1),
            gathered=one + 2 * table,
        )

    def judge(
        self,
        batch: int,
        prompt: int,
        response: int,
        others: int,
        reads_logits: bool = True,
    ) -> Footprint:
        """Hidden states, log-probs and KL of answers under the policy and ``others``.

        ``reads_logits``: whether any log-prob is read, and not hidden states alone.
        """
        size, (one, table) = jnp.dtype(self.cfg.compute_dtype).itemsize, self.gathered()
        scored = 1 + others if reads_logits else 0
        return Footprint(
            results=self.rows(batch) * response * self.cfg.embed * size,
            layer=self.forward(batch, prompt + response),
            logits=scored * self.logits(batch, response, trunks=2),
            gathered=one + scored * table,
        )


@functools.cache
def _params(cfg: DecoderConfig, rank: int | None, targets: tuple[str, ...]) -> Any:
    """Shapes of a decoder's parameters, with adapters where there is a rank."""
    params = abstract_params(cfg)
    if rank is None:
        return params
    make = functools.partial(init_adapters, params, rank, targets)
    return join(params, jax.eval_shape(lambda k: make(key=k), jax.random.key(0)))


@functools.cache
def _kept(
    cfg: DecoderConfig,
    adapters: tuple[int | None, tuple[str, ...]],
    rows: int,
    length: int,
    dropout: bool,
) -> int:
    """Bytes that the scan over layers hands from its forward to its backward pass."""
    if cfg.remat in (True, "full"):  # the stream before every layer, and the last
        stream = rows * length * cfg.embed * jnp.dtype(cfg.compute_dtype).itemsize
        return (cfg.layers + 1) * stream
    model = Decoder(cfg)
    trainable, frozen = split(_params(cfg, *adapters))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((rows, length), bool)

    def backward(trainable, frozen, tokens, mask, key):
        given = key if dropout else None

        def total(trainable):
            params = join(frozen, trainable)
            hidden = hidden_states(model, params, tokens, mask, key=given)
            return jnp.sum(hidden.astype(jnp.float32))

        return jax.vjp(total, trainable)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    program = jax.make_jaxpr(backward)(trainable, frozen, tokens, mask, key).jaxpr
    at = next(i for i, e in enumerate(program.eqns) if e.primitive.name == "scan")
    read = [v for e in program.eqns[at + 1 :] for v in e.invars]
    used = {id(v) for v in [*read, *program.outvars]}
    outputs = [v.aval for v in program.eqns[at].outvars if id(v) in used]
    return sum(x.size * x.dtype.itemsize for x in outputs)
