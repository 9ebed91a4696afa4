"""Speed and memory of a model of 1 B random parameters on one accelerator, in bfloat16.

    python experiments/accelerator_speed/benchmark.py --out results.json

Fine-tuning, rollout, scoring, one DareU iteration and a gradient kernel; with
``--python``, an interpreter that has torch and transformers, the same there on the same
device. Every part has a process of its own, so that its peak of memory is its own.
``--shape tiny`` is for a CPU.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp

from dareu_jax.attribution import OwnerBatch, Setup
from dareu_jax.config import build_config
from dareu_jax.data import TokenBatch
from dareu_jax.models import (
    Decoder,
    decoder_config,
    generate,
    init_decoder,
    response_logps,
)
from dareu_jax.parallel import key_of
from dareu_jax.registry import KERNELS, METHODS, MODELS
from dareu_jax.training.finetune import finetune_step, init_training
from dareu_jax.training.loop import speeds
from dareu_jax.training.optimiser import optimiser_of
from dareu_jax.training.throughput import Stopwatch, Work
from dareu_jax.training.work import learn, read, texts_of, training_work
from dareu_jax.unlearning import MethodInputs, Prior, RewardIndex, needs_of

GIB = 2**30
THEIRS = Path(__file__).with_name("in_torch.py")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder of `dareu list models`, and how much it is given at a time.

    Attributes:
      rows: of a batch; prompt, response: tokens of each row, all of which count.
      new_tokens: of an answer in a rollout; updates: S of a DareU iteration.
      owners: of the kernel's index; calls: after the first, of which the median counts.
    """

    preset: str
    vocab: int
    rows: int
    prompt: int
    response: int
    new_tokens: int
    updates: int
    owners: int
    calls: int


SHAPES = {
    "llama32-1b": Shape("llama32-1b", 128_256, 16, 64, 192, 128, 4, 20, 5),
    "tiny": Shape("decoder-40k", 512, 4, 8, 8, 8, 1, 3, 2),
}


class Bench:
    """What all parts have in common: the model's shape, its batches, a stopwatch."""

    def __init__(self, shape: Shape):
        self.shape, self.watch, self.key = shape, Stopwatch(), jax.random.key(0)
        small = {"batch_size": shape.rows, "retain_batch_size": shape.rows}
        dareu = {"updates_per_batch": shape.updates, "max_new_tokens": shape.new_tokens}
        tree = {"model": {"preset": shape.preset}, "dareu": small | dareu}
        self.cfg = build_config(tree, "accelerator_speed")
        self.model = self.decoder(self.cfg.model)

    def decoder(self, section) -> Decoder:
        return Decoder(decoder_config(section, self.shape.vocab))

    def params(self, model: Decoder):
        return jax.jit(lambda key: init_decoder(model, key=key))(self.key)

    def batch(self, response: int | None = None) -> TokenBatch:
        """Random tokens, none of which is padding."""
        rows, prompt = self.shape.rows, self.shape.prompt
        sizes = (rows, prompt), (rows, response or self.shape.response)
        asked, said = (
            jax.random.randint(key_of(self.key, n), size, 3, self.shape.vocab)
            for n, size in enumerate(sizes)
        )
        index = jnp.arange(rows, dtype=jnp.int32)
        return TokenBatch(asked, asked > 0, said, said > 0, index)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.shape.vocab - 1,)


def finetune(on: Bench):
    """One AdamW step on all parameters."""
    model, batch, optimiser = on.model, on.batch(), optimiser_of(on.cfg.finetune, 100)

    def work(_, model, optimiser, state, frozen, batch, **how):
        return training_work(model.cfg, [batch], frozen)

    step = on.watch.timed("finetune", finetune_step, work)
    begin = jax.jit(lambda key: init_training(model, optimiser, key=key))
    return begin(on.key), lambda state: step(
        model, optimiser, state, {}, batch, key=on.key
    )[0]


def rollout(on: Bench):
    """Sampled answers at temperature 1."""
    model, batch = on.model, on.batch()

    def sample(params):
        return generate(
            model,
            params,
            batch.prompt,
            batch.prompt_mask,
            max_new_tokens=on.shape.new_tokens,
            temperature=1.0,
            stop_ids=on.stop_ids,
            key=on.key,
        )

    def work(said, params):
        text = texts_of(batch._replace(response=said.tokens, response_mask=said.mask))
        return Work(text.response, read(model.cfg, text))

    return same(on.params(model), on.watch.timed("rollout", sample, work))


def scoring(on: Bench):
    """Log-probabilities of given answers."""
    model, batch = on.model, on.batch()
    score = jax.jit(lambda params: response_logps(model, params, batch))

    def work(_, params):
        text = texts_of(batch)
        return Work(text.tokens, read(model.cfg, text))

    return same(on.params(model), on.watch.timed("scoring", score, work))


