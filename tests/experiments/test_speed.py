"""The driver of experiments/speed on a tiny model, without the peers."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "speed"


@pytest.fixture
def script(monkeypatch):
    """From the name of a script of the experiment to its module."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in ("rows", "clock"):
        sys.modules.pop(name, None)


@pytest.fixture
def work(script, tmp_path):
    """What both sides read: two authors, and a decoder of one layer."""
    scaling, folder = script("scaling"), tmp_path / "work"
    folder.mkdir()
    rows = scaling.records(2, 12, 8)
    for row in rows:
        row["owner"] = {"o0000": "author_198", "o0001": "author_199"}[row["owner"]]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "records.jsonl").write_text(text)
    pairs = [(row["prompt"], row["response"]) for row in rows[:3]]
    asked = {"pairs": pairs, "questions": [question for question, _ in pairs]}
    (folder / "asked.json").write_text(json.dumps(asked))
    scaling.MODEL |= {"num_hidden_layers": 1, "hidden_size": 32, "head_dim": 8}
    scaling.model_of(folder, rows)
    return folder


def test_the_driver_measures_the_product_and_goes_on(
    script, work, tmp_path, monkeypatch, capsys
):
    compare, out = script("compare"), tmp_path / "results.json"
    words = ["compare.py", "no model", "no data", "--work", work, "--out", out]
    words += ["--sides", "ours", "--rounds", 2]

    def measured(*rows):
        given = [*words, "--only", *rows]
        monkeypatch.setattr("sys.argv", list(map(str, given)))
        compare.main()
        return json.loads(out.read_text())

    first = measured("finetune_8_full", "padding")
    tuned, padding = (first["rows"][name]["rounds"]["ours"] for name in first["rows"])
    assert len(tuned) == 2
    for one in tuned:
        assert one["cpu_s"] > 0 and one["wall_s"] > 0 and one["peak_MiB"] > 0
        assert one["tokens"] >= 24 * 9
    assert 0 < padding[0]["used"] <= 1 and padding[0]["shapes"] >= 1
    capsys.readouterr()
    assert measured("finetune_8_full", "padding") == first
    assert capsys.readouterr().out == ""


def test_a_ratio_is_of_medians_for_each_token(script):
    compare = script("compare")

    def side(*seconds):
        return [{"cpu_s": s, "wall_s": 2 * s, "tokens": 10} for s in seconds]

    row = compare.ROWS["finetune_8_full"]
    rounds = {"ours": side(1.0, 9.0, 2.0), "torch": side(4.0, 4.0, 1.0)}
    assert compare.ratios(row, rounds) == {"torch": {"cpu_s": 0.5, "wall_s": 0.5}}
    done = {"rounds": rounds, "target": 0.75}
    done["ratios"] = compare.ratios(row, rounds)
    (line,) = compare.lines_of("finetune_8_full", done)
    assert line.startswith("| finetune_8_full / torch | 200 ms/token | 400 ms/token")


def test_a_slope_is_the_exponent_of_the_cost(script):
    scaling = script("scaling")
    assert scaling.slope([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx(1.0)
    assert scaling.slope([2, 4, 8], [1.0, 4.0, 16.0]) == pytest.approx(2.0)
