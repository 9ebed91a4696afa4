"""The quickstart's stages on 1, 2, 4 and 8 virtual devices: the same losses, seconds.

    python experiments/scaling/meshes.py --out meshes.json

One process per mesh takes the first 20 steps of every stage, of full and of adapted
unlearning, and is compared with the process that has one device.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

MESHES = [
    *[(n, 1, 1) for n in (1, 2, 4, 8)],
    *[(1, n, 1) for n in (2, 4, 8)],
    *[(1, 1, 8), (2, 2, 2)],
]
CONFIG = Path(__file__).parents[1] / "quickstart" / "config.yaml"
CHANGES = ["dareu.batch_size=16"]  # the quickstart's 20 do not divide by 8


def work(sizes, out):
    """Takes the steps on one mesh, in this process."""
    from dareu_jax.cli.startup import prepare_jax

    prepare_jax()
    from on_mesh import OnMesh

    from dareu_jax.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        seen = OnMesh(load_config(CONFIG, CHANGES), Path(folder), sizes, rank=8)
    losses = {f"{label}/{step}": value for (label, step), value in seen.losses.items()}
    found = {"losses": losses, "tokens": seen.tokens.tolist(), "seconds": seen.seconds}
    out.write_text(json.dumps(found))


def on(sizes):
    """What a process with that many devices finds."""
    count = int(np.prod(sizes))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--mesh", *map(str, sizes), "--out", out]
        env = os.environ | {"JAX_NUM_CPU_DEVICES": str(count)}
        subprocess.run(command, check=True, env=env)
        return json.loads(out.read_text())


def compared(sizes, found, wanted):
    """One mesh against one device, stage by stage."""
    from on_mesh import far_apart

    gaps = far_apart(found["losses"], wanted["losses"])
    stages = {}
    for key, gap in gaps.items():
        stage = key.split("/")[0].split(" ")[0]
        stages[stage] = max(gap, stages.get(stage, 0.0))
    return {
        "mesh": list(sizes),
        "largest_relative_gap": stages,
        "first_answers_equal": found["tokens"] == wanted["tokens"],
        "median_s_per_step": found["seconds"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mesh", type=int, nargs=3)
    args = parser.parse_args()
    if args.mesh:
        work(tuple(args.mesh), args.out)
    else:
        rows, wanted = [], None
        for sizes in MESHES:
            found = on(sizes)
            wanted = wanted or found
            rows.append(compared(sizes, found, wanted))
            print(rows[-1], flush=True)
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
