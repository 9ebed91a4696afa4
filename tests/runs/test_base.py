"""The base of a run that begins with a model somebody else has fine-tuned."""

import io
import shutil
from pathlib import Path

import jax
import make_golden as hf
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from dareu_jax.config import load_config
from dareu_jax.data import load_tokenizer
from dareu_jax.errors import UserError
from dareu_jax.models import split
from dareu_jax.models.hf.imported import import_folder
from dareu_jax.runs import pipeline
from dareu_jax.runs.checks import check_base, check_models
from dareu_jax.runs.estimate import estimate, read_chips
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.plan import plan
from dareu_jax.runs.stages import Session, result_of
from dareu_jax.training.progress import Progress
from dareu_jax.training.tracking import Tracker

pytestmark = pytest.mark.slow

TINY = Path(__file__).resolve().parents[1] / "tiny.yaml"
VOCAB = 300
CONFIG = {**hf.config_of("qwen3"), "vocab_size": VOCAB, "torch_dtype": "float32"}
TEXTS = ["Where was the author born? The author was born in a town by the sea."] * 9


def quiet():
    return Progress(Console(file=io.StringIO()))


def folder_of(source, folder, config=CONFIG, texts=TEXTS, scale=1.0):
    """An imported model with a tokenizer trained on texts, its weights scaled."""
    load_tokenizer(None, texts, VOCAB, source)
    file = hf.make_folder(source, config) / "model.safetensors"
    scaled = {name: np.float32(scale) * x for name, x in load_file(file).items()}
    save_file(scaled, file, metadata={"format": "pt"})
    return import_folder(source, folder).folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A fine-tuned model and its base."""
    root = tmp_path_factory.mktemp("folders")
    tuned = folder_of(root / "hf_tuned", root / "tuned", scale=1.1)
    return tuned, folder_of(root / "hf_base", root / "base")


def run_of(folders, *overrides):
    tuned, base = folders
    return load_config(
        TINY,
        [
            f"model={{path: {tuned}}}",
            "methods=[dareu]",
            "finetune.epochs=0",
            "retrained.skip=true",
            "dareu={kl_anchor: mixture, data_epochs: 1, updates_per_batch: 1}",
            f"dareu.base_path={base}",
            *overrides,
        ],
    )


def test_the_base_of_a_fine_tuned_original_is_read_from_its_own_folder(
    folders, tmp_path
):
    stranger = {
        "dareu.actions": "top_k",
        "dareu.kl_anchor": "renamed",
        "dareu.prefix_share": 0.5,
    }
    rows = "methods=[dareu, prior_only]", f"overrides={{prior_only: {stranger}}}"
    cfg, said = run_of(folders, *rows), io.StringIO()
    progress = Progress(Console(file=said, width=400))
    results = pipeline.run(cfg, tmp_path / "run", progress)[0]
    models = results["models"]
    assert set(models) == {"original", "base", "dareu", "prior_only"}
    assert models["prior_only"] != models["dareu"]
    assert "those of base (" in said.getvalue()  # what validity compares with
    with Tracker(tmp_path) as tracker:
        inputs = Inputs(cfg, 0, tmp_path)
        session = Session(inputs, tracker)
        found, original = (result_of(session, x) for x in ("base", "original"))
    for base, tuned in zip(*map(jax.tree.leaves, (found, original)), strict=True):
        np.testing.assert_allclose(1.1 * base, tuned, rtol=1e-6)


def test_adapters_share_the_base_that_they_adapt(folders, tmp_path):
    own = f"dareu.base_path={folders[0]}"
    for overrides, is_shared in (((own,), True), ((), False)):
        inputs = Inputs(run_of(folders, "lora={rank: 2}", *overrides), 0, tmp_path)
        with Tracker(tmp_path) as tracker:
            session = Session(inputs, tracker)
            original = inputs.with_adapters(result_of(session, "original"), "model")
            base = jax.tree.leaves(result_of(session, "base"))
        frozen = jax.tree.leaves(split(original)[1])
        pairs = zip(base, frozen, strict=True)
        assert all((a is b) is is_shared for a, b in pairs)


def test_an_estimate_counts_a_base_of_its_own(folders):
    def held(*overrides):
        cfg = run_of(folders, "corpus.merge_others=true", *overrides)
        return estimate(cfg, read_chips("v5e-1")).held

    own = f"dareu.base_path={folders[0]}"
    whole, adapted, shared = (
        held(*x) for x in ((), ("lora={rank: 2}",), ("lora={rank: 2}", own))
    )
    assert whole["base"] == whole["weights"] > 0
    assert adapted["base"] == adapted["weights"] and shared["base"] == 0


def test_a_base_that_cannot_be_one_is_refused_in_one_line(folders, tmp_path):
    other = {
        "vocabulary": {"config": {**CONFIG, "vocab_size": VOCAB + 4}},
        "shape": {"config": {**CONFIG, "num_hidden_layers": 1}},
        "tokens": {"texts": [" ".join(map(str, range(400)))]},
    }
    said = {
        "vocabulary": r"base_path: .* has 304 embeddings, the model 300",
        "shape": r"holds a model of another shape than this run's",
        "tokens": r"base_path: token \d+ of .*; the base must have the same tokenizer",
        "nowhere": r"base_path: .*nowhere holds no imported model",
    }
    for name, what in other.items():
        folder_of(tmp_path / f"hf_{name}", tmp_path / name, **what)
    for name, message in said.items():
        cfg = run_of((folders[0], tmp_path / name))
        with pytest.raises(UserError, match=message) as refused:
            check_models(Inputs(cfg, 0, tmp_path / "run"))
        assert "\n" not in str(refused.value)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_without_a_base_the_anchor_is_refused_and_the_row_is_not_there(folders):
    cfg = run_of(folders, "dareu.base_path=null")
    with pytest.raises(UserError, match=r"finetune\.epochs tunes, or dareu\.base_path"):
        check_base("dareu", cfg)
    npo = run_of(folders, "dareu.base_path=null", "methods=[npo]")
    assert "base" not in [stage.name for stage in plan(npo)]
