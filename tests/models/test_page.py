"""The page on adding a family: its block runs and gives the right logits."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from dareu_jax.data import load_tokenizer
from dareu_jax.models import Decoder, hidden_states, logits_of
from dareu_jax.models.hf.families import config_json, read_config
from dareu_jax.models.hf.folder import HfFolder
from dareu_jax.models.hf.imported import open_imported
from dareu_jax.models.hf.weights import load_params
from dareu_jax.parallel import make_mesh
from dareu_jax.registry import FAMILIES

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "dareu_jax" / "models" / "README.md").read_text(encoding="utf-8")
(BLOCK,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SEED = {"model_type": "seed_oss", "head_dim": None, "attention_bias": True}
SEED |= {"attention_out_bias": False, "residual_dropout": 0.1}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The page's file; the registry is left as it was."""
    for name in ("_entries", "_about", "_options"):
        monkeypatch.setattr(FAMILIES, name, dict(getattr(FAMILIES, name)))
    file = tmp_path / "seed_oss.py"
    file.write_text(BLOCK)
    return file


@pytest.fixture
def page(plugin):
    """What the block registers."""
    exec(BLOCK, {"__name__": "page"})


def seed_folder(hf, folder, **changes):
    """A tiny folder with the tensors of `qwen2` under the name of Seed-OSS."""
    hf.make_folder(folder, hf.config_of("qwen2") | changes)
    fields = {**hf.TINY, "tie_word_embeddings": True, "rope_theta": 1e6, **SEED}
    (folder / "config.json").write_text(json.dumps(fields | changes))
    return folder


def test_the_same_layers_give_the_logits_that_transformers_gave(hf, page, tmp_path):
    source = HfFolder(seed_folder(hf, tmp_path / "hf"))
    cfg = read_config(source.config, "config.json")
    params = load_params(source, cfg, make_mesh(1, 1, 1, jax.devices()[:1]))
    model, (tokens, mask) = Decoder(cfg), hf.inputs()
    logits = logits_of(model, params, hidden_states(model, params, tokens, mask))
    wanted = np.load(hf.GOLDEN / "qwen2.npz")["logits"]
    assert np.abs(np.asarray(logits) - wanted)[mask].max() < 2e-4


def test_an_absent_field_means_what_transformers_takes_it_for(hf, page):
    from transformers import AutoConfig

    given = {name: x for name, x in hf.TINY.items() if name != "num_key_value_heads"}
    given |= {"model_type": "seed_oss", "num_attention_heads": 8}
    theirs = AutoConfig.for_model(**given).to_dict()
    ours = read_config(given, "config.json")
    assert ours.kv_heads == theirs["num_key_value_heads"]
    assert ours.head_dim == theirs["head_dim"]
    assert ours.qkv_bias == theirs["attention_bias"]
    assert ours.tied == theirs["tie_word_embeddings"]


def test_it_is_written_as_it_was_or_as_what_computes_the_same(hf, page, tmp_path):
    folder = HfFolder(seed_folder(hf, tmp_path / "hf"))
    cfg = read_config(folder.config, "config.json")
    fields = config_json(cfg, 64)
    assert fields["model_type"] == "seed_oss"
    assert read_config(fields, "config.json") == cfg
    fields = config_json(dataclasses.replace(cfg, family="not_here"), 64)
    assert fields["model_type"] == "qwen2"
    assert read_config(fields, "config.json") == cfg


def test_a_folder_of_the_family_is_imported_with_the_plugin_alone(
    hf, plugin, dareu, tmp_path
):
    source = tmp_path / "source"
    load_tokenizer(None, ["Where is the boat? By the sea."] * 9, 300, source)
    seed_folder(hf, source, vocab_size=300)
    out = tmp_path / "out"
    status, _, said = dareu("import", source, "--out", out)
    assert status == 2 and "model_type = 'seed_oss' is not supported" in said
    status, said, complaint = dareu("import", source, "--out", out, "--plugin", plugin)
    assert status == 0, complaint
    assert said == f"model.path={out}\n"
    assert open_imported(out).cfg.qkv_bias
    status, said, _ = dareu("list", "families", "--plugin", plugin)
    assert status == 0 and re.search("^seed_oss +Seed-OSS$", said, re.MULTILINE)
