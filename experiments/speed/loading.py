"""Memory and time of loading a 1 GB sharded Hugging Face checkpoint on 8 devices.

python experiments/speed/loading.py
Makes the checkpoint in a temporary folder; prints one JSON object.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SHARD = 200 * 2**20


def make(folder):
    import ml_dtypes

    from dareu_jax.models.hf.families import read_config
    from dareu_jax.models.hf.folder import write_tensors
    from dareu_jax.models.hf.weights import hf_tensors

    shapes = dict(hf_tensors(read_config(CONFIG, "config.json")))
    sizes = {name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}
    ones = ((n, np.ones(s, ml_dtypes.bfloat16)) for n, s in shapes.items())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tensors(folder, sizes, ones, SHARD)
    return sum(sizes.values()), max(sizes.values())


def resident(field):
    """MiB of this process now (VmRSS) or at its highest (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


def load(folder):
    import dataclasses

    import jax

    from dareu_jax.models.hf.families import read_config
    from dareu_jax.models.hf.folder import HfFolder
    from dareu_jax.models.hf.weights import load_params
    from dareu_jax.parallel import make_mesh

    source = HfFolder(folder)
    cfg = read_config(source.config, "config.json")
    cfg = dataclasses.replace(cfg, param_dtype="bfloat16")
    mesh = make_mesh(1, 8, 1)
    jax.block_until_ready(jax.device_put(np.ones(8)))
    before = resident("VmRSS")
    begun = time.perf_counter()
    params = jax.block_until_ready(load_params(source, cfg, mesh))
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "MiB_before": round(before),
        "MiB_peak": round(resident("VmHWM")),
        "MiB_parameters": round(sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20),
    }


def main():
    if len(sys.argv) > 1:
        print(json.dumps(load(Path(sys.argv[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        total, largest = make(Path(folder))
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, folder]
        said = subprocess.check_output(command, env=env, text=True)
    report = json.loads(said.splitlines()[-1])
    sizes = {"MiB_checkpoint": total >> 20, "MiB_largest_tensor": largest >> 20}
    print(json.dumps({**sizes, **report}, indent=1))


if __name__ == "__main__":
    main()
