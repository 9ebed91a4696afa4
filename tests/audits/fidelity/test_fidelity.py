"""`dareu fidelity` on four owners: the numbers, the folder, and going on."""

import io
import json
import shutil

import numpy as np
import pytest
import yaml
from rich.console import Console

from dareu_jax.audits.fidelity import fidelity, print_fidelity, trial
from dareu_jax.audits.fidelity.plan import check_plan, contenders
from dareu_jax.audits.fidelity.summary import ceiling, summarise
from dareu_jax.audits.fidelity.trial import Outcomes, Scores, Trial
from dareu_jax.config import load_config
from dareu_jax.errors import UserError
from dareu_jax.runs import stages as stages_module
from dareu_jax.training.progress import Progress

pytestmark = pytest.mark.slow

CHANGES = {
    "corpus": {"owners": 4, "records_per_owner": 4, "general_facts": 2},
    "finetune": {"epochs": 2, "snapshots": 0},
    "evaluation": {"batch_size": 8},
    "fidelity": {
        "kernels": [
            *("grad_dot", "bm25", "constant", "random"),
            *("in_run_shapley", "random_1"),
        ],
        "variants": {"random_1": {"kernel": "random", "projection_seed": 1}},
        "subsets": 4,
        "queries_per_owner": 2,
        "draws": 100,
    },
}
METRICS = {"lds", "leave_one_out", "recall", "mrr", "tail_patch", "brittleness"}
METRICS |= {"validity"}


def quiet():
    return Progress(Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def config(tmp_path_factory, request):
    tree = yaml.safe_load((request.config.rootpath / "tests/tiny.yaml").read_text())
    for section, changes in CHANGES.items():
        tree[section] = tree.get(section, {}) | changes
    path = tmp_path_factory.mktemp("config") / "tiny_fidelity.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def cfg(config):
    return load_config(config)


@pytest.fixture(scope="module")
def folder(cfg, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fidelity") / "run"
    fidelity(cfg, folder, quiet())
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "fidelity.json").read_text())


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "run")


@pytest.fixture
def trained(monkeypatch):
    """The stages that are fine-tuned from here on."""
    stages, finetune = [], stages_module.finetune

    def counted(session, stage, records):
        stages.append(stage)
        return finetune(session, stage, records)

    monkeypatch.setattr(trial, "finetune", counted)
    monkeypatch.setattr(stages_module, "finetune", counted)
    return stages


def kept(folder, pattern):
    return sorted((folder / "fidelity" / "seed_0").glob(pattern))


def test_every_kernel_has_every_metric_with_its_interval(results):
    assert list(results["kernels"]) == CHANGES["fidelity"]["kernels"]
    for label, row in results["kernels"].items():
        assert set(row) == METRICS | ({"ece"} if label != "in_run_shapley" else set())
        for found in row.values():
            assert found["low"] <= found["high"]
            assert len(found["seeds"]) == 1
            assert found["value"] == found["seeds"][0]


def test_the_experiment_says_how_small_it_is(results):
    assert results["scale"].startswith("A test.")
    assert "4 owners, 18 records, 1 seed." in results["scale"]
    assert results["queries"] == 8
    assert results["ceiling"] is None


def test_retrainings_are_the_subsets_and_every_owner_left_out(results, folder):
    assert results["retrainings"] == 4 + 4
    masks = [p.stem.removeprefix("retrained_") for p in kept(folder, "retrained_*")]
    bits = [f"{int(mask, 16):04b}".count("1") for mask in masks]
    assert sorted(bits) == [2] * 4 + [3] * 4


def test_the_constant_says_nothing(results):
    found = {name: x["value"] for name, x in results["kernels"]["constant"].items()}
    wanted = {"lds": 0.0, "leave_one_out": 0.0, "recall": 0.25, "mrr": 0.4}
    wanted["validity"] = 0.5
    assert {name: found[name] for name in wanted} == wanted
    assert found["tail_patch"] == pytest.approx(0.0, abs=1e-4)
    assert found["ece"] == pytest.approx(0.0, abs=1e-4)
    interval = results["kernels"]["constant"]["lds"]
    assert interval["low"] == interval["high"] == 0.0


def test_the_interval_of_random_scores_holds_zero(results):
    found = results["kernels"]["random"]["lds"]
    assert found["low"] < 0.0 < found["high"]


