"""`dareu stress` on a run of tests/tiny.yaml: the files, the table, going on."""

import html
import io
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import pytest
import yaml
from rich.console import Console

from dareu_jax.audits.stress import attempt, print_stress, stress
from dareu_jax.audits.stress.table import table_of
from dareu_jax.config import load_config
from dareu_jax.errors import Preempted
from dareu_jax.parallel import Preemption
from dareu_jax.registry import STRESS
from dareu_jax.runs import pipeline
from dareu_jax.runs.folder import claimed
from dareu_jax.runs.load import params_of
from dareu_jax.training.progress import Progress

pytestmark = pytest.mark.slow

FEW = ("stress.steps=2", "stress.samples=2", "stress.few_rows=2")


def quiet():
    return Progress(Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
    """A finished run with one method."""
    folder = tmp_path_factory.mktemp("stress") / "run"
    tiny = request.config.rootpath / "tests" / "tiny.yaml"
    overrides = ["methods=[npo]", "npo.learning_rate=0.01", "corpus.general_facts=2"]
    epochs = {"finetune": 8, "classifier": 1, "evaluation.judge": 1}
    cfg = load_config(tiny, overrides + [f"{p}.epochs={n}" for p, n in epochs.items()])
    pipeline.run(cfg, folder, quiet())
    return folder


@pytest.fixture(scope="module")
def made(folder):
    """Every test, once."""
    return stress(folder, quiet(), overrides=FEW)


@pytest.fixture
def attempts(monkeypatch):
    """Names of the tests that are run from here on."""
    names, attempted = [], attempt.attempted

    def counted(test, *rest):
        names.append(test.name)
        return attempted(test, *rest)

    monkeypatch.setattr(attempt, "attempted", counted)
    return names


def test_every_test_keeps_three_numbers_and_a_verdict(folder, made):
    kept = folder / "stress" / "npo" / "seed_0"
    assert made.folder == kept and made.model == "npo"
    assert set(made.outcomes) == set(STRESS.names())
    for name, found in made.outcomes.items():
        assert json.loads((kept / f"{name}.json").read_text()) == found
        for numbers in (found["headline"], *found["parts"].values()):
            assert list(numbers) == ["original", "retrained", "unlearned"], name
            assert all(math.isfinite(x) for x in numbers.values())
        assert "retrained" in found["verdict"]
        assert not re.search("erased|certified|removed", found["verdict"], re.I)
    assert (kept / "plots.png").read_bytes().startswith(b"\x89PNG")
    page = made.report.read_text()
    assert made.report == kept / "report.html" and "A test." in page
    assert "The first 8 of 8" in page and page.count("<article") == 8
    for found in made.outcomes.values():
        assert html.escape(found["verdict"], quote=False) in html.unescape(page)


def test_what_each_test_finds(made):
    found = made.outcomes
    rows = found["relearn"]["curves"]
    assert set(rows) == {"forget rows", "few rows", "neighbours"}
    assert found["relearn"]["steps"] == [0, 1, 2]
    for curve in rows.values():
        assert {len(values) for values in curve["unlearned"].values()} == {3}
    p0, p1, p2 = rows["forget rows"]["unlearned"]["probability"]
    mean = (p1 + (p0 + p2) / 2) / 2 - p0
    assert found["relearn"]["headline"]["unlearned"] == pytest.approx(mean, abs=1e-6)
    parts = found["quantise"]["parts"]
    for role, value in parts["probability, int8"].items():
        assert value == pytest.approx(parts["probability, unrounded"][role], rel=0.05)
    assert set(found["quantise"]["robustness"]) == {"int8", "int4", "nf4"}
    assert found["sample"]["k"] == [1, 2]
    assert set(found["sample"]["curves"]) == {"1", "0.7"}
    for curve in found["sample"]["curves"].values():
        assert all(one <= two for one, two in curve.values())
    assert found["prefill"]["shares"] == [0.0, 0.125, 0.25, 0.5]
    assert len(found["prompts"]["values"]["unlearned"]) == 8
    tow = found["prompts"]["tow_para"]
    assert tow["retrained"] == 1.0 and 0.0 <= tow["unlearned"] <= 1.0
    assert all(0.0 <= x <= 1.0 for x in found["held_out"]["gold"].values())
    curves, whole = found["held_out"]["curves"], found["held_out"]["headline"]
    assert set(curves) == {"reward", "fresh classifier"}
    for curve in curves.values():
        assert {len(values) for values in curve.values()} == {5}
    for role, values in curves["fresh classifier"].items():
        assert values[-1] == pytest.approx(whole[role], abs=1e-6)
    switches = found["hacking"]["parts"]["most like another forget owner"]
    assert switches["unlearned"] == 0.0  # one owner withdrew


def test_a_second_call_runs_nothing(folder, made, monkeypatch):
    def never(*_):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(attempt, "Session", never)
    assert stress(folder, quiet(), overrides=FEW) == made


def test_a_changed_setting_runs_the_tests_that_read_it(folder, made, attempts):
    names = ["prefill", "sample"]
    changed = (*FEW, "stress.samples=1")
    kept = stress(folder, quiet(), names, overrides=changed).folder
    assert attempts == ["sample"]
    assert json.loads((kept / "sample.json").read_text())["settings"]["samples"] == 1
    (kept / "prefill.json").write_text("{")
    stress(folder, quiet(), names, overrides=changed)
    assert attempts == ["sample", "prefill"]


def test_what_sigterm_stops_leaves_nothing_half_done(folder, made):
    class Taken(Preemption):
        def has_come(self):
            return True

    with pytest.raises(Preempted, match="what was finished is saved"):
        stress(folder, quiet(), ["prefill"], model="original", preemption=Taken())
    assert not (folder / "stress" / "original").exists()


def test_a_model_is_like_itself(folder):
    names = ["relearn", "quantise"]
    same = stress(folder, quiet(), names, model="retrained", overrides=FEW).outcomes
    assert same["relearn"]["robustness"] == dict.fromkeys(
        ("mean over the updates", "forget rows", "few rows", "neighbours"), 1.0
    )
    for found in same.values():
        assert found["headline"]["unlearned"] == found["headline"]["retrained"]
        assert "cannot tell" in found["verdict"]


def silent(inputs):
    """Parameters that answer every prompt with an end of text."""

    def leaf(path, x):
        if path[-1].key == "embedding":
            return jnp.ones_like(x).at[inputs.tokenizer.eos_id].set(2.0)
        return jnp.zeros_like(x) if path[-1].key == "kernel" else x

    return jax.tree_util.tree_map_with_path(leaf, params_of(inputs, "original"))


@pytest.fixture
def broken(folder, made, tmp_path, monkeypatch):
    """Gives a copy of the run whose method left other parameters."""

    def copied(make):
        there = shutil.copytree(folder, tmp_path / "run")
        shutil.rmtree(there / "stress" / "npo")

        def given(inputs, row):
            return make(inputs) if row == "npo" else params_of(inputs, row)

        monkeypatch.setattr(attempt, "params_of", given)
        return there

    return copied


def test_a_model_that_says_nothing_is_never_praised(broken):
    """Whatever is tried: its low numbers are called those of broken answers."""
    there = broken(silent)
    kept = stress(there, quiet(), overrides=FEW)
    found = kept.outcomes
    assert set(found) == set(STRESS.names())
    for name, one in found.items():
        assert "its answers are broken: 100% are empty" in one["verdict"], name
    assert found["hacking"]["headline"]["unlearned"] == 1.0
    assert "above; part of its other numbers" in found["hacking"]["verdict"]
    assert found["prefill"]["headline"]["unlearned"] == 0.0
    assert "its answers are broken" in kept.report.read_text()


def test_a_model_without_numbers_is_refused_in_a_line(broken, dareu):

    def no_numbers(inputs):
        return jax.tree.map(lambda x: x * jnp.nan, params_of(inputs, "original"))

    there = broken(no_numbers)
    status, _, complaint = dareu("stress", there, "--tests", "prefill", *FEW)
    assert status == 2 and complaint.count("\n") == 1
    assert "forget answers: nan for the unlearned model in forget record 0" in complaint
    assert not (there / "stress" / "npo").exists()


def test_a_run_without_a_retrained_model_has_none_in_that_column(folder, tmp_path):
    there = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(there / "stress", ignore_errors=True)
    path = there / "config.resolved.yaml"
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | {"retrained": {"skip": True}}))
    results = json.loads((there / "results.json").read_text())
    del results["models"]["retrained"]
    (there / "results.json").write_text(json.dumps(results))
    found = stress(there, quiet(), ["prefill"])
    assert set(found.outcomes["prefill"]["headline"]) == {"original", "unlearned"}
    assert "no retrained model" in found.outcomes["prefill"]["verdict"]
    printed = io.StringIO()
    print_stress(Console(file=printed, width=120), found)
    row = next(x for x in printed.getvalue().splitlines() if x.startswith("prefill "))
    assert "none" in row


