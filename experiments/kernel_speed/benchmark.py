"""Cost of attribution: CPU time on one thread, XLA's temporary memory, exactness.

    taskset -c 0 python experiments/kernel_speed/benchmark.py --out results.json

32 queries against 20 owners, T = 64, ragged masks; a decoder of 4 layers, d 128, ffn
512, 4 heads, vocabulary 1000, float32; attributed are the matrices of its blocks.
"""

import argparse
import functools
import json
import os
import time

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.attribution.gradients.bilinear import (
    GradientIndex,
    How,
    dotted,
    exact,
    folded_scores,
    owner_scores,
    projected,
)
from dareu_jax.attribution.gradients.measures import log_likelihood, token_weight
from dareu_jax.attribution.gradients.probe import attributed, gradients
from dareu_jax.data import TokenBatch
from dareu_jax.models import Decoder, DecoderConfig, abstract_params, init_decoder
from dareu_jax.parallel import named_leaves

B, T, OWNERS, CALLS = 32, 64, 20, 7
SMALL = DecoderConfig(
    vocab=1000, layers=4, embed=128, heads=4, kv_heads=4, head_dim=32, ffn=512
)
LARGE = DecoderConfig(
    **{"vocab": 1000, "layers": 16, "embed": 512, "heads": 8, "kv_heads": 8},
    **{"head_dim": 64, "ffn": 2048, "remat": True},
)


def queries(rows: int, length: int) -> TokenBatch:
    """Ragged responses to a prompt of one token."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(length // 2, length + 1, rows)
    return TokenBatch(
        jnp.full((rows, 1), 1, jnp.int32),
        jnp.ones((rows, 1), bool),
        jnp.asarray(rng.integers(3, 1000, (rows, length)), jnp.int32),
        jnp.asarray(np.arange(length)[None] < lengths[:, None]),
        jnp.arange(rows, dtype=jnp.int32),
    )


def index_of(params, features, owners: int, key) -> GradientIndex:
    """An index of normal numbers."""
    sums = {
        dotted(path): jax.random.normal(
            key, (len(leaf), owners, *features.shape(*leaf.shape[1:]))
        )
        for path, leaf in named_leaves(attributed(params))
    }
    return GradientIndex(sums, jnp.ones(owners), jnp.uint32(0))


def programs(model: Decoder) -> dict:
    """Every way to score, ``(params, index, queries) -> array``, jitted."""

    def summed(params, index, batch):
        weight = token_weight(batch, "mean")
        return jax.grad(lambda p: log_likelihood(model, p, batch, weight))(params)

    def forward(params, index, batch):
        return log_likelihood(model, params, batch, token_weight(batch, "mean"))

    def materialised(params, index, batch):
        grads = gradients(model, params, batch, token_weight(batch, "mean"))
        return sum(
            jnp.einsum("bldf,lodf->bo", grad, index.owner_sums[dotted(path)])
            for path, grad in named_leaves(grads)
        )

    def probed(features, params, index, batch):
        return owner_scores(How(model, features, "mean"), params, index, batch)

    def folded(params, index, batch):
        weights = jnp.linspace(-1.0, 1.0, len(index.counts), dtype=jnp.float32)
        how = How(model, exact(), "mean")
        return folded_scores(how, params, index, weights, batch)

    return {
        "forward": jax.jit(forward),
        "summed gradient": jax.jit(summed),
        "vmap(grad)": jax.jit(materialised),
        "probe": jax.jit(functools.partial(probed, exact())),
        "folded jvp": jax.jit(folded),
        "projected k=16": jax.jit(functools.partial(probed, projected(16))),
        "projected k=64": jax.jit(functools.partial(probed, projected(64))),
    }


def index_for(name: str, params, owners: int, key):
    """The index that a program reads."""
    features = projected(int(name.split("=")[1])) if "=" in name else exact()
    return index_of(params, features, owners, key)


def cpu_seconds(program, *args) -> float:
    """Least process time of a call, compiled before."""
    jax.block_until_ready(program(*args))
    best = float("inf")
    for _ in range(CALLS):
        begun = time.process_time()
        jax.block_until_ready(program(*args))
        best = min(best, time.process_time() - begun)
    return best


def measure() -> dict:
    """Times, memory and errors of the small decoder."""
    model, key = Decoder(SMALL), jax.random.key(0)
    params, batch = init_decoder(model, key=key), queries(B, T)
    out = {}
    for name, program in programs(model).items():
        index = index_for(name, params, OWNERS, key)
        compiled = program.lower(params, index, batch).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        seconds = cpu_seconds(program, params, index, batch)
        out[name] = {"cpu_ms": 1000 * seconds, "temp_mib": memory / 2**20}
        print(name, out[name], flush=True)
    index = index_for("probe", params, OWNERS, key)
    runs = programs(model)
    wanted = np.asarray(runs["vmap(grad)"](params, index, batch))
    found = np.asarray(runs["probe"](params, index, batch))
    out["probe"]["max_rel_error"] = float(
        np.abs(found - wanted).max() / np.abs(wanted).max()
    )
    return out


def memory_at_scale() -> dict:
    """Temporary MiB of the large decoder's programs: compiled, never run."""
    model = Decoder(LARGE)
    params = abstract_params(LARGE)
    batch = jax.eval_shape(lambda: queries(8, 256))
    out = {}
    for name, program in programs(model).items():
        make = functools.partial(index_for, name, owners=OWNERS, key=jax.random.key(0))
        index = jax.eval_shape(make, params)
        stats = program.lower(params, index, batch).compile().memory_analysis()
        out[name] = stats.temp_size_in_bytes / 2**20
        print(name, round(out[name]), "MiB", flush=True)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    given = parser.parse_args()
    results = {"small": measure(), "scale_mib": memory_at_scale()}
    base = results["small"]["summed gradient"]["cpu_ms"]
    for row in results["small"].values():
        row["of_summed_gradient"] = row["cpu_ms"] / base
    print(json.dumps(results, indent=1))
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
