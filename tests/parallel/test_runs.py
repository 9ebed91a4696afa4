"""Whole runs in two processes: as in one, stopped, killed, continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dareu_jax.training.tracking import read

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
LIMIT_S = 300
CHANGES = ["methods=[dareu]", "dareu.data_epochs=4", "mesh.fsdp=4"]
"""Iterations enough for two stops: the news of a signal may take one more. No process
holds all of any matrix."""

WORKER = """
import os, sys, time

def signalling(function, count):
    calls = 0

    def wrapped(*args, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), int(number))
            time.sleep(3)  # JAX looks for the signal once a second
        return function(*args, **options)

    return wrapped

where, count, number = sys.argv[1].split(":")
sys.argv = ["dareu", *sys.argv[2:]]
if where:
    from dareu_jax.evaluation import run_suite
    from dareu_jax.training import finetune
    from dareu_jax.unlearning import dareu

    made = dareu.phases_of

    def phases_of(setting):
        bound = made(setting)
        if where in ("rollout", "update"):
            setattr(bound, where, signalling(getattr(bound, where), int(count)))
        return bound

    dareu.phases_of = phases_of
    owner = {"finetune_step": finetune, "answer": run_suite}
    if own := owner.get(where):
        setattr(own, where, signalling(getattr(own, where), int(count)))
from dareu_jax.cli.main import main
main()
"""


def started(
    command: list[str], port: int, processes: int, devices: int, signalled: str = "::"
):
    """`dareu` with ``command``; ``signalled``: where:call:number, in the last process.

    Returns exit status, output and complaints of every process.
    """
    env = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, where, *command, "--distributed"],
            cwd=REPO,
            env=env | {"JAX_PROCESS_ID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, where in enumerate(["::"] * (processes - 1) + [signalled])
    ]
    try:
        said = [worker.communicate(timeout=LIMIT_S) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(w.returncode, *text) for w, text in zip(workers, said, strict=True)]


def numbers(folder: Path) -> dict:
    """What was logged, by stage, step and name; what depends on time left out."""
    return {
        (line["stage"], line["step"], name): value
        for line in read(folder)
        for name, value in line.items()
        if isinstance(value, float)
    }


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def silent_but_for_gloo(said: str) -> bool:
    """Whether a process printed nothing of its own."""
    lines = [x for x in said.splitlines() if "[Gloo]" not in x and "peer rank" not in x]
    return not any(map(str.strip, lines))


@pytest.fixture(scope="session")
def run(free_port):
    """`dareu run` of tests/tiny.yaml, `started` at a port that is free."""
    command = ["run", "tests/tiny.yaml", *CHANGES, "--out"]
    return lambda folder, *how: started([*command, str(folder)], free_port(), *how)


@pytest.fixture(scope="session")
def stress(free_port):
    """`dareu stress` of a run's folder by some tests, `started` as a run is."""
    return lambda folder, tests, *how: started(
        ["stress", str(folder), "--tests", tests], free_port(), *how
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory, run):
    """A run of one process with four devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    ((status, _, complaint),) = run(folder, 1, 4)
    assert status == 0, complaint[-3000:]
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, run):
    """A run of two processes, killed once, stopped four times, then finished.

    Returns its folder and what the processes said every time.
    """
    folder = tmp_path_factory.mktemp("stopped") / "run"
    said = {"killed": run(folder, 2, 2, f"finetune_step:6:{signal.SIGKILL:d}")}
    stops = {"finetune_step": 4, "rollout": 1, "update": 1, "answer": 2}
    for where, call in stops.items():
        said[where] = run(folder, 2, 2, f"{where}:{call}:{signal.SIGTERM:d}")
    said["finished"] = run(folder, 2, 2)
    return folder, said


def test_the_loss_of_a_process_is_named_and_ends_the_other(stopped):
    (status, _, complaint), (killed, *_) = stopped[1]["killed"]
    assert killed == -signal.SIGKILL and status != 0
    assert "another has ended" in complaint or "another task died" in complaint


@pytest.mark.parametrize("where", ["finetune_step", "rollout", "update", "answer"])
def test_sigterm_to_one_process_stops_both_at_one_step(stopped, where):
    one, other = stopped[1][where]
    lines = [x for x in one[2].splitlines() if x.startswith("dareu: SIGTERM")]
    assert one[0] == other[0] == 0, one[2][-3000:]
    assert len(lines) == 1 and lines[0] in other[2], (one, other)
    stage = {"finetune_step": "finetune_", "answer": "what was finished"}
    assert stage.get(where, "seed 0 dareu is saved at step") in lines[0]
    assert lines[0].endswith("the same command continues")


def test_what_was_stopped_goes_on_to_the_bits_of_an_unbroken_run(stopped, alone):
    folder, said = stopped
    for status, _, complaint in said["finished"]:
        assert status == 0, complaint[-3000:]
    found, wanted = numbers(folder), numbers(alone)
    assert wanted and {key: found.get(key) for key in wanted} == wanted
    assert results(folder)["seeds"] == results(alone)["seeds"]


def test_one_process_writes_and_prints(stopped):
    folder, said = stopped
    (_, first, _), (_, second, _) = said["finished"]
    assert str(folder / "results.json") in first and silent_but_for_gloo(second)
    assert results(folder)["environment"]["processes"] == 2
    assert "4 x" in results(folder)["environment"]["devices"]


def leaves(tree) -> dict:
    """Every leaf of a JSON tree by its place."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def test_stress_tests_in_two_processes_find_what_one_finds(alone, tmp_path, stress):
    folder = Path(shutil.copytree(alone, tmp_path / "run"))
    ((status, _, complaint),) = stress(alone, "hacking", 1, 4)
    assert status == 0, complaint[-3000:]
    wanted, kept = (x / "stress" / "dareu" / "seed_0" for x in (alone, folder))
    kept.mkdir(parents=True)
    there = shutil.copyfile(wanted / "hacking.json", kept / "prefill.json")
    before = there.stat().st_mtime_ns
    first, second = stress(folder, "hacking,prefill", 2, 2)
    assert first[0] == second[0] == 0, first[2][-3000:]
    assert str(kept / "report.html") in first[1] and silent_but_for_gloo(second[1])
    assert there.stat().st_mtime_ns == before  # read by both, not found again
    for name in ("hacking.json", "answers.json"):
        one, two = (leaves(json.loads((x / name).read_text())) for x in (wanted, kept))
        assert two == {
            place: pytest.approx(x, abs=1e-5) if isinstance(x, float) else x
            for place, x in one.items()
        }
    assert (kept / "report.html").read_text().count("<article") == 8
