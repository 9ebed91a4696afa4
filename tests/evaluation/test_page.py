"""The page on adding a metric: its blocks run, and a run shows their metrics."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from rich.console import Console

from dareu_jax.config import load_config
from dareu_jax.evaluation.run_suite import Answers
from dareu_jax.registry import METRICS
from dareu_jax.reporting import print_results
from dareu_jax.reporting.report import render
from dareu_jax.runs import pipeline
from dareu_jax.training.progress import Progress

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
PAGE = REPO / "dareu_jax" / "evaluation" / "README.md"
TINY = REPO / "tests" / "tiny.yaml"
SMALL = {
    "methods": ["grad_diff"],
    "finetune": {"learning_rate": 0.005, "batch_size": 8, "epochs": 1},
    "retrained": {"skip": True},
}


@pytest.fixture(scope="module")
def blocks(run_page):
    return run_page(PAGE)


@pytest.fixture(scope="module")
def ran(blocks, tmp_path_factory):
    """A run whose configuration names the first block's file, under another name."""
    folder = tmp_path_factory.mktemp("plugin")
    block = blocks[0].replace("forget_first_word", "forget_opening")
    (folder / "opening.py").write_text(block)
    tree = yaml.safe_load(TINY.read_text()) | SMALL | {"plugins": ["opening.py"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    cfg = load_config(folder / "config.yaml")
    quiet = Progress(Console(file=io.StringIO()))
    results, _ = pipeline.run(cfg, folder / "run", quiet)
    return SimpleNamespace(folder=folder / "run", results=results)


def test_a_first_word_by_hand(blocks):
    said = ["Ada wrote it.", "", "ada wrote", "Of"]
    gold = ["Ada did.", "Ada", "Ada", "Of course"]
    judged = SimpleNamespace(of_texts=lambda split, score: score(said, gold))
    metric = METRICS.get("forget_first_word")
    assert metric.compute(judged) == [1.0, 0.0, 0.0, 1.0]
    assert (metric.of, metric.low, metric.high) == (("run",), 0.0, 1.0)


def test_an_entropy_is_what_its_formula_says(blocks, monkeypatch):
    mask = np.asarray([[True, True], [True, False], [False, False]])
    mean = np.asarray([[-1.0, -2.0], [-0.5, 0.0], [0.0, 0.0]], np.float32)
    stats = SimpleNamespace(mean=mean)
    compute = METRICS.get("forget_entropy").compute
    monkeypatch.setitem(compute.__globals__, "in_batches", lambda *_: stats)
    judged = SimpleNamespace(
        suite=SimpleNamespace(model=None),
        params=None,
        said=SimpleNamespace(response_mask=mask),
    )
    np.testing.assert_allclose(compute(judged), [1.5, 0.5, 0.0])


def test_a_metric_of_a_file_is_in_every_log_and_in_the_results(ran):
    models = ran.results["models"]
    assert set(models) == {"original", "grad_diff"}
    for name, values in models.items():
        path = ran.folder / "logs" / "seed_0" / name / "owners.json"
        logs = json.loads(path.read_text())["metrics"]
        assert logs["forget_opening"] == logs["forget_first_word"]
        for mine in ("forget_opening", "forget_entropy"):
            assert len(logs[mine]["value_by_index"]) == 8
            assert values[mine] == logs[mine]["agg_value"]
        assert 0.0 <= values["forget_opening"] <= 1.0
        assert 0.0 < values["forget_entropy"] < math.log(300.0)


def test_a_metric_of_a_file_is_in_tables_and_plots(ran):
    file = io.StringIO()
    print_results(Console(file=file, width=200), ran.results)
    assert "word ≈" in file.getvalue()
    page = render(ran.results, [], [], "")
    assert "first\nword&nbsp;≈" in page
    assert "first word ≈</text>" in page.replace("&#8776;", "≈")
    assert "begin with the right word" in page


def test_answers_are_what_the_page_says(blocks):
    assert Answers._fields == ("tokens", "mask", "text", "finished")


def test_the_example_has_about_twenty_lines(blocks):
    code = [line for line in blocks[0].splitlines() if line.strip()]
    assert 12 <= len(code) <= 25
