"""Ten random configurations of every family: the logits of transformers."""

import importlib.util

import jax
import numpy as np
import pytest
import random_configs

from dareu_jax.models import Decoder, hidden_states, logits_of
from dareu_jax.models.hf.families import config_json, read_config
from dareu_jax.models.hf.families.family import Family
from dareu_jax.models.hf.folder import HfFolder
from dareu_jax.models.hf.weights import hf_arrays, load_params
from dareu_jax.parallel import make_mesh
from dareu_jax.registry import FAMILIES

pytestmark = pytest.mark.slow
NOT_DRAWN = {
    "phi3": {"resid_pdrop", "embd_pdrop"},
    "gpt_neox": {
        *("hidden_dropout", "classifier_dropout", "is_decoder"),
        "partial_rotary_factor",
    },
    "gemma2": {"hidden_act"},
    "gemma3_text": {"hidden_act", "_sliding_window_pattern"},
}
"""Fields that a family knows, though they matter in no logit."""


def test_every_field_that_a_family_reads_is_drawn():
    assert set(random_configs.BASES) == set(FAMILIES.names())
    for name in FAMILIES.names():
        family: Family = FAMILIES.get(name)
        drawn = set().union(*random_configs.configs(name))
        wanted = {*family.reads, *family.names.values()} - NOT_DRAWN.get(name, set())
        assert wanted <= drawn


@pytest.mark.parametrize("family", FAMILIES.names())
def test_logits_are_those_of_transformers(hf, tmp_path, family):
    golden, (tokens, mask) = np.load(random_configs.FILE), hf.inputs()
    apart = []
    for number, fields in enumerate(random_configs.configs(family)):
        source = HfFolder(hf.make_folder(tmp_path / str(number), fields))
        cfg = read_config(source.config, "config.json")
        params = load_params(source, cfg, make_mesh(1, 1, 1, jax.devices()[:1]))
        found = logits(Decoder(cfg), params, tokens[1:2, -7:], mask[1:2, -7:])
        apart.append(np.abs(found[0] - golden[f"{family}/{number}"]).max())
        assert read_config(config_json(cfg, 64), "config.json") == cfg
        for name, array in hf_arrays(cfg, params):
            np.testing.assert_array_equal(array, hf.tensor(name, array.shape))
    assert max(apart) < 2e-4, apart


def logits(model, params, tokens, mask):
    run = jax.jit(lambda p: logits_of(model, p, hidden_states(model, p, tokens, mask)))
    return np.asarray(run(params))


@pytest.mark.torch
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)
@pytest.mark.parametrize("family", FAMILIES.names())
def test_transformers_still_says_what_the_golden_arrays_say(hf, tmp_path, family):
    golden = np.load(random_configs.FILE)
    found = random_configs.by_transformers(
        lambda fields: hf.make_folder(tmp_path, fields), (family,)
    )
    for name, array in found.items():
        np.testing.assert_allclose(array, golden[name], atol=1e-5)
    for number, fields in enumerate(random_configs.configs(family)):
        written = config_json(read_config(fields, "config.json"), 64)
        written["pad_token_id"] = fields["pad_token_id"]
        again, _ = hf.run_transformers(hf.make_folder(tmp_path, written))
        wanted = golden[f"{family}/{number}"]
        np.testing.assert_allclose(again[1, -7:], wanted, atol=1e-5)
