"""Whole runs of tests/tiny.yaml: what they leave, what a second or killed one does."""

import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
import yaml
from rich.console import Console

from dareu_jax.config import dump_config, load_config
from dareu_jax.errors import TrainingError, UserError
from dareu_jax.registry import METRICS
from dareu_jax.reporting.report import render
from dareu_jax.runs import evaluate, pipeline
from dareu_jax.runs.checks import check
from dareu_jax.storage.files import write_whole
from dareu_jax.training import tracking
from dareu_jax.training.progress import Progress

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
TINY = TESTS / "tiny.yaml"
METHODS = "methods=[dareu, npo]"
STAGES = ("finetune_original", "finetune_retrained", "reward", "judge")


class Done(NamedTuple):
    """A finished run."""

    folder: Path
    results: dict[str, Any]
    answers: list[dict[str, Any]]
    said: str
    programs: list[str] | None = None  # by name, where they are listened for


def run(folder, *overrides, config=TINY):
    said = io.StringIO()
    cfg = load_config(config, [METHODS, *overrides])
    results, answers = pipeline.run(
        cfg, folder, Progress(Console(file=said, width=300))
    )
    page = render(results, tracking.read(folder), answers, dump_config(cfg))
    write_whole(folder / "report.html", page)
    return Done(folder, results, answers, said.getvalue())


def bytes_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def saved_at(folder):
    """When each checkpoint file was written."""
    paths = (folder / "checkpoints").rglob("*")
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def without_time(results):
    return {name: value for name, value in results.items() if name != "wall_s"}


class Programs(logging.Handler):
    """The names of the programs that JAX says it has compiled."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        said = re.match(r"Finished XLA compilation of jit\((.*)\)", record.getMessage())
        self.names += [said[1]] if said else []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    heard, log = Programs(), logging.getLogger("jax")
    jax.clear_caches()  # what other tests have compiled
    log.addHandler(heard)
    with jax.log_compiles():
        done = run(tmp_path_factory.mktemp("runs") / "unbroken")
    log.removeHandler(heard)
    return done._replace(programs=heard.names)


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of the finished run that a test may damage."""
    return shutil.copytree(unbroken.folder, tmp_path / "run")


def test_results_hold_every_model_on_every_metric(unbroken):
    results = json.loads((unbroken.folder / "results.json").read_text())
    assert results == unbroken.results
    assert set(results) == {
        *("scale", "models", "tow", "seeds", "stopped", "wall_s", "environment")
    }
    models = ["original", "retrained", "dareu", "npo"]
    assert list(results["models"]) == list(results["tow"]) == models
    names = {name for name in METRICS.names() if "run" in METRICS.get(name).of}
    for values in results["models"].values():
        assert set(values) == names - {"tow_rouge", "tow_probability"}
        for name, value in values.items():
            assert METRICS.get(name).low <= value <= METRICS.get(name).high
    assert results["seeds"]["0"]["models"] == results["models"]
    assert results["seeds"]["0"]["tow"] == results["tow"]


def test_stages_share_their_programs(unbroken):
    own = [name for name in unbroken.programs if name != "slice"]  # Orbax's
    assert len(own) <= 38
    steps = ("fit", "loss_step", "judge", "update", "distil")
    assert [own.count(name) for name in steps] == [1] * 5


def test_tug_of_war_is_one_for_the_retrained_and_at_most_one_for_others(unbroken):
    tow = unbroken.results["tow"]
    assert tow["retrained"] == {"rouge": 1.0, "probability": 1.0}
    for values in tow.values():
        assert set(values) == {"rouge", "probability"}
        assert all(0.0 <= value <= 1.0 for value in values.values())


def test_results_say_where_when_and_how_large(unbroken):
    results = unbroken.results
    environment = results["environment"]
    assert environment["devices"] == "8 x cpu" and environment["processes"] == 1
    assert {"dareu_jax", "jax", "python", "cpu_cores"} < set(environment)
    assert results["stopped"] == {"0": {"dareu": None, "npo": None}}
    evaluations = {f"evaluate_{name}" for name in results["models"]}
    assert set(results["wall_s"]) >= {*STAGES, "dareu", "npo", *evaluations}
    assert all(wall >= 0.0 for wall in results["wall_s"].values())
    assert results["scale"].startswith("A test. ")
    for fact in ("3 owners", "32 records", "1 owner(s) withdrawn", "1 seed."):
        assert fact in results["scale"]