def dareu(on: Bench):
    """One iteration: rollout, attribution, judge, S times update and distil."""
    cfg, shape, model = on.cfg, on.shape, on.model
    params, prior = on.params(model), on.decoder(cfg.prior.model)
    kernel = kernel_of(on, "classifier")
    index = kernel.init(None, key=on.key).params
    inputs = MethodInputs(
        model=model,
        reference=params,
        forget_columns=(0,),
        forget_owner=jnp.zeros(shape.rows, jnp.int32),
        response_tokens=shape.new_tokens,
        stop_ids=on.stop_ids,
        gold_length=float(shape.new_tokens),
        stages={
            "reward": RewardIndex(kernel, index, rebuild=lambda params: index),
            "prior": Prior(prior, on.params(prior)),
        },
        watch=on.watch,
    )
    method = METHODS.get("dareu").make(cfg, inputs)
    needs, batch = needs_of("dareu", cfg), on.batch(shape.new_tokens)
    batches = {split: [batch] * need.batches for split, need in needs.items()}
    state = jax.jit(lambda start: method.init(start, key=on.key))(params)
    return state, lambda state: method.step(state, batches, 0, key=on.key)[0]


def kernel(on: Bench):
    """Gradients of a batch into an index of `projected`, and against it."""
    made, params, batch = kernel_of(on, "projected"), on.params(on.model), on.batch()
    owned = OwnerBatch(batch, batch.index % on.shape.owners)

    def work(*_):
        text = texts_of(batch)
        return Work(text.tokens, learn(on.model.cfg, text, False))

    index = on.watch.timed("index", jax.jit(made.update), work)
    score = on.watch.timed("score", jax.jit(made.score), work)

    def step(acc):
        acc, _ = index(params, owned, acc)
        jax.block_until_ready(score(params, made.finalize(params, acc), batch))
        return acc

    return jax.jit(lambda key: made.init(params, key=key))(on.key), step


def kernel_of(on: Bench, name: str):
    setup = Setup(
        model=on.model,
        owners=on.shape.owners,
        cfg=on.cfg.attribution,
        classifier=on.cfg.classifier,
        steps=1,
        backbone=on.decoder(on.cfg.classifier.model),
    )
    return KERNELS.get(name)(setup)


def same(params, run):
    """A part whose state stays as it is."""

    def step(params):
        jax.block_until_ready(run(params))
        return params

    return params, step


PARTS = {x.__name__: x for x in (finetune, rollout, scoring, dareu, kernel)}


def measured(part: str, shape: Shape) -> dict:
    """Median seconds of a call and of its phases, and the peak of memory.

    Phases are timed in calls of their own: each is waited for. ``compile_s`` is what
    the first call takes more than the others.
    """
    on = Bench(shape)
    state, step = PARTS[part](on)
    times, rounds = [], []
    for n in range(1 + 2 * shape.calls):
        begun = time.perf_counter()
        with on.watch.timing(n > shape.calls) as laps:
            state = jax.block_until_ready(step(state))
        times.append(time.perf_counter() - begun)
        rounds += [speeds(laps)] if laps else []
    whole = statistics.median(times[1 : 1 + shape.calls])
    return {
        "seconds": whole,
        "compile_s": max(0.0, times[0] - whole),
        "peak_memory_gib": peak_memory() / GIB,
        "phases": {name: median_of([x[name] for x in rounds]) for name in rounds[0]},
    }


def median_of(rows: list[dict]) -> dict:
    """Field by field; None where the device's peak or a phase's work is not known."""
    known = {name for name, value in rows[0].items() if value is not None}
    return {
        name: statistics.median(x[name] for x in rows) if name in known else None
        for name in rows[0]
    }


def peak_memory() -> int:
    """Bytes of the device at their highest; of the process where it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stats.get("peak_bytes_in_use", resident)


def apart(command: list) -> dict:
    """What another process writes into its last argument, or why it failed."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.json"
        ended = subprocess.run(
            [str(word) for word in (*command, out)], stderr=subprocess.PIPE, text=True
        )
        if ended.returncode == 0:
            return json.loads(out.read_text())
    lines = ended.stderr.strip().splitlines() or [f"status {ended.returncode}"]
    return {"failed": lines[-1][:300]}


def compared(name: str, parts: list[str], python: str | None) -> dict:
    """Every part here and, where there is an interpreter with torch, there."""
    shape = dataclasses.asdict(SHAPES[name])
    theirs = json.dumps(shape | {"model": MODELS.get(shape["preset"])})
    found: dict = {"shape": shape, "parts": {}}
    for part in parts:
        row = {"dareu_jax": apart([sys.executable, __file__, "--part", name, part])}
        if python is not None:
            row["torch"] = apart([python, THEIRS, theirs, part])
        found["parts"][part] = row
        print(part, json.dumps(row), flush=True)
    return found


def about() -> dict:
    """The device and versions."""
    packages = {name: version(name) for name in ("jax", "jaxlib")}
    return {"device": jax.devices()[0].device_kind, **packages}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama32-1b")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--python", help="an interpreter with torch and transformers")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.part:
        name, part, out = given.part
        found = about() | measured(part, SHAPES[name])
    else:
        found, out = compared(given.shape, given.parts, given.python), given.out
    if out:
        Path(out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
