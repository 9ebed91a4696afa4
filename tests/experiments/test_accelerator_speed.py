"""The speed of an accelerator: every part runs in a tiny shape on a CPU."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "experiments" / "accelerator_speed" / "benchmark.py"
PHASES = {
    "finetune": {"finetune"},
    "rollout": {"rollout"},
    "scoring": {"scoring"},
    "dareu": {"rollout", "attribute", "judge", "update", "distil"},
    "kernel": {"index", "score"},
}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("accelerator_speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("part", PHASES)
def test_a_part_has_its_seconds_its_memory_and_the_tokens_of_its_phases(
    benchmark, part
):
    found = benchmark.measured(part, benchmark.SHAPES["tiny"])
    assert found["seconds"] > 0.0 and found["compile_s"] >= 0.0
    assert 0.01 < found["peak_memory_gib"] < 100.0
    assert PHASES[part] <= found["phases"].keys()
    for phase in found["phases"].values():
        assert phase["seconds"] > 0.0 and math.isfinite(phase["tokens_per_s"])
        assert phase["tokens_per_s"] > 0.0 and phase["mfu"] is None  # of a CPU


def test_one_command_writes_what_it_found_and_what_failed(benchmark, tmp_path, capsys):
    out, false = tmp_path / "results.json", tmp_path / "false"
    false.write_text("#!/bin/sh\necho no torch here >&2\nexit 1\n")
    false.chmod(0o755)
    words = ["--shape", "tiny", "--parts", "scoring", "--python", false, "--out", out]
    benchmark.main(list(map(str, words)))
    found = json.loads(out.read_text())
    assert found["shape"]["preset"] == "decoder-40k"
    here, there = found["parts"]["scoring"].values()
    assert here["device"] == "cpu" and here["phases"]["scoring"]["tokens_per_s"] > 0.0
    assert there == {"failed": "no torch here"}
    assert capsys.readouterr().out.startswith('scoring {"dareu_jax": {')