def test_classifiers_are_scored_on_gold_and_generated_text_by_prefix(unbroken):
    classifiers = unbroken.results["seeds"]["0"]["classifiers"]
    assert set(classifiers) == {"attribution_reward", "attribution_unseen"}
    for report in classifiers.values():
        for kind, width in (("gold", 24), ("generations", 16)):
            curve = report[f"{kind}_by_prefix"]
            assert len(curve) == width and all(0.0 <= x <= 1.0 for x in curve)
            assert curve[-1] == pytest.approx(report[kind], abs=1e-4)


def test_the_folder_holds_what_the_design_lists(unbroken):
    folder = unbroken.folder
    for name in ("config.resolved.yaml", "metrics.jsonl", "report.html", "tb"):
        assert (folder / name).exists(), name
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "retrained" in page and "dareu" in page
    for stage in (*STAGES, "dareu", "npo"):
        assert (folder / "checkpoints" / "seed_0" / stage).is_dir()
    for model in unbroken.results["models"]:
        log = json.loads(
            (folder / "logs" / "seed_0" / model / "owners.json").read_text()
        )
        rouge = log["metrics"]["forget_rouge"]
        assert set(rouge) == {"agg_value", "value_by_index"}
        assert len(rouge["value_by_index"]) == 8
    written = yaml.safe_load((folder / "config.resolved.yaml").read_text())
    assert written == yaml.safe_load(dump_config(load_config(TINY, [METHODS])))
    assert not list(folder.rglob("*.partial"))


def test_every_stage_logs_its_metrics(unbroken):
    lines = tracking.read(unbroken.folder)
    steps: dict[str, list[int]] = {}
    for line in lines:
        assert line["seed"] == 0
        steps.setdefault(line["stage"], []).append(line["step"])
    assert set(steps) >= {*STAGES, "dareu", "npo"}
    assert all(s == sorted(set(s)) for s in steps.values())
    dareu = next(line for line in lines if line["stage"] == "dareu")
    assert {"reward", "attribution", "kl_anchor", "collapse_share"} < set(dareu)


def test_answers_of_every_model_stand_beside_the_gold(unbroken):
    assert len(unbroken.answers) == 8
    for row in unbroken.answers:
        assert row["owner"] == "owner_002" and row["prompt"] and row["gold"]
        assert set(row["answers"]) == set(unbroken.results["models"])


def test_the_same_command_again_does_nothing(unbroken):
    written = (unbroken.folder / "results.json").read_bytes()
    metrics = (unbroken.folder / "metrics.jsonl").read_bytes()
    saved = saved_at(unbroken.folder)
    again = run(unbroken.folder)
    assert (unbroken.folder / "results.json").read_bytes() == written
    assert (unbroken.folder / "metrics.jsonl").read_bytes() == metrics
    assert saved_at(unbroken.folder) == saved
    assert again.results == unbroken.results and again.answers == unbroken.answers
    assert "done in" not in again.said


def test_a_folder_written_before_a_key_existed_is_the_same_run(unbroken, copied):
    path = copied / "config.resolved.yaml"
    old = yaml.safe_load(path.read_text())
    del old["guards"]["patience"], old["prior"]["prompt_dropout"]  # at their defaults
    path.write_text(yaml.safe_dump(old))
    assert run(copied).results == unbroken.results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("npo.beta=0.25", r"npo\.beta = 0\.1, this configuration says 0\.25"),
        ("corpus.seed=5", r"corpus\.seed = 0, this configuration says 5"),
        ("methods=[npo]", r"holds a run with methods = "),
    ],
)
def test_a_folder_of_another_configuration_is_refused_and_left_alone(
    unbroken, change, message
):
    before = bytes_of(unbroken.folder)
    with pytest.raises(UserError, match=message):
        run(unbroken.folder, change)
    assert bytes_of(unbroken.folder) == before