def test_a_run_from_before_the_section_is_still_the_same_run(folder, tmp_path):
    path = folder / "config.resolved.yaml"
    tree = yaml.safe_load(path.read_text())
    del tree["stress"]
    (tmp_path / "config.resolved.yaml").write_text(yaml.safe_dump(tree))
    assert claimed(load_config(path), tmp_path)


def test_the_table_has_a_row_for_every_test_and_part(made):
    parts = sum(len(found["parts"]) for found in made.outcomes.values())
    assert table_of(made.outcomes).row_count == len(made.outcomes) + parts


def test_the_command_prints_the_table(dareu, folder, made):
    status, out, _ = dareu("stress", folder, "--tests", "hacking,prefill", *FEW)
    assert status == 0
    for text in ("unlearned: npo", "ROUGE behind 50%", "kept in:", "no proof"):
        assert text in out
    assert "A test." in out and "relearn" not in out


def test_the_tests_are_listed(dareu):
    status, out, _ = dareu("list", "stress")
    assert status == 0 and "leak@k" in out and "held_out" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tests", "relern"), "unknown stress test 'relern' (did you mean 'relearn'"),
        (("--model", "nop"), "has no model 'nop' (did you mean 'npo'?); known: unlea"),
        (("--seed", "7"), "has no seed 7; known: [0]"),
        (("npo.steps=2",), "must look like stress.key=value"),
        (("stress.step=2",), "unknown key 'stress.step'"),
        (("stress.steps=0",), "stress.steps = 0"),
    ],
)
def test_bad_input_ends_in_a_line(dareu, folder, arguments, message):
    status, _, complaint = dareu("stress", folder, *arguments)
    assert status == 2 and message in complaint
    assert complaint.count("\n") == 1


def test_a_folder_without_a_finished_run_is_refused(dareu, tmp_path):
    status, _, complaint = dareu("stress", tmp_path)
    assert status == 2 and "holds no finished run" in complaint
    assert not list(tmp_path.iterdir())
