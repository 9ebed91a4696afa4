"""The steps of a run, compiled on shapes alone: nothing is allocated, nothing runs."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.attribution import Kernel
from dareu_jax.config import build_config
from dareu_jax.data import TokenBatch
from dareu_jax.models import (
    Decoder,
    abstract_params,
    generate,
    init_adapters,
    init_head,
    join,
)
from dareu_jax.parallel import batch_sharding, make_mesh, shardings_for
from dareu_jax.training.finetune import TrainState, finetune_step
from dareu_jax.training.optimiser import make_optimiser
from dareu_jax.unlearning import MethodInputs
from dareu_jax.unlearning.phase_table import phases_of
from dareu_jax.unlearning.setting import Experience, Setting

COLLECTIVE = re.compile(
    r" = (?P<result>.*) (?P<name>all-gather|all-reduce|reduce-scatter|all-to-all"
    r"|collective-permute)(-start)?\("
)


def bytes_of(program):
    """Arguments, and all else, that XLA allocates on one device."""
    stats = program.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes, stats.temp_size_in_bytes + results


def collectives(program):
    """``(operation, numbers in its result)`` of every collective of a program."""
    found = []
    for line in program.as_text().splitlines():
        if match := COLLECTIVE.search(line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match["result"])
            sizes = [math.prod(map(int, filter(None, x.split(",")))) for x in shapes]
            found += [(match["name"], size) for size in sizes]
    return found


def unread(*given):
    """Raise: no phase here asks a kernel."""
    raise AssertionError("a phase asked the attribution kernel")


class Compiled:
    """The steps of a run on shapes alone, and what XLA says of them."""

    def __init__(self, cfg, rank, sizes, batch=16, prompt=32, response=96):
        devices = jax.devices()[: int(np.prod(sizes))]
        self.mesh = make_mesh(*sizes, devices=devices)
        alpha = 16.0 if rank else 0.0
        self.model = Decoder(dataclasses.replace(cfg, lora_alpha=alpha))
        base = abstract_params(cfg)
        self.trainable, self.frozen = self.put(base), {}
        if rank:
            make = functools.partial(init_adapters, base, rank)
            adapters = jax.eval_shape(lambda k: make(key=k), jax.random.key(0))
            self.trainable, self.frozen = self.put(adapters), self.put(base)
        self.start = join(self.frozen, self.trainable)
        self.key = jax.eval_shape(lambda: jax.random.key(0))
        ints, bools = (
            [self.rows((batch, n), dtype) for n in (prompt, response)]
            for dtype in (jnp.int32, bool)
        )
        index = self.rows((batch,), jnp.int32)
        self.shape = batch, response
        self.batch = TokenBatch(ints[0], bools[0], ints[1], bools[1], index)

    def put(self, tree):
        return jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
            tree,
            shardings_for(tree, self.mesh),
        )

    def rows(self, shape, dtype):
        to = batch_sharding(self.mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=to)

    def compiled(self, step, *args, **kwargs):
        """The program of a jitted step."""
        with jax.set_mesh(self.mesh):
            return step.lower(*args, **kwargs).compile()

    def of_row(self, phase, **named):
        """The program of a phase as one row runs it."""
        return self.compiled(phase.func, **phase.keywords, **named)

    def bytes_of(self, step, *args, **kwargs):
        """Arguments, and all else, that XLA allocates on one device."""
        return bytes_of(self.compiled(step, *args, **kwargs))

    def finetune(self, **how):
        optimiser = make_optimiser(1e-3, 10)
        moments = self.put(jax.eval_shape(optimiser.init, self.trainable))
        step = self.put(jax.ShapeDtypeStruct((), jnp.int32))
        state = TrainState(self.trainable, moments, step)
        given = (self.model, optimiser, state, self.frozen, self.batch)
        return self.bytes_of(finetune_step, *given, key=self.key, **how)

    def sampling(self, mesh):
        """The program that samples, on a mesh of the same devices."""
        to, rows = shardings_for(self.start, mesh), batch_sharding(mesh)
        start = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            self.start,
            to,
        )
        prompt, mask = (
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
            for x in (self.batch.prompt, self.batch.prompt_mask)
        )
        how = {"max_new_tokens": self.shape[1], "temperature": 1.0, "stop_ids": (2,)}
        with jax.set_mesh(mesh):
            step = generate.lower(self.model, start, prompt, mask, **how, key=self.key)
            return step.compile()

    def rollout(self):
        """Bytes of a rollout without a layout of its own."""
        return bytes_of(self.sampling(self.mesh))

    def phases(self, only=None):
        """Judging, a PPO step and a distillation step, the reference as anchor."""
        world = MethodInputs(
            model=self.model,
            reference=self.start,
            forget_columns=(0,),
            forget_owner=jnp.zeros(self.shape[0], jnp.int32),
            response_tokens=self.shape[1],
            stop_ids=(2,),
            gold_length=1.0,
            frozen=self.frozen,
        )
        cfg = build_config({"dareu": {"kl_anchor": "reference"}})
        on = Setting(
            inputs=world,
            hp=cfg.dareu,
            reward=cfg.reward,
            kernel=Kernel("unread", 1, unread, unread, unread),
            prior=None,
            optimiser=make_optimiser(1e-3, 10),
        )
        phase = phases_of(on)
        head = jax.eval_shape(
            lambda k: init_head(1, self.model.cfg.embed, key=k), self.key
        )
        own = self.put({"decoder": self.trainable, "value_head": head})
        state = self.put(jax.eval_shape(on.optimiser.init, own))
        row = self.rows(self.shape, jnp.float32)
        hidden = self.rows((*self.shape, self.model.cfg.embed), jnp.float32)
        experience = Experience(self.batch, row, row, row, row, (hidden,))
        both = {"frozen": self.frozen, "trainable": own}
        judging = {"behaviour": self.trainable, "answers": self.batch}
        judging |= {"prior": None, "base": None}
        learning = {"opt_state": state, "anchor": (self.start,)}
        learning |= {"experience": experience}
        keeping = {"opt_state": state, "reference": self.start, "retain": self.batch}
        given = {
            "judge": (phase.judge, {"reference": self.start, **judging}),
            "update": (phase.update, learning),
            "distil": (phase.distil, keeping),
        }
        return {
            name: self.of_row(step.__wrapped__, **both, **named)
            for name, (step, named) in given.items()
            if not only or name == only
        }