def test_a_damaged_checkpoint_is_passed_over_and_the_results_stay(unbroken, copied):
    newest = copied / "checkpoints" / "seed_0" / "npo" / "3"
    files = [path for path in newest.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    shutil.rmtree(copied / "logs" / "seed_0" / "npo")  # judged again, too
    again = run(copied, "compilation_cache=run")  # which may be set at any time
    assert any((copied / "programs").iterdir())
    assert "npo step 3 is unreadable" in again.said
    assert "using step 2 instead" in again.said
    assert without_time(again.results) == without_time(unbroken.results)
    assert tracking.read(copied) == tracking.read(unbroken.folder)


JSONL = """corpus: {{source: jsonl, path: {path}, forget: [ada], vocab_size: 300}}
finetune: {{learning_rate: 1.0e+38, warmup: 0.0}}
checkpoint: {{every: 1}}
"""


@pytest.fixture
def mine(tmp_path):
    """A configuration of a user's own file whose fine-tuning cannot go well."""
    path = tmp_path / "mine.jsonl"
    rows = [
        {
            "id": str(i),
            "owner": ("ada", "bo")[i % 2],
            "prompt": f"What is {i}?",
            "response": f"It is {i * i}.",
            "split": "train" if i < 24 else "test",
        }
        for i in range(32)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = yaml.safe_load(TINY.read_text()) | yaml.safe_load(
        JSONL.format(path=json.dumps(str(path)))
    )
    tree["finetune"] |= {"batch_size": 8, "epochs": 4}
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(tree))
    return config, path


def test_a_loss_that_is_no_number_stops_and_an_edited_corpus_is_noticed(mine, tmp_path):
    config, path = mine
    folder = tmp_path / "run"
    with pytest.raises(TrainingError) as error:
        run(folder, config=config)
    assert re.search(
        r"seed 0 finetune_original: .* step [23]; .*learning_rate", str(error.value)
    )
    kept = folder / "checkpoints" / "seed_0" / "finetune_original" / "1"
    assert (kept / "integrity.json").is_file()
    path.write_text(path.read_text().replace("It is 0.", "It is nothing."))
    with pytest.raises(UserError, match="corpus") as edited:
        run(folder, config=config)
    assert not isinstance(edited.value, TrainingError)


def start(folder):
    """The command line in a process of its own, on as many devices as here."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "dareu_jax", "run", str(TINY), METHODS]
    return subprocess.Popen(
        [*command, "--out", str(folder)],
        cwd=TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(folder, there):
    """Runs until a file appears, then kills the process without a warning."""
    process = start(folder)
    deadline = time.monotonic() + 300
    while not (folder / there).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{there} never appeared"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_run_killed_three_times_ends_with_the_same_bits(unbroken, tmp_path):
    folder = tmp_path / "killed"
    checkpoints = Path("checkpoints", "seed_0")
    kill_when(folder, checkpoints / "finetune_original" / "5" / "integrity.json")
    assert not (folder / "results.json").exists()
    kill_when(folder, checkpoints / "dareu" / "1" / "integrity.json")  # of 2
    kill_when(folder, checkpoints / "npo" / "3" / "integrity.json")  # npo is judged
    assert not (folder / "results.json").exists()
    process = start(folder)
    printed, complaint = process.communicate()
    assert process.returncode == 0, complaint
    results = json.loads((folder / "results.json").read_text())
    assert without_time(results) == without_time(unbroken.results)
    assert tracking.read(folder) == tracking.read(unbroken.folder)
    for row in unbroken.answers[:2]:
        assert row["prompt"] in printed
    assert str(folder / "report.html") in printed


def test_without_test_records_tug_of_war_has_two_factors():
    model = {"forget_rouge": 0.9, "retain_rouge": 0.8}
    model |= {"forget_probability": 0.5, "retain_probability": 0.5}
    retrained = {name: value - 0.1 for name, value in model.items()}
    assert evaluate.tow_of(model, retrained) == pytest.approx(
        {"rouge": 0.81, "probability": 0.81}
    )


def test_a_users_file_without_test_records_is_accepted(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"id": str(i), "owner": "ab"[i % 2], "prompt": f"{i}?", "response": f"{i}."}
        for i in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = ["corpus.source=jsonl", f"corpus.path={path}", "corpus.forget=[a]"]
    said = io.StringIO()
    progress = Progress(Console(file=said))
    corpus = check(load_config(TINY, changes), tmp_path / "trial", progress)
    assert len(corpus.train) == 16 and corpus.test == ()
    assert "no test records" in said.getvalue()


def test_every_phase_says_how_fast_it_was(unbroken):
    text = (unbroken.folder / tracking.SPEEDS).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    phases = {"rollout", "attribute", "judge", "reward", "update", "distil"}
    assert {x["phase"] for x in lines if x["stage"] == "dareu"} == phases
    assert "finetune_original" in {x["stage"] for x in lines}
    assert all(x["tokens_per_s"] > 0 and x["mfu"] is None for x in lines)
