"""The scripts of the experiments run on a tiny corpus."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from dareu_jax.audits.fidelity import fidelity
from dareu_jax.config import load_config
from dareu_jax.training.progress import Progress

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
FIDELITY = {"subsets": 4, "queries_per_owner": 1, "draws": 100}
FIDELITY |= {"kernels": ["grad_dot", "bm25"]}


def script(name):
    """A script of the experiments as a module."""
    path = REPO / "experiments" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path):
    """A configuration whose every training has one epoch."""
    tree = yaml.safe_load((REPO / "tests" / "tiny.yaml").read_text())
    for part in (tree["finetune"], tree["classifier"], tree["prior"]):
        part["epochs"] = 1
    tree["evaluation"]["judge"]["epochs"] = 1
    tree["corpus"]["owners"], tree["fidelity"] = 4, FIDELITY
    path = tmp_path / "config" / "tiny.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(tree))
    return path


def test_the_grid_judges_every_step_count(config, tmp_path, monkeypatch):
    grid = script("grid.py")
    monkeypatch.setattr(grid, "GRID", {"npo": ("npo.steps", (1e-3,), (1, 2))})
    words = ["grid.py", config, "--out", tmp_path / "out", "--methods", "npo"]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    grid.main()
    report = json.loads((config.parent / "grid_seed0.json").read_text())
    assert set(report["oracles"]) == {"original", "retrained"}
    assert [row["steps"] for row in report["npo"]["rows"]] == [1, 2]
    assert report["npo"]["best_tow"] in report["npo"]["rows"]


def test_details_of_the_paper_have_a_row_each(config, tmp_path, monkeypatch, capsys):
    details = script("paper_details/details.py")
    monkeypatch.setattr(details, "QUICKSTART", config)
    table = tmp_path / "table.json"
    rows = ["dareu_paper", "paper_separate"]
    words = ["details.py", f"methods=[{','.join(rows)}]", "dareu.data_epochs=1"]
    words += ["--out", tmp_path / "out", "--table", table, "--seeds", 0]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    details.main()
    found = json.loads(table.read_text())
    assert list(found) == ["original", "retrained", *rows]
    assert all(len(found[row]["tow_rouge"]) == 1 for row in rows)
    said = capsys.readouterr().out
    assert "| paper_separate | retain steps of their own, with moments" in said


def test_rewards_are_compared_from_one_original(config, tmp_path, monkeypatch):
    compare = script("kernel_rewards/compare.py")
    rewards = {"classifier": {}, "bm25": {"reward.kernel": "bm25"}}
    monkeypatch.setattr(compare, "QUICKSTART", config)
    monkeypatch.setattr(compare, "REWARDS", rewards)
    monkeypatch.setattr(compare, "JUDGES", ("bm25",))
    rows = compare.seed_of(tmp_path / "out", 0, compare.FREE)
    assert list(rows) == ["original", "retrained", *rewards]
    for name in rewards:
        row = rows[name]
        assert row["seconds"] > 0 and 0.0 <= row["unseen classifier"] <= 1.0
        assert row["stopped"] is None and "bm25" in row
    numbers = compare.summary([rows])["bm25"]
    assert numbers["tow"]["mean"] == rows["bm25"]["tow"]


def test_gaps_between_kernels_have_intervals(config, tmp_path, capsys, monkeypatch):
    paired = script("kernel_fidelity/paired.py")
    monkeypatch.setattr(paired, "DRAWS", 20)
    fidelity(load_config(config), tmp_path / "out", Progress())
    paired.main(str(tmp_path / "out"), "grad_dot", "bm25")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("grad_dot - bm25: ")
