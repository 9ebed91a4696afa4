"""What a run needs per device, and the configurations that no test can run."""

import dataclasses
from pathlib import Path

import pytest

from dareu_jax.config import build_config, load_config
from dareu_jax.errors import UserError
from dareu_jax.registry import MODELS
from dareu_jax.runs.estimate import GIB, estimate, read_chips
from dareu_jax.unlearning import method_config

REPO = Path(__file__).resolve().parents[2]
STUDIES = sorted((REPO / "experiments").glob("*/config.yaml"))
LARGE = ("tofu_llama2_7b", "tofu_qwen3_8b", "arxiv_llama2_7b", "tofu_llama32_1b")
PARAMETERS = {  # as their authors count them
    "llama2-7b": 6_738_415_616,
    "tinyllama-1.1b": 1_100_048_384,
    "llama32-1b": 1_235_814_400,
    "qwen3-8b": 8_190_735_360,
    "qwen3-0.6b": 596_049_920,
}
SEVEN = {"preset": "llama2-7b", "path": "not/there", "remat": True}


def large(**changes):
    """A run of Llama-2-7b with adapters, imported later."""
    tree = {
        "methods": ["dareu_paper"],
        "model": SEVEN,
        "lora": {},
        "corpus": {"max_prompt_tokens": 64, "max_response_tokens": 64},
        "mesh": {"data": 1, "fsdp": -1},
        **changes,
    }
    return build_config(tree)


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.parent.name)
def test_every_configuration_parses(study):
    cfg = load_config(study)
    assert cfg.scale.endswith(".") and cfg.corpus.forget
    assert all(method_config(cfg, name).seeds == cfg.seeds for name in cfg.methods)


@pytest.mark.parametrize("chips", ["v5e-16", "v5p-8", "v6e-8"])
@pytest.mark.parametrize("study", LARGE)
def test_the_large_configurations_fit_their_chips(study, chips):
    cfg = load_config(REPO / "experiments" / study / "config.yaml")
    found = estimate(cfg, read_chips(chips))
    assert found.fits and found.held["weights"] > 0.1 * GIB
    names = {row.name for row in found.rows}
    assert {"classifier", "rollout", "PPO update", "distillation"} <= names


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_of_large_models_have_their_parameters(name):
    assert MODELS.get(name)["vocab"] > 30_000
    one = large(model={**SEVEN, "preset": name}, lora=None, methods=["npo"])
    held = estimate(one, read_chips("v5p-2")).held
    assert held["weights"] == 2 * PARAMETERS[name]  # bfloat16
    assert held["optimiser"] == pytest.approx(2 * held["weights"], abs=64)


def test_sharing_a_base_saves_it():
    apart = large(classifier={"model": {**SEVEN, "path": "another"}, "lora": {}})
    same = large(classifier={"model": SEVEN, "lora": {}})
    held = [estimate(cfg, read_chips("v5e-16")).held for cfg in (apart, same)]
    base = held[0]["weights"]
    assert base == pytest.approx(2 * PARAMETERS["llama2-7b"] / 16, rel=0.01)
    assert held[0]["classifier"] - held[1]["classifier"] == base
    assert held[1]["classifier"] < 0.2 * base and held[1]["reference"] < 0.1 * base


def test_more_chips_need_less_of_each_and_what_is_too_large_says_so():
    many, few = (estimate(large(), read_chips(c)) for c in ("v5e-16", "v5e-4"))
    assert many.fits and many.peak.total < few.peak.total
    whole = large(lora=None, model={**SEVEN, "preset": "qwen3-8b"})
    assert not estimate(whole, read_chips("v5e-4")).fits


def test_chunks_bound_the_logits_of_a_large_vocabulary():
    model = {**SEVEN, "preset": "qwen3-8b"}
    sizes = {"max_prompt_tokens": 64, "max_response_tokens": 4096}
    found = estimate(large(model=model, corpus=sizes), read_chips("v5p-2"))
    rows = {row.name: row.own for row in found.rows}
    assert 0.9 * GIB < rows["fine-tuning"].logits <= GIB  # 74 GiB without


def test_a_small_run_reads_its_own_corpus():
    cfg = load_config(REPO / "tests" / "tiny.yaml")
    found = estimate(cfg, read_chips("cpu"))
    assert found.fits and {"loss update", "PPO update"} <= {r.name for r in found.rows}
    assert found.held["prior"] > 0 and found.held["adapters"] == 0


@pytest.mark.parametrize(
    ("changes", "chips", "message"),
    [
        ({}, "v4-8", "--chips v4-8: no such slice"),
        ({}, "v5p-3", "no such slice"),
        ({"mesh": {"data": 3, "fsdp": 1}}, "v5e-16", "needs 3 devices, 16 are there"),
        ({"dareu": {"batch_size": 20}}, "v5e-16", "batch 20 must divide by 16"),
        ({"model": {"path": "not/there"}}, "v5e-16", "set model.preset to its shape"),
        ({"corpus": {}}, "v5e-16", "corpus.max_prompt_tokens and"),
        (
            {"classifier": {"model": {"path": "x"}, "lora": {}}},
            "v5e-16",
            "classifier.model.path: nothing is imported in x yet",
        ),
        ({"classifier": {"lora": {}}}, "v5e-16", "classifier.lora adapts an imported"),
        ({"finetune": {"epochs": 0}}, "v5e-16", "needs model.path, the original, and"),
        ({"model": {**SEVEN, "layers": 2}}, "v5e-16", "model.layers = 2: the shape"),
        ({"reward": {"kernel": "x"}}, "v5e-16", "unknown kernel 'x'"),
        ({"reward": {"kernel": "bm25"}}, "v5e-16", "knows the size of the classifier"),
        (
            {"prior": {"model": {**SEVEN, "preset": "qwen3-0.6b"}}},
            "v5e-16",
            "prior must share the model's vocabulary",
        ),
    ],
)
def test_bad_input_is_named(changes, chips, message):
    with pytest.raises(UserError, match=message):
        estimate(large(**changes), read_chips(chips))


def test_a_row_counts_the_larger_of_layer_and_logits():
    row = estimate(large(), read_chips("v5e-16")).peak
    own = dataclasses.replace(row.own, layer=5, logits=7, cache=0, kept=0, gathered=0)
    own = dataclasses.replace(own, gradients=2, results=1)
    assert row._replace(held=100, own=own).total == 110


def test_only_the_same_folder_in_the_same_dtype_is_shared():
    same = large(classifier={"model": {**SEVEN, "path": "./not/there"}, "lora": {}})
    wide = large(classifier={"model": {**SEVEN, "param_dtype": "float32"}, "lora": {}})
    held = [estimate(cfg, read_chips("v5p-8")).held for cfg in (same, wide)]
    assert held[1]["classifier"] - held[0]["classifier"] == 2 * held[0]["weights"]


def test_what_only_some_methods_need_is_counted_with_them():
    cases = {"grad_diff": (0, 0), "dareu": (0, 1), "dareu_shuffled": (1, 1)}
    for name, (shuffled, prior) in cases.items():
        found = estimate(large(methods=[name]), read_chips("v5e-16"))
        steps = {row.name for row in found.rows}
        for part, there in [("shuffled classifier", shuffled), ("prior", prior)]:
            assert (found.held[part] > 0) == (part in steps) == bool(there)


def test_a_reference_teacher_answers_first():
    cfg = large(dareu={"distil_on": "reference"})
    names = [row.name for row in estimate(cfg, read_chips("v5e-16")).rows]
    assert "retain rollout" in names
