"""`dareu evaluate` in two processes with two devices each: as in one with four."""

import io
import json

import jax
import make_golden as hf
import pytest
from rich.console import Console

from dareu_jax.data import Wording, load_tokenizer
from dareu_jax.evaluation.suites.judge import Judge
from dareu_jax.evaluation.suites.kept import Kept
from dareu_jax.evaluation.suites.measure import Reading
from dareu_jax.evaluation.suites.muse import muse_log, read_muse
from dareu_jax.models.hf.imported import import_folder
from dareu_jax.models.loaded import load_model
from dareu_jax.parallel import make_mesh
from dareu_jax.training.progress import Progress

pytestmark = pytest.mark.slow

ATTACKS = ("loss", "min_k", "reference")

WORKER = """
import os, sys
from pathlib import Path

rank, port, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
os.environ |= {
    "JAX_NUM_CPU_DEVICES": "2",
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": rank,
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
from dareu_jax.cli.main import main

own = folder / f"process_{rank}"  # no process sees what another one writes
own.mkdir()
os.chdir(own)
model, attacks = folder / "model", "loss,min_k,reference"
options = f"--suite muse --data {folder / 'news'} --out out --attacks {attacks}"
options += f" --reference-model {model} --distributed"
sys.argv = ["dareu", "evaluate", str(model), *options.split()]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code

import jax
from rich.console import Console
from dareu_jax.evaluation.suites import judge, measure
from dareu_jax.runs import benchmark
from dareu_jax.training.progress import Progress

def never(*_):
    raise AssertionError("measured again")

measure.own_answers = judge.memory_scores = judge.mean_losses = never
asked = benchmark.Asked(
    model,
    "muse",
    Path("out"),
    folder / "news",
    attacks=attacks.split(","),
    reference_model=model,
)
benchmark.evaluated(asked, Progress(Console(quiet=True)))
jax.distributed.shutdown()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny imported model and a corpus of MUSE of few rows."""
    folder = tmp_path_factory.mktemp("evaluate")
    load_tokenizer(None, ["any text"], 300, folder / "hf")
    hf.make_folder(folder / "hf", {**hf.config_of("qwen3"), "vocab_size": 300})
    import_folder(folder / "hf", folder / "model")
    pairs = [{"question": f"Who is {x}?", "answer": f"{x} Lind"} for x in ("Ada", "Bo")]
    files = {"verbmem/forget": [{"prompt": "Ada Lind was", "gt": " born there."}]}
    for x in ("forget", "retain"):
        files |= {f"knowmem/{x}_qa": pairs, f"knowmem/{x}_qa_icl": pairs[:1]}
    for x in ("forget", "retain", "holdout"):
        files[f"privleak/{x}"] = [f"Ada Lind wrote {x}.", f"Bo read {x}."]
    for name, rows in files.items():
        path = folder / "news" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return folder


def test_two_processes_log_the_bytes_of_one_and_one_of_them_writes(
    folder, two_processes
):
    said = two_processes(WORKER, folder, limit_s=240)
    assert "log: out/MUSE_EVAL.json" in said[0] and "log" not in said[1]
    assert not list((folder / "process_1").iterdir())
    path = folder / "process_0" / "out" / "MUSE_EVAL.json"
    model = load_model(folder / "model", make_mesh(1, -1, devices=jax.devices()[:4]))
    kept = Kept(folder / "alone", "x")
    judge = Judge(model, Reading(Wording("{prompt} ")), kept, ATTACKS, model)
    quiet = Progress(Console(file=io.StringIO()))
    log = muse_log(judge, read_muse(folder / "news"), quiet)
    assert json.loads(path.read_text()) == log
    assert path.read_text() == json.dumps(log, indent=1) + "\n"
