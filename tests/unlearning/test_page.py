"""The page on adding an unlearning method: its file, its formula, a run of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from dareu_jax.config import Section, build_config
from dareu_jax.data import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    hidden_states,
    init_decoder,
    layer_states,
)
from dareu_jax.models.layers import RMSNorm
from dareu_jax.registry import METHODS
from dareu_jax.unlearning import MethodInputs, method_config

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "dareu_jax" / "unlearning" / "README.md").read_text()
RMU = Path(__file__).with_name("rmu.py")
MODEL = Decoder(
    DecoderConfig(vocab=12, layers=3, embed=8, heads=2, kv_heads=1, head_dim=4, ffn=16)
)


def block(language, number=0):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: init_decoder(MODEL, key=key))(jax.random.key(0))


def texts(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 12, (2, 8)).astype(np.int32)
    real = np.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    ones = np.ones((2, 3), bool)
    return TokenBatch(tokens[:, :3], ones, tokens[:, 3:], real, np.arange(2))


def test_the_page_prints_the_file():
    assert block("python") == RMU.read_text()


def test_the_configuration_of_the_page_is_one(rmu):
    tree = yaml.safe_load(block("yaml"))
    assert tree.pop("plugins") == ["rmu.py"]
    cfg = build_config(tree)
    assert isinstance(cfg.rmu, Section) and cfg.rmu.steering == 4.0
    row = method_config(cfg, "rmu")
    assert row.guards.utility_floor == 0.8 and row.rmu == cfg.rmu


def test_a_variant_is_a_row_of_its_own(rmu):
    exec(block("python", 1), {"METHODS": METHODS})
    far = method_config(build_config({"rmu": {"alpha": 3.0}}), "rmu_far")
    assert (far.rmu.steering, far.rmu.alpha) == (8.0, 3.0)


def made(params, **options):
    cfg = build_config({"rmu": options})
    inputs = MethodInputs(
        model=MODEL,
        reference=params,
        forget_columns=(0,),
        forget_owner=jnp.zeros(2, jnp.int32),
        response_tokens=5,
        stop_ids=(2,),
        gold_length=4.0,
    )
    return METHODS.get("rmu").make(cfg, inputs)


def test_the_last_layers_states_are_what_the_final_norm_is_given(params):
    tokens, mask = jnp.asarray(texts(0).response), jnp.asarray(texts(0).response_mask)
    states = layer_states(MODEL, params, tokens, mask, 3)
    norm = RMSNorm(MODEL.cfg.norm_eps, MODEL.cfg.param_dtype)
    out = norm.apply({"params": params["final_norm"]}, states)
    wanted = hidden_states(MODEL, params, tokens, mask)
    np.testing.assert_allclose(out, wanted, atol=1e-6)
    with pytest.raises(AssertionError):
        layer_states(MODEL, params, tokens, mask, 4)


@pytest.mark.parametrize("layer", [1, 2])
def test_layers_behind_the_one_that_is_read_change_nothing(params, layer):
    def total(params):
        text = texts(0)
        states = layer_states(MODEL, params, text.response, text.response_mask, layer)
        return jnp.sum(states**2)

    gradient = jax.grad(total)(params)["layers"]["mlp"]["down"]["kernel"]
    sizes = np.abs(np.asarray(gradient)).max(axis=(1, 2))
    assert (sizes[:layer] > 0).all() and not sizes[layer:].any()


def test_rmu_is_what_its_formula_says(rmu, params):
    moved = jax.tree.map(lambda x: 1.1 * x, params)
    method = made(params, layer=2, steering=3.0, alpha=0.5, learning_rate=1e-3)
    state = method.init(moved, key=jax.random.key(4))
    u = np.asarray(state.direction)
    assert (u > 0).all() and np.linalg.norm(u) == pytest.approx(1.0, rel=1e-6)
    forget, retain = texts(1), texts(2)

    def states(params, batch):
        tokens = jnp.concatenate([batch.prompt, batch.response], axis=1)
        mask = jnp.concatenate([batch.prompt_mask, batch.response_mask], axis=1)
        out = np.asarray(layer_states(MODEL, params, tokens, mask, 2))
        return out[:, 3:][batch.response_mask]  # [tokens, D]

    lost = np.mean((states(moved, forget) - 3.0 * u) ** 2)
    held = np.mean((states(moved, retain) - states(params, retain)) ** 2)
    batch = {"forget": [forget], "retain": [retain]}
    new, metrics = method.step(state, batch, 0, key=jax.random.key(0))
    found = {name: float(value) for name, value in metrics.items()}
    wanted = {"loss": lost + 0.5 * held, "forget_loss": lost, "retain_loss": held}
    assert found == pytest.approx(wanted, rel=1e-5)
    _, after = method.step(new, batch, 1, key=jax.random.key(0))
    assert after["loss"] < metrics["loss"]


def test_a_layer_that_is_not_there_is_refused(rmu, params):
    with pytest.raises(UserError, match=r"rmu\.layer = 4: the model has 3 layers"):
        made(params, layer=4)


def test_a_run_takes_the_file_and_its_section(tmp_path):
    config = tmp_path / "config.yaml"
    tree = yaml.safe_load((REPO / "tests" / "tiny.yaml").read_text())
    tree |= {
        "plugins": [str(RMU)],
        "methods": ["rmu"],
        "rmu": {"batch_size": 8, "steps": 2, "learning_rate": 0.01},
        "overrides": {"rmu": {"rmu.steps": 3}},
    }
    config.write_text(yaml.safe_dump(tree))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dareu_jax", "run", config, "--out", out]
    said = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert list(results["models"]) == ["original", "retrained", "rmu"]
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "rmu" and "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert not (out / "checkpoints" / "seed_0" / "prior").exists()
    command = [*command, "rmu.alphas=2"]
    wrong = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert wrong.returncode == 2 and "did you mean" in wrong.stderr
