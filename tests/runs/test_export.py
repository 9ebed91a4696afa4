"""A Hugging Face folder in, a run on it, Hugging Face folders out."""

import dataclasses
import importlib.util
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import make_golden as hf
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from dareu_jax.cli import main
from dareu_jax.cli.app import app
from dareu_jax.config import load_config
from dareu_jax.data import load_tokenizer, tokenise
from dareu_jax.errors import Caution, UserError
from dareu_jax.evaluation.run_suite import mean_logp
from dareu_jax.models import Decoder, abstract_params, split
from dareu_jax.models.hf.families import read_config
from dareu_jax.models.hf.folder import HfFolder
from dareu_jax.models.hf.imported import import_folder, open_imported
from dareu_jax.models.loaded import load_model
from dareu_jax.parallel import make_mesh
from dareu_jax.reporting import print_results
from dareu_jax.reporting.card import model_card
from dareu_jax.reporting.report import render
from dareu_jax.runs import pipeline
from dareu_jax.runs.estimate import estimate, read_chips
from dareu_jax.runs.export import export_run, write_small_files
from dareu_jax.runs.folder import finished as finished_run
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.load import reference_of, subject_of
from dareu_jax.runs.stages import Session, result_of
from dareu_jax.training.progress import Progress
from dareu_jax.training.tracking import Tracker

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
VOCAB = 300


CONFIG = {**hf.config_of("qwen3"), "vocab_size": VOCAB, "torch_dtype": "float32"}
MANY_TEXTS = [f"{i} {i * i} {i**3} words and numbers" for i in range(400)]
TEXTS = ["Where was the author born? The author was born in a town by the sea."] * 9


def quiet():
    return Progress(Console(file=io.StringIO()))


def run_imported(imported, folder, *overrides):
    """Runs tests/tiny.yaml on an imported model; returns the results."""
    path = f"model={{path: {imported.folder}}}"
    cfg = load_config(TESTS / "tiny.yaml", [path, *overrides])
    return pipeline.run(cfg, folder, quiet())[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Hugging Face folder with a tokenizer, in three files."""
    folder = tmp_path_factory.mktemp("source") / "hf"
    load_tokenizer(None, TEXTS, VOCAB, folder)
    return hf.make_folder(folder, CONFIG, shards=3)


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    return import_folder(source, tmp_path_factory.mktemp("imported") / "model")


@pytest.fixture(scope="module")
def finished(imported, tmp_path_factory):
    """A run whose original, and retrained for want of one, is the imported model."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    results = run_imported(
        imported,
        folder,
        "methods=[npo]",
        "finetune.epochs=0",
        f"retrained.path={imported.folder}",
        "npo.learning_rate=0.01",
    )
    return SimpleNamespace(folder=folder, results=results)


def test_a_run_takes_an_imported_model_as_it_is(finished):
    models = finished.results["models"]
    assert set(models) == {"original", "retrained", "npo"}
    assert models["original"]["forget_rouge"] == models["retrained"]["forget_rouge"]
    stages = {p.name for p in (finished.folder / "checkpoints" / "seed_0").iterdir()}
    assert "finetune_original" not in stages and "npo" in stages
    assert not (finished.folder / "tokenizer").exists()


def test_records_beyond_the_context_are_told(finished, tmp_path, monkeypatch):
    """Where lengths are read, in every command that reads a run's configuration."""
    monkeypatch.setattr("dareu_jax.models.hf.imported.Imported.context", 30)
    inputs = Inputs(finished_run(finished.folder)[0], 0, tmp_path)
    with pytest.warns(Caution, match="records are longer than the 30 tokens") as said:
        p, t = inputs.lengths
    records = inputs.corpus.train + inputs.corpus.test
    tokens = inputs.tokens(records)
    whole = tokens.prompt_mask.sum(axis=1) + tokens.response_mask.sum(axis=1)
    assert p + t > 30 and len(said) == 1
    told = f"{(whole > 30).sum()} of {len(records)} records are longer than the 30"
    assert str(said[0].message).startswith(told)