def test_a_variant_differs_from_the_kernel_it_is_of(folder):
    one, other = (
        np.asarray(json.loads(kept(folder, f"asked_{label}.json")[0].read_text()))
        for label in ("random_1", "random")
    )
    assert one.shape == other.shape == (2, 2 * 8, 4)
    assert not np.allclose(one, other)


def test_retrained_models_do_not_stay_on_disk(folder):
    left = {path.name for path in (folder / "checkpoints" / "seed_0").iterdir()}
    assert left == {"finetune_original"}


def test_the_same_command_again_changes_no_byte(copy, cfg, trained):
    names = ("fidelity.json", "fidelity.svg")
    before = [(copy / name).read_bytes() for name in names]
    fidelity(cfg, copy, quiet())
    assert [(copy / name).read_bytes() for name in names] == before
    assert trained == []  # the original is loaded


def test_an_interrupted_run_goes_on_without_training_again(
    copy, cfg, trained, monkeypatch
):
    whole = (copy / "fidelity.json").read_bytes()
    lost = kept(copy, "retrained_*")[-2:]
    for path in (*lost, copy / "fidelity.json"):
        path.unlink()

    def stop(self, params):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "likelihoods", stop)
        with pytest.raises(KeyboardInterrupt):
            fidelity(cfg, copy, quiet())
    assert not (copy / "fidelity.json").exists()
    said = io.StringIO()
    fidelity(cfg, copy, Progress(Console(file=said)))
    assert (copy / "fidelity.json").read_bytes() == whole
    first, second = (path.stem for path in lost)
    assert [x for x in trained if x != "finetune_original"] == [first, first, second]
    assert f"{second}: done" in said.getvalue()
    assert f"{first}: done" not in said.getvalue()


def test_another_configuration_is_refused(copy, cfg):
    other = cfg.model_copy(update={"scale": "Another."})
    with pytest.raises(UserError, match=r"holds a run with scale = 'A test\.'"):
        fidelity(other, copy, quiet())


def test_the_table_has_the_best_kernel_on_top_and_fits_a_line(results):
    out = io.StringIO()
    print_fidelity(Console(file=out, width=80), results)
    lines = out.getvalue().splitlines()
    rows = [x.split()[0] for x in lines if x.split() and x.split()[0] in METRICS_OF]
    kernels = results["kernels"]
    assert rows == sorted(kernels, key=lambda label: -kernels[label]["lds"]["value"])
    assert max(map(len, lines)) <= 100
    assert ".00 (.00, .00)" in next(x for x in lines if x.startswith("constant"))


METRICS_OF = CHANGES["fidelity"]["kernels"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("fidelity.kernels=[grad_dott]", ("'grad_dott'", "did you mean 'grad_dot'")),
        (
            "fidelity.variants={v: {kernel: projected, projected.sise: 2}}",
            ("fidelity.variants.v", "projected.sise", "projected.size"),
        ),
        (
            "fidelity.variants={v: {kernel: projected, projected: {size: 0}}}",
            ("fidelity.variants.v", "attribution.projected.size = 0"),
        ),
        ("fidelity.share=0.1", ("4 owners have 0 different subsets of 0", "share")),
        ("finetune.epochs=0", ("finetune.epochs",)),
        ("corpus.path=missing.jsonl", ("missing.jsonl",)),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    config, tmp_path, dareu, change, words
):
    more = ["corpus.source=jsonl"] if "path" in change else []
    if "variants" in change:
        more = ["fidelity.kernels=[v]"]
    out = tmp_path / "out"
    status, _, said = dareu("fidelity", config, change, *more, "--out", out)
    assert status == 2
    assert said.startswith("dareu: ") and "Traceback" not in said
    assert all(word in said for word in words), said
    assert not out.exists()


@pytest.mark.parametrize("label", ["original", "retrained_3", "tail_patch", "a/b"])
def test_a_variant_cannot_take_the_name_of_another_file(cfg, label):
    given = cfg.fidelity.model_copy(
        update={"kernels": (label,), "variants": {label: {"kernel": "bm25"}}}
    )
    with pytest.raises(UserError, match=f"fidelity.variants.{label}"):
        contenders(cfg.model_copy(update={"fidelity": given}))


