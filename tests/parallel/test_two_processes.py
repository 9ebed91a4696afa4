"""Two processes with two devices each: batches, checkpoints, metrics."""

import shutil
from pathlib import Path

import make_golden as hf
import numpy as np
import pytest

from dareu_jax.data import load_tokenizer
from dareu_jax.models.hf.folder import HfFolder

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]

WORKER = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np

rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)

from jax.experimental import multihost_utils
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.errors import UserError
from dareu_jax.storage.fingerprint import fingerprint
from dareu_jax.parallel import (
    agreed,
    first_then_others,
    init_sharded,
    make_mesh,
    on_host,
    put_batch,
    shardings_for,
    shared_out,
)
from dareu_jax.parallel.processes import gathered
from dareu_jax.training.tracking import Tracker

def init(key):
    return {"embed": {"embedding": jax.random.normal(key, (8, 4))}, "key": key}

mesh = make_mesh(data=1, fsdp=2, tensor=2)
tree = init_sharded(init, mesh, jax.random.key(0))
rows = put_batch(np.arange(24).reshape(8, 3), make_mesh())
assert rows.shape == (8, 3) and int(rows.sum()) == 276

assert gathered({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
assert agreed(rank) == 0
sums = shared_out(lambda a, b: [x + y for x, y in zip(a, b)], [1, 2, 3], [9, 8, 7])
assert sums == [10, 10, 10], sums
np.testing.assert_array_equal(on_host(rows), np.arange(24).reshape(8, 3))

def fails():
    raise UserError("no such file")

try:
    first_then_others(fails)
except UserError as error:
    assert str(error).startswith(["no such file", "process 0 stopped"][rank])
else:
    raise AssertionError

said = []
with Checkpoints(folder / "stage", keep=1, warn=said.append) as stage:
    for step in (1, 2):
        stage.save(step, tree, {"step": step})
    stage.settle()
    assert stage.steps() == [2], stage.steps()
    stage.save(3, tree, {"step": 3})
other = shardings_for(tree, make_mesh(data=2, fsdp=2))
target = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, other
)
with Checkpoints(folder / "stage", keep=2, warn=said.append) as stage:
    stage.save(4, tree, {"step": 4})
    stage.settle()
    multihost_utils.sync_global_devices("before damage")
    if rank == 0:
        next((folder / "stage" / "4").rglob("d/*")).write_bytes(b"")
    multihost_utils.sync_global_devices("after damage")
    step, back, meta = stage.latest(target)
assert step == meta["step"] == 3 and len(said) == 1, (step, said)
with Tracker(folder) as tracker:
    tracker.log("dareu", rank, {"loss": 1.0}, seed=0)

from dareu_jax.models.hf.imported import import_folder
from dareu_jax.models.hf.folder import HfFolder, write_tensors
from dareu_jax.models.hf.weights import hf_arrays, tensor_sizes

imported = import_folder(folder / "hf", folder / "imported")
params = imported.load(make_mesh(data=1, fsdp=2, tensor=2))
kernel = params["layers"]["mlp"]["up"]["kernel"]
assert not kernel.is_fully_addressable
sizes = tensor_sizes(imported.cfg)
write_tensors(folder / "exported", sizes, hf_arrays(imported.cfg, params), 20_000)
print("fingerprint", fingerprint(tree), fingerprint(back))
jax.distributed.shutdown()
"""


def tiny_hf_folder(folder):
    """A Hugging Face folder with a tokenizer."""
    load_tokenizer(None, ["any text"], 300, folder)
    hf.make_folder(folder, {**hf.config_of("qwen3"), "vocab_size": 300}, shards=2)


def test_two_processes(tmp_path, two_processes):
    tiny_hf_folder(tmp_path / "hf")
    (tmp_path / "exported").mkdir()
    said = two_processes(WORKER, tmp_path, limit_s=120)
    prints = {x for out in said for x in out.splitlines() if "fingerprint" in x}
    (line,) = prints
    assert line.split()[1] == line.split()[2]
    metrics = (tmp_path / "metrics.jsonl").read_text().splitlines()
    shutil.copyfile(tmp_path / "hf/config.json", tmp_path / "exported/config.json")
    exported = HfFolder(tmp_path / "exported")
    for name, shape in exported.shapes.items():
        np.testing.assert_array_equal(exported.read(name), hf.tensor(name, shape))
    assert len(exported.shapes) == len(HfFolder(tmp_path / "hf").shapes)
    assert len(metrics) == 1 and '"step": 0' in metrics[0]
