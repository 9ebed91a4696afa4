"""What one PPO update needs on each device, and what devices tell each other.

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
from dareu_jax.models.optimiser import make_optimiser

DECODER = DecoderConfig(
    **{"vocab": 8192, "layers": 8, "embed": 512, "heads": 8, "kv_heads": 8},
    **{"head_dim": 64, "ffn": 1536, "remat": True},
)
MESHES = [(1, 1, 1), (1, 2, 1), (1, 4, 1), (1, 8, 1), (8, 1, 1), (1, 1, 8), (2, 2, 2)]
MIB = 2**20


def row(sizes: tuple[int, int, int]) -> dict:
    """Bytes and collectives of one mesh."""
    at = Compiled(DECODER, None, sizes)
    program = at.phases(only="update")["update"]
    arguments, beside = bytes_of(program)
    moments = jax.eval_shape(make_optimiser(1e-3, 10).init, at.trainable)
    held = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves((at.trainable, moments))
    )
    found = collectives(program)
    count = collections.Counter(name for name, _ in found)
    most = max((size for name, size in found if name == "all-gather"), default=0)
    return {
        "mesh": list(sizes),
        "parameters_and_optimiser_mib": held / MIB,
        "arguments_mib": arguments / MIB,
        "beside_mib": beside / MIB,
        "collectives": dict(count),
        "largest_all_gather": most,
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