def test_without_a_list_every_kernel_is_compared(cfg):
    given = cfg.fidelity.model_copy(update={"kernels": ()})
    found = contenders(cfg.model_copy(update={"fidelity": given}))
    assert {"classifier", "ekfac", "in_run_shapley", "random_1"} <= found.keys()
    assert found["random_1"].options.projection_seed == 1
    assert found["random"].options == cfg.attribution


def test_fewer_subsets_than_asked_for_are_told(cfg, tmp_path):
    given = cfg.fidelity.model_copy(update={"subsets": 16})
    said = io.StringIO()
    check_plan(
        cfg.model_copy(update={"fidelity": given}),
        tmp_path,
        Progress(Console(file=said, width=200)),
    )
    assert "4 owners have 6 different subsets of 2" in said.getvalue()


WORTH = np.array([[8.0, 4.0, 2.0, 1.0], [1.0, 8.0, 4.0, 2.0], [2.0, 1.0, 8.0, 4.0]])
MASKS = np.array(
    [
        *([1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]),
        *([0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]),
    ],
    bool,
)
ADDED = Outcomes(
    owner=np.array([0, 1, 2]),
    masks=MASKS,
    subsets=np.stack([WORTH @ MASKS.T, WORTH @ MASKS.T]),
    whole=WORTH.sum(axis=1),
    without=WORTH.sum(axis=1, keepdims=True) - WORTH,
    gains=0.1 * WORTH,
)
"""Three queries in a world where every owner adds a fixed worth."""


def test_true_scores_are_perfect_in_every_metric():
    probabilities = np.eye(4)[:3]
    found = summarise([Scores(WORTH, probabilities)] * 2, [ADDED] * 2, draws=100)
    wanted = {"lds": 1.0, "leave_one_out": 1.0, "recall": 1.0, "mrr": 1.0}
    wanted |= {"ece": 0.0, "brittleness": 1.0, "tail_patch": 0.425}
    assert {name: row["value"] for name, row in found.items()} == wanted
    for row in found.values():
        assert row["low"] == row["value"] == row["high"]
        assert row["seeds"] == [row["value"]] * 2


def test_reversed_scores_are_as_bad_as_can_be():
    found = summarise([Scores(-WORTH, None)], [ADDED], draws=100)
    assert found["lds"]["value"] == found["leave_one_out"]["value"] == -1.0
    assert found["recall"]["value"] == 0.0 and found["mrr"]["value"] == 0.25
    assert "ece" not in found


def test_the_interval_shows_that_queries_and_subsets_differ():
    """One query of three is scored the wrong way round."""
    scores = WORTH * np.array([[1.0], [1.0], [-1.0]])
    found = summarise([Scores(scores, None)], [ADDED], draws=400)
    assert found["lds"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["lds"]["low"] == -1.0 and found["lds"]["high"] == 1.0
    assert found["lds"] == summarise([Scores(scores, None)], [ADDED], 400)["lds"]


def test_validity_tells_the_originals_answers_from_those_of_a_model_without_the_owner():
    """The owner's own column counts, and probabilities before scores."""
    sure, unsure = np.zeros((3, 4)), np.ones((3, 4))
    sure[[0, 1, 2], [0, 1, 2]] = 0.9, 0.8, 0.3
    unsure[[0, 1, 2], [0, 1, 2]] = 0.1, 0.8, 0.5
    found = summarise([Scores(-WORTH, sure, unsure)], [ADDED], draws=100)["validity"]
    assert found["value"] == pytest.approx((3 + 2.5 + 1) / 9, abs=1e-4)
    assert found["low"] < found["value"] < found["high"]
    raw = summarise([Scores.of_both(np.concatenate([WORTH, -WORTH]))], [ADDED], 100)
    assert raw["validity"]["value"] == raw["validity"]["low"] == 1.0


def test_the_ceiling_is_the_agreement_of_two_seeds():
    flipped = ADDED._replace(subsets=-ADDED.subsets)
    assert ceiling([ADDED]) is None
    assert ceiling([ADDED, ADDED]) == 1.0
    assert ceiling([ADDED, flipped]) == -1.0
    assert ceiling([ADDED, ADDED, flipped]) == pytest.approx(-1 / 3, abs=1e-4)


def test_a_subset_of_all_but_one_is_trained_on_once():
    masks = np.array([[1, 1, 1, 0], [1, 1, 0, 1]], bool)
    assert ADDED._replace(masks=masks).retrainings == 4
    assert ADDED.retrainings == 6 + 4