def test_a_run_without_a_retrained_model_says_so(imported, tmp_path, capsys):
    overrides = ("methods=[npo]", "finetune.epochs=0", "retrained.skip=true")
    results = run_imported(imported, tmp_path / "run", *overrides)
    assert set(results["models"]) == {"original", "npo"} and results["tow"] == {}
    assert "retrained_likelihood" not in results["models"]["npo"]
    assert "attribution_unseen" in results["models"]["npo"]
    print_results(Console(width=200), results)
    assert "this run has no retrained model" in capsys.readouterr().out
    assert "is part of this run" in render(results, [], [], "")
    out = export_run(tmp_path / "run", "unlearned", tmp_path / "out", model_card)
    assert "| metric | original | npo |" in (out / "README.md").read_text()


def test_an_exported_original_is_the_imported_folder(source, finished, tmp_path):
    out = export_run(finished.folder, "original", tmp_path / "out", model_card)
    before, after = HfFolder(source), HfFolder(out)
    assert after.shapes == before.shapes
    for name in before.shapes:
        np.testing.assert_array_equal(after.read(name), before.read(name))
    for key, value in before.config.items():
        assert after.config[key] == value, key
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_a_family_that_is_not_known_here_is_written_as_one_that_is(imported, tmp_path):
    shutil.copytree(imported.folder, tmp_path / "other")
    path = tmp_path / "other" / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "mine"}))
    other = open_imported(tmp_path / "other")
    cfg = dataclasses.replace(other.cfg, family="mine")
    inputs = SimpleNamespace(
        imported=other,
        model=Decoder(cfg),
        tokenizer=SimpleNamespace(pad_id=0, eos_id=2),
    )
    (tmp_path / "out").mkdir()
    write_small_files(cast(Any, inputs), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == imported.cfg.family != "mine"
    assert read_config(written, "config.json") == cfg


def test_an_unlearned_model_differs_and_can_be_imported_again(finished, tmp_path):
    out = export_run(finished.folder, "unlearned", tmp_path / "out", model_card)
    again = import_folder(out, tmp_path / "again")
    shapes = hf.shapes_of(CONFIG)
    moved = [
        np.abs(HfFolder(out).read(name) - hf.tensor(name, shape)).max()
        for name, shape in shapes.items()
    ]
    assert max(moved) > 1e-3
    card = (out / "README.md").read_text()
    assert "| metric | original | retrained | npo |" in card and "forget_rouge" in card
    assert finished.results["scale"] in card and "## Limits" in card
    assert again.cfg == open_imported(tmp_path / "again").cfg


def test_a_model_trained_from_scratch_is_exported_too(tmp_path):
    overrides = ["methods=[]", "finetune.epochs=1", "classifier.epochs=1"]
    overrides += ["evaluation.judge.epochs=1"]
    cfg = load_config(TESTS / "tiny.yaml", overrides)
    pipeline.run(cfg, tmp_path / "run", quiet())
    out = export_run(tmp_path / "run", "original", tmp_path / "out", model_card)
    assert HfFolder(out).config["model_type"] == "llama"
    ids = json.loads((out / "generation_config.json").read_text())
    assert ids == {"pad_token_id": 0, "eos_token_id": 2}
    again = import_folder(out, tmp_path / "again")
    assert again.cfg.tied and again.cfg.layers == 1


def test_imported_parameters_go_where_the_mesh_wants_them(imported):
    one, spread = imported.load(make_mesh(-1)), imported.load(make_mesh(1, 4, 2))
    jax.tree.map(np.testing.assert_array_equal, one, spread)
    kernel = spread["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8


@pytest.fixture(scope="module")
def adapted(imported, tmp_path_factory):
    """A run that fine-tunes and unlearns adapters on the imported model."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    run_imported(
        imported,
        folder,
        "methods=[dareu, retrain_lora]",
        "lora={rank: 2, alpha: 4, targets: [q, v, down]}",
        "finetune.epochs=1",
        "finetune.learning_rate=0.02",
        "dareu.learning_rate=0.01",
    )
    return folder


def test_adapters_alone_are_trained_and_kept(adapted, source):
    rows = "dareu", "retrain_lora"
    for stage in ("finetune_original", "finetune_retrained", *rows):
        newest = max((adapted / "checkpoints" / "seed_0" / stage).iterdir())
        leaves = json.loads((newest / "integrity.json").read_text())["leaves"]
        decoder = [path for path in leaves if "layers/" in path]
        assert decoder and all("lora_" in path for path in decoder)


def test_merged_and_adapter_exports_are_one_model(adapted, source, tmp_path):
    merged = HfFolder(export_run(adapted, "dareu", tmp_path / "merged", model_card))
    out = export_run(adapted, "dareu", tmp_path / "adapter", model_card, adapter=True)
    fields = json.loads((out / "adapter_config.json").read_text())
    assert fields["r"] == 2 and fields["lora_alpha"] == 4
    assert fields["target_modules"] == ["q_proj", "v_proj", "down_proj"]
    assert fields["base_model_name_or_path"] == str(source)
    adapter = load_file(str(out / "adapter_model.safetensors"))
    base, moved = HfFolder(source), 0
    for name in base.shapes:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        wanted = base.read(name)
        if f"{module}.lora_A.weight" in adapter:
            a, b = (adapter.pop(f"{module}.lora_{x}.weight") for x in "AB")
            wanted, moved = wanted + 4 / 2 * b @ a, moved + 1
        np.testing.assert_allclose(merged.read(name), wanted, atol=1e-6)
    assert not adapter and moved == 3 * 2


def test_retraining_by_adapters_leaves_a_model_of_the_runs_shape(
    source, imported, tmp_path
):
    how = ["methods=[retrain_lora]", "finetune.epochs=1", "retrained.skip=true"]
    how += ["classifier.epochs=1", "evaluation.judge.epochs=1"]
    own = "retrain_lora={rank: 2, targets: [q], batch_size: 8, learning_rate: 0.02}"
    results = run_imported(imported, tmp_path / "run", *how, own)
    assert set(results["models"]) == {"original", "base", "retrain_lora"}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["stage"] == "retrain_lora"]
    assert len(rows) == 5 * 3 and rows[-1]["loss"] < rows[0]["loss"]  # 24 records
    out = export_run(tmp_path / "run", "retrain_lora", tmp_path / "out", model_card)
    base, tuned = HfFolder(source), HfFolder(out)
    assert tuned.shapes == base.shapes
    for name in base.shapes:
        moved = not np.array_equal(base.read(name), tuned.read(name))
        assert moved == name.endswith("q_proj.weight"), name


def test_an_earlier_step_is_exported_when_asked_for(finished, tmp_path, dareu):
    steps = sorted(
        int(path.name)
        for path in (finished.folder / "checkpoints/seed_0/npo").iterdir()
        if path.name.isdecimal()
    )
    last, at_last, before = (
        HfFolder(
            export_run(finished.folder, "npo", tmp_path / out, model_card, step=step)
        )
        for out, step in [("out", None), ("last", steps[-1]), ("before", steps[-2])]
    )
    for name in last.shapes:
        np.testing.assert_array_equal(at_last.read(name), last.read(name))
    assert any((before.read(x) != last.read(x)).any() for x in last.shapes)
    card = (tmp_path / "before" / "README.md").read_text()
    assert f"seed 0 at step {steps[-2]}; the numbers are of its last step" in card

    command = ("export", finished.folder, "--out", tmp_path / "x", "--step", 999)
    status, _, complaint = dareu(*command)
    there = ", ".join(map(str, steps))
    assert status == 2 and f"has no step 999; there are: {there}" in complaint
    status, _, complaint = dareu(*command, "--model", "original")
    assert status == 2 and "'original' is of no method; leave --step out" in complaint
    assert not (tmp_path / "x").exists()


def test_a_run_is_evaluated_on_its_own_records(finished, tmp_path, dareu):
    before = sorted(finished.folder.rglob("*"))
    how = ["--suite", "owners", "--out", tmp_path / "out", "--max-new-tokens", 4]
    status, printed, complaint = dareu("evaluate", finished.folder, *how)
    assert status == 0 and "forget prob" in printed, complaint
    assert sorted(finished.folder.rglob("*")) == before
    log = json.loads((tmp_path / "out" / "OWNERS_EVAL.json").read_text())
    subject = subject_of(finished.folder, "npo", 0)
    records, model = subject.run.split, subject.load()
    for name, rows in vars(records).items():
        assert len(log[f"{name}_Q_A_ROUGE"]["value_by_index"]) == len(rows) > 0
    tokens = tokenise(
        records.forget,
        model.tokenizer,
        subject.run.wording,
        max_prompt=96,
        max_response=96,
    )
    probs = np.exp(mean_logp(model.decoder, model.params, tokens))
    found = log["forget_Q_A_Prob"]["value_by_index"].values()
    np.testing.assert_allclose([row["prob"] for row in found], probs, rtol=1e-4)


def test_adapters_are_merged_before_a_run_is_evaluated(adapted, tmp_path):
    """Of a run that another model is compared with it is the retrained model."""
    export_run(adapted, "retrained", tmp_path / "hf", model_card)
    again = load_model(import_folder(tmp_path / "hf", tmp_path / "model").folder)
    model = reference_of(adapted, None).load()
    assert model.fingerprint == again.fingerprint
    assert model.tokenizer.fingerprint == again.tokenizer.fingerprint
    assert model.context == again.context == 64


def test_evaluate_names_what_a_run_has(finished, tmp_path, dareu):
    cases = {
        "known: unlearned, original, retrained, npo": ["--model", "x"],
        "has no seed 7; known: [0]": ["--seed", "7"],
        "--forget owner_00: owns no record (did you mean": ["--forget", "owner_00"],
    }
    for message, options in cases.items():
        how = ["--suite", "owners", "--out", tmp_path / "out", *options]
        status, _, complaint = dareu("evaluate", finished.folder, *how)
        assert status == 2 and message in complaint
    assert not (tmp_path / "out").exists()


def test_an_adapter_needs_a_run_with_adapters(finished, tmp_path):
    with pytest.raises(UserError, match="no adapters; leave --adapter out"):
        export_run(finished.folder, "npo", tmp_path / "x", model_card, adapter=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.torch
@pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed"
)
def test_peft_reads_the_adapter(adapted, source, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = export_run(adapted, "dareu", tmp_path / "adapter", model_card, adapter=True)
    merged = export_run(adapted, "dareu", tmp_path / "merged", model_card)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokens, mask = (torch.tensor(np.asarray(x, np.int64)) for x in hf.inputs())
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        model = PeftModel.from_pretrained(base, out).eval()
        found = model(
            input_ids=tokens, attention_mask=mask, position_ids=position
        ).logits.numpy()
    wanted, _ = hf.run_transformers(merged)
    keep = np.asarray(mask, bool)
    np.testing.assert_allclose(found[keep], wanted[keep], atol=1e-4)


@pytest.mark.torch
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)
def test_transformers_reads_the_exported_folder(source, finished, tmp_path):
    out = export_run(finished.folder, "original", tmp_path / "out", model_card)
    for found, wanted in zip(hf.run_transformers(out), hf.run_transformers(source)):
        np.testing.assert_array_equal(found, wanted)


def run_cli(arguments, capsys):
    """Exit status and stderr of ``dareu ARGUMENTS``."""
    with pytest.raises(SystemExit) as end:
        main.main(lambda: app([str(a) for a in arguments], standalone_mode=False))
    return end.value.code, capsys.readouterr().err


def test_parts_that_adapt_one_folder_share_its_frozen_parameters(imported, tmp_path):
    """Policy, reference, classifier, judge and prior: one base, five adapter sets."""
    base = f"{{path: {imported.folder}, param_dtype: bfloat16}}"
    parts = [
        f"{name}={{model: {base}, lora: {{rank: 4}}}}"
        for name in ("classifier", "prior", "evaluation.judge")
    ]
    how = ("lora={rank: 2}", "finetune.epochs=0", "retrained.skip=true")
    cfg = load_config(TESTS / "tiny.yaml", [f"model={base}", *parts, *how])
    with Tracker(tmp_path) as tracker:
        run = Inputs(cfg, 0, tmp_path)
        session = Session(run, tracker)
        original = {"original": result_of(session, "original")}
        policy = run.with_adapters(original["original"], "model")
        kernel, index = result_of(session, "reward", original)
        judge = result_of(session, "judge", original)[1]
        models = {"policy": policy, "prior": result_of(session, "prior")[1]}
        models |= {"classifier": index["decoder"], "judge": judge["decoder"]}
        scores = kernel.prefix_score(policy, index, run.tokens(run.split.forget))
    assert np.isfinite(np.asarray(scores)).all()
    held = {name: jax.tree.leaves(split(params)[1]) for name, params in models.items()}
    for leaves in held.values():
        assert all(a is b for a, b in zip(leaves, held["policy"], strict=True))
        assert all(leaf.dtype == "bfloat16" for leaf in leaves)
    for name, params in models.items():
        own = jax.tree.leaves(split(params)[0])
        assert all(leaf.dtype == "float32" for leaf in own)
        trained = any(np.asarray(leaf).any() for leaf in own if leaf.shape[-2] == 4)
        assert trained == (name != "policy")
    kept = kernel.init(None, key=jax.random.key(0)).params["decoder"]
    assert not split(kept)[1]  # a checkpoint holds no copy of the base


def test_an_estimate_reads_shapes_and_no_corpus(imported):
    lengths = ("corpus.max_prompt_tokens=16", "corpus.max_response_tokens=16")
    there = (f"model={{path: {imported.folder}}}", "corpus.source=tofu")
    elsewhere = ("corpus.path=/nowhere", "corpus.forget=[author_199]")
    cfg = load_config(TESTS / "tiny.yaml", [*there, *elsewhere, *lengths])
    leaves = jax.tree.leaves(abstract_params(imported.cfg))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    held = estimate(cfg, read_chips("cpu")).held
    assert held["weights"] == held["reference"] == size


def no_eos(folder):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("eos_token")
    path.write_text(json.dumps(config))


def fewer_rows(folder):
    hf.make_folder(folder, {**CONFIG, "vocab_size": 250})


SPOILT = {
    "no eos": (no_eos, "has no eos token"),
    "vocabularies differ": (fewer_rows, "no embedding of"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_cannot_be_imported_leaves_nothing(tmp_path, capsys, how):
    folder = tmp_path / "hf"
    load_tokenizer(None, TEXTS, VOCAB, folder)
    hf.make_folder(folder, CONFIG)
    spoil, message = SPOILT[how]
    spoil(folder)
    code, said = run_cli(["import", folder, "--out", tmp_path / "out"], capsys)
    assert code == 2 and message in said and "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_import_and_export_refuse_a_folder_that_is_there(source, finished, capsys):
    there = source.parent
    for command in (["import", source], ["export", finished.folder]):
        code, said = run_cli([*command, "--out", there], capsys)
        assert code == 2 and "exists already" in said


def test_export_names_what_there_is(finished, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    cases = {
        "known: unlearned, original, retrained, npo": [finished.folder, "--model", "x"],
        "has no seed 7; known: [0]": [finished.folder, "--seed", "7"],
        "holds no finished run": [tmp_path],
    }
    for message, arguments in cases.items():
        code, said = run_cli(["export", *arguments, *out], capsys)
        assert code == 2 and message in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model={path: HF}"], "run dareu import"),
        (["model={path: /nowhere}"], "holds no imported model"),
        (["model={path: IN}", "finetune.epochs=0"], "and retrained.path"),
        (["finetune.epochs=0"], "it needs model.path"),
        (["lora={targets: [query]}"], "no dense layer 'query' in this model"),
        (["lora={rank: 0}"], r"lora\.rank = 0"),
        (["corpus.template=chat"], "no chat template"),
        (["model={path: IN, layers: 3}"], "model.layers = 3: the shape is that of"),
        (["model={path: IN}", "retrained.path=HF"], "retrained.path: "),
        (
            ["prior.model.path=IN", "corpus.vocab_size=280"],
            "the prior must share the model's vocabulary",
        ),
        (["classifier.lora={}"], "classifier.lora adapts an imported model"),
        (
            ["classifier={model: {path: IN}, lora: {targets: [x]}}"],
            "classifier.lora.targets: no dense layer 'x'",
        ),
        (
            ["evaluation.judge.model={path: IN, layers: 9}"],
            r"evaluation\.judge\.model\.layers = 9: the shape is that of",
        ),
        (["model={path: IN}", "corpus.tokenizer=LARGE"], "the model has 300"),
    ],
)
def test_a_run_says_what_is_wrong_with_an_imported_model(
    source, imported, tmp_path, overrides, message
):
    load_tokenizer(None, MANY_TEXTS, 400, tmp_path / "large")
    places = {"HF": source, "IN": imported.folder, "LARGE": tmp_path / "large"}
    for name, place in places.items():
        overrides = [o.replace(name, str(place)) for o in overrides]
    with pytest.raises(UserError, match=message):
        cfg = load_config(TESTS / "tiny.yaml", ["methods=[npo]", *overrides])
        pipeline.run(cfg, tmp_path / "run", quiet())
    assert not (tmp_path / "run" / "config.resolved.yaml").exists()
