"""What an update and a rollout need on each device, and what devices tell each other.

    python experiments/scaling/measure.py --out results.json

A decoder of 8 layers, d 512 (31 M parameters), trained whole; a batch of 16 answers of
96 tokens to prompts of 32. Compiled for virtual CPU devices, never run.
"""

import argparse
import collections
import json
from pathlib import Path

import jax
from compiled_steps import Compiled, bytes_of, collectives

from dareu_jax.models import DecoderConfig
from dareu_jax.parallel import rollout_mesh
from dareu_jax.training.optimiser import make_optimiser

DECODER = DecoderConfig(
    **{"vocab": 8192, "layers": 8, "embed": 512, "heads": 8, "kv_heads": 8},
    **{"head_dim": 64, "ffn": 1536, "remat": True},
)
MESHES = [(1, 1, 1), (1, 2, 1), (1, 4, 1), (1, 8, 1), (8, 1, 1), (1, 1, 8), (2, 2, 2)]
MIB = 2**20


def counted(program) -> dict:
    """Bytes and collectives of one program."""
    arguments, beside = bytes_of(program)
    found = collectives(program)
    most = max((size for name, size in found if name == "all-gather"), default=0)
    return {
        "arguments_mib": arguments / MIB,
        "beside_mib": beside / MIB,
        "collectives": dict(collections.Counter(name for name, _ in found)),
        "numbers": sum(size for _, size in found),
        "largest_all_gather": most,
    }


def row(sizes: tuple[int, int, int]) -> dict:
    """An update on one mesh, and a rollout in both layouts of it."""
    at = Compiled(DECODER, None, sizes)
    there = rollout_mesh(at.mesh, DECODER.kv_heads)
    moments = jax.eval_shape(make_optimiser(1e-3, 10).init, at.trainable)
    held = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves((at.trainable, moments))
    )
    return {
        "mesh": list(sizes),
        "parameters_and_optimiser_mib": held / MIB,
        "update": counted(at.phases(only="update")["update"]),
        "rollout_mesh": list(there.shape.values()),
        "rollout": counted(at.sampling(there)),
        "rollout_in_the_layout_of_an_update": counted(at.sampling(at.mesh)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    jax.config.update("jax_num_cpu_devices", 8)
    rows = []
    for sizes in MESHES:
        rows.append(row(sizes))
        print(rows[-1], flush=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
