"""A finished run is loaded: nothing is trained, nothing is written, gaps are named."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dareu_jax.attribution import index
from dareu_jax.audits.stress import stress
from dareu_jax.audits.stress.held_out import fresh_size, held_out_inputs, indexer_of
from dareu_jax.config import load_config
from dareu_jax.errors import UserError
from dareu_jax.parallel import named_leaves
from dareu_jax.reporting.card import model_card
from dareu_jax.runs import benchmark as evaluating
from dareu_jax.runs import checks, pipeline, stages
from dareu_jax.runs.export import export_run
from dareu_jax.runs.folder import finished
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.load import opened, params_of, subject_of
from dareu_jax.storage import checkpoints, integrity
from dareu_jax.training.progress import Progress
from dareu_jax.training.tracking import Tracker

pytestmark = pytest.mark.slow

METHODS = "methods=[npo, dareu]"


@pytest.fixture(scope="module")
def tiny(request):
    return request.config.rootpath / "tests" / "tiny.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("finished") / "run"
    pipeline.run(load_config(tiny, [METHODS]), folder)
    return folder


@pytest.fixture
def untrained(monkeypatch):
    """Whatever begins or goes on with a training fails."""

    def never(*_, **__):
        raise AssertionError("a stage was run")

    monkeypatch.setattr(stages, "run_stage", never)
    monkeypatch.setattr(index, "run_stage", never)


def bytes_of(folder):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without(folder, tmp_path, *stages):
    """A copy of the run that lacks stages; none named: all of them."""
    there = shutil.copytree(folder, tmp_path / "run")
    for stage in stages or ("",):
        shutil.rmtree(there / "checkpoints" / ("seed_0" if stage else "") / stage)
    return there


def exported(there, row, tmp_path):
    return export_run(there, row, tmp_path / f"hf_{row}", model_card)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("row", ["original", "retrained", "npo", "dareu"])
def test_an_export_writes_nothing_into_the_run(folder, tmp_path, row):
    before = bytes_of(folder)
    assert (exported(folder, row, tmp_path) / "model.safetensors").exists()
    assert bytes_of(folder) == before


@pytest.mark.usefixtures("untrained")
def test_a_method_is_loaded_without_reward_judge_prior_or_original(folder, tmp_path):
    gone = ("reward", "judge", "prior", "finetune_original", "finetune_retrained")
    there = without(folder, tmp_path, *gone)
    whole, part = (exported(at, "npo", at.parent) for at in (folder, there))
    names = {path.name for path in whole.iterdir()}
    assert names == {path.name for path in part.iterdir()}
    for name in names:
        assert (whole / name).read_bytes() == (part / name).read_bytes()


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("row", "stage"),
    [
        ("original", "finetune_original"),
        ("retrained", "finetune_retrained"),
        ("unlearned", "npo"),
        ("dareu", "dareu"),
    ],
)
def test_what_is_missing_is_named(folder, tmp_path, row, stage):
    there = without(folder, tmp_path)
    before = bytes_of(there)
    with pytest.raises(UserError, match=rf"seed_0/{stage} is missing"):
        exported(there, row, tmp_path)
    with pytest.raises(UserError, match=rf"seed_0/{stage} is missing"):
        subject_of(there, row).load()
    assert bytes_of(there) == before and not (tmp_path / f"hf_{row}").exists()


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("suite", ["owners", "tofu"])
def test_evaluating_a_run_without_checkpoints_ends_in_a_line(
    folder, tmp_path, dareu, data_dir, suite
):
    there = without(folder, tmp_path)
    data = ("--data", data_dir / "tofu") if suite == "tofu" else ()
    asked = ("--suite", suite, "--out", tmp_path / "out", "--first", "2", *data)
    status, _, complaint = dareu("evaluate", there, "--model", "retrained", *asked)
    assert status == 2 and complaint.count("\n") == 1
    assert "finetune_retrained is missing" in complaint
    assert not (there / "checkpoints").exists()


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("stage", ["reward", "judge", "npo", "finetune_original"])
def test_stress_names_the_stage_that_is_missing(folder, tmp_path, stage):
    there = without(folder, tmp_path, stage)
    with pytest.raises(UserError, match=rf"seed_0/{stage} is missing"):
        stress(there, Progress(), ["prefill"])
    assert not (there / "checkpoints" / "seed_0" / stage).exists()


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("part", ["tokenizer", "data"])
def test_tokenizer_and_records_are_not_made_again_by_a_reader(folder, tmp_path, part):
    there = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(there / part)
    with pytest.raises(UserError, match=rf"run/{part} is missing"):
        exported(there, "npo", tmp_path)
    assert not (there / part).exists()


def test_a_damaged_model_is_refused_and_left_as_it_is(folder, tmp_path):
    there = shutil.copytree(folder, tmp_path / "run")
    step = max((there / "checkpoints/seed_0/npo").iterdir(), key=lambda x: int(x.name))
    largest = max(step.rglob("model/d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    before = bytes_of(there)
    with pytest.raises(UserError, match=rf"npo is damaged: step {step.name}: model/d"):
        exported(there, "npo", tmp_path)
    assert bytes_of(there) == before


def test_a_model_is_read_without_its_optimiser(folder, monkeypatch):
    inputs = opened(finished(folder)[0], 0, folder)
    read, restore = [], named_leaves

    def spied(tree):
        leaves = list(restore(tree))
        read.append({path for path, _ in leaves})
        return iter(leaves)

    params = params_of(inputs, "dareu")
    monkeypatch.setattr(checkpoints, "named_leaves", spied)
    step = folder / "checkpoints" / "seed_0" / "dareu"
    manifest = integrity.read_manifest(max(step.iterdir(), key=lambda x: int(x.name)))
    assert set(manifest["model"]) == {p for p, _ in restore(params)}
    assert any(path.startswith("opt_state") for path in manifest["leaves"])
    assert set(manifest["shared"].values()) == set(manifest["model"])


def test_earlier_steps_are_loaded_by_number(folder):
    inputs = opened(finished(folder)[0], 0, folder)
    last, same, before = (params_of(inputs, "npo", step) for step in (None, 3, 2))
    jax.tree.map(np.testing.assert_array_equal, last, same)
    gaps = jax.tree.map(lambda a, b: bool((a != b).any()), last, before)
    assert any(jax.tree.leaves(gaps))
    with pytest.raises(UserError, match=r"has no step 9; there are: 2, 3"):
        params_of(inputs, "npo", 9)


def test_the_same_command_restores_and_hashes_nothing(folder, tiny, monkeypatch):
    import orbax.checkpoint as ocp

    def never(*_, **__):
        raise AssertionError("something was restored or hashed")

    before = bytes_of(folder)
    for place, name in (
        (ocp.CheckpointManager, "restore"),
        (ocp.StandardCheckpointer, "restore"),
        (integrity, "_sha256"),
    ):
        monkeypatch.setattr(place, name, never)
    again = pipeline.run(load_config(tiny, [METHODS]), folder)
    assert again.results["models"].keys() == {"original", "retrained", "npo", "dareu"}
    after = bytes_of(folder)
    assert after == before


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "how",
    [
        ("reward.margin=true", "reward.owner_score=any_forget_owner"),
        ("reward.refresh_every=1",),
    ],
)
@pytest.mark.parametrize("kernel", ["tracin", "grad_dot", "ekfac"])
def test_the_check_before_a_run_trains_nothing(tiny, tmp_path, kernel, how):
    cfg = load_config(tiny, [METHODS, f"reward.kernel={kernel}", *how])
    if kernel == "tracin" and "reward.refresh_every=1" in how:
        with pytest.raises(UserError, match="tracin does not look at the model"):
            checks.check(cfg, tmp_path, Progress())
        return
    corpus = checks.check(cfg, tmp_path, Progress())
    assert len(corpus.train) == 32
    assert not (tmp_path / "checkpoints").exists()


def test_a_held_out_judge_has_the_classifier_of_its_configuration(folder):
    cfg, _ = finished(folder)
    inputs = opened(cfg, 0, folder)
    session = stages.Session(inputs, Tracker(folder / "stress"))
    context = SimpleNamespace(run=session, folder=folder / "stress")
    other = held_out_inputs(inputs)
    built = indexer_of(context, other, "classifier")
    assert inputs.cfg.classifier.model.preset == "decoder-40k"  # as it was
    assert other.cfg.classifier.model.preset == fresh_size(cfg) == "decoder-100k"
    shapes = jax.eval_shape(lambda: built.build.kernel.init(None, key=inputs.key("x")))
    embedding = shapes.params["decoder"]["embed"]["embedding"]
    assert embedding.shape[1] == other.decoder("classifier").cfg.embed
    assert embedding.shape[1] != inputs.decoder("classifier").cfg.embed
    place = built.build.where(0).folder
    assert place.is_relative_to(folder / "stress")


def test_an_index_is_called_reward_whatever_its_kernel(tiny, tmp_path):
    few = ("finetune.epochs=1", "methods=[]", "retrained.skip=true")
    cfg = load_config(tiny, ["reward.kernel=grad_dot", *few])
    inputs = Inputs(cfg, 0, tmp_path)
    session = stages.Session(inputs, Tracker(tmp_path))
    original = stages.result_of(session, "original")
    stages.result_of(session, "reward", {"original": original})
    there = {path.name for path in (tmp_path / "checkpoints" / "seed_0").iterdir()}
    assert "reward" in there and not any("classifier" in name for name in there)
    remedy = stages.indexer(session, "reward", original).build.where(0).remedy
    assert "classifier" not in remedy and "grad_dot" in remedy
    judge = stages.indexer(session, "judge", original).build.where(0).remedy
    assert judge == "lower evaluation.judge.learning_rate"


def test_an_evaluation_of_a_run_keeps_its_own_log_alone(folder, tmp_path):
    before = bytes_of(folder)
    asked = evaluating.Asked(model=folder, suite="owners", out=tmp_path / "out")
    evaluating.evaluated(asked, Progress())
    assert bytes_of(folder) == before
