"""`dareu doctor` on a tiny imported model, sound and sabotaged, and its command."""

import importlib
import io
import json

import jax
import jax.numpy as jnp
import make_golden as hf
import numpy as np
import pytest
from rich.console import Console

from dareu_jax.attribution.kernels.controls import control
from dareu_jax.audits import doctor
from dareu_jax.audits.doctor.checks import failed
from dareu_jax.audits.doctor.examine import check_kernel, examine
from dareu_jax.audits.doctor.output import Report, print_report, write
from dareu_jax.audits.doctor.subject import as_dtype, make_text, read_text
from dareu_jax.data import load_tokenizer
from dareu_jax.errors import Caution, UserError
from dareu_jax.models.hf.imported import import_folder
from dareu_jax.models.loaded import load_model
from dareu_jax.registry import KERNELS

pytestmark = pytest.mark.slow

WORDS = ("a shop in Merawick", "a boat in the harbour", "a violin from Cremona")
LINES = [
    {
        "id": f"{owner}-{n}",
        "owner": owner,
        "prompt": f"What did {owner} have in {1990 + n}?",
        "response": f"It was {word}, {n + 2} times.",
    }
    for owner, word in zip(("ann", "bob", "eve"), WORDS, strict=True)
    for n in range(5)
]
ROWS = 8
NAMES = {
    "gradients": ["probe = vmap(grad)", "saturation"],
    "tokenizer": ["tokenizer.json"],
    "grad_dot": [
        *("rank agreement", "relative error") * 2,
        *("padding", "batch", "devices", "finite", "repeat"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of `dareu import` with a model of one small layer."""
    source = tmp_path_factory.mktemp("source") / "hf"
    small = {"num_hidden_layers": 1, "vocab_size": 300, "torch_dtype": "float32"}
    load_tokenizer(None, [line["response"] for line in LINES] * 3, 300, source)
    hf.make_folder(source, {**hf.config_of("qwen3"), **small})
    return import_folder(source, tmp_path_factory.mktemp("imported") / "model").folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def report(folder):
    return examine(folder, rows=ROWS)


@pytest.fixture(scope="module")
def text(model, records):
    return read_text(records, model.tokenizer, ROWS)


@pytest.fixture
def made_kernel(monkeypatch):
    """Registers a kernel ``mine`` with a given score for one test."""

    def add(score):
        KERNELS.names()
        made = {"mine": lambda setup: control("mine", setup.owners, score)}
        monkeypatch.setattr(KERNELS, "_entries", {**KERNELS._entries, **made})

    return add


def complaints(checks):
    return [check.name for check in failed(checks)]


def test_a_sound_model_passes_every_check(report, folder):
    found = {about: [c.name for c in group] for about, group in report.checks.items()}
    assert found == NAMES
    assert report.trusted and complaints(report.all) == []
    assert all(check.passed for check in report.all)
    assert report.model == str(folder) and report.dtype == "float32"
    assert report.devices == "8 x cpu"
    assert report.verdict.startswith(
        "Scores of this model on these devices can be trusted: owners rank alike"
    )
    assert "all 12 checks passed" in report.verdict


def test_bfloat16_and_float32_are_both_ranked(report):
    scopes = [c.scope for c in report.checks["grad_dot"] if c.name == "rank agreement"]
    assert scopes == ["float32", "bfloat16"]


def test_the_report_in_print_names_every_check(report, folder):
    out = io.StringIO()
    print_report(Console(file=out), report)
    said = out.getvalue()
    assert said.startswith(f"{folder} in float32 on 8 x cpu; text: the model's own")
    assert said.rstrip().endswith(report.verdict)
    for name in ("saturation", "rank agreement, bfloat16", "padding", "repeat"):
        assert name in said
    assert "FAILED" not in said and max(map(len, said.splitlines()[2:-1])) <= 120


def test_text_of_the_models_own_has_as_many_owners_as_fit(model):
    few = make_text(model, 2)
    assert few.owners == 2 and len(few.queries.response) == 2
    many = make_text(model, 16)
    assert many.owners == 8 and np.bincount(many.records.owner).tolist() == [2] * 8
    assert many.queries.response_mask.any(axis=1).all()


def test_owners_of_records_take_turns(text):
    assert text.owners == 3
    assert text.records.owner.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert len(text.queries.response) == ROWS


def test_a_kernel_that_reads_pads_is_found_out(model, text, made_kernel):
    def score(params, index, queries):
        left = jnp.sum(queries.prompt, axis=1).astype(jnp.float32)
        return left[:, None] * jnp.arange(1, 4, dtype=jnp.float32)

    made_kernel(score)
    assert complaints(check_kernel(model, "mine", text)) == ["padding"]


def test_a_kernel_that_reads_its_neighbours_is_found_out(model, text, made_kernel):
    def score(params, index, queries):
        own = jnp.sum(queries.response, axis=1).astype(jnp.float32)
        return (own - own.mean())[:, None] * jnp.arange(1, 4, dtype=jnp.float32)

    made_kernel(score)
    assert "batch" in complaints(check_kernel(model, "mine", text))


def test_a_kernel_whose_ranks_hang_on_the_last_digits_is_found_out(
    model, text, made_kernel
):
    def score(params, index, queries):
        own = params["embed"]["embedding"][queries.response[:, 0], :3]
        return (
            1e3 + own.astype(jnp.float32) - own.astype(jnp.bfloat16).astype(jnp.float32)
        )

    made_kernel(score)
    checks = check_kernel(model, "mine", text)
    bad = [(c.name, c.scope) for c in failed(checks)]
    assert ("rank agreement", "bfloat16") in bad
    assert ("rank agreement", "float32") not in bad


def squares(params, index, queries):
    """Three squares, of the embedding of every response's first token."""
    own = params["embed"]["embedding"][queries.response[:, 0], :3]
    return jax.lax.optimization_barrier(own * own).astype(jnp.float32)


def test_weights_that_are_no_numbers_are_found_out(model, text, made_kernel):
    made_kernel(squares)
    broken = jax.tree.map(lambda x: x * jnp.nan, model.params)
    checks = check_kernel(model._replace(params=broken), "mine", text)
    assert {"rank agreement", "padding", "batch", "finite"} <= set(complaints(checks))


def test_a_model_in_bfloat16_is_held_to_its_own_rounding(model, text, made_kernel):
    """Padding must be exact in float32 too, where rounding hides nothing."""
    made_kernel(squares)
    half = as_dtype(model, "bfloat16")
    assert half.decoder.cfg.compute_dtype == "bfloat16"
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    checks = check_kernel(half, "mine", text)
    names = [check.name for check in checks]
    assert {"padding, exact float32", "batch, exact float32"} <= set(names)
    limits = {check.name: check.limit for check in checks}
    assert limits["padding"] > limits["padding, exact float32"]
    assert complaints(checks) == []


def test_a_failed_check_says_what_to_do(report):
    bad = report.checks["grad_dot"][2]._replace(value=0.93, passed=False)
    sick = report._replace(checks={**report.checks, "grad_dot": [bad]})
    out = io.StringIO()
    print_report(Console(file=out), sick)
    said = out.getvalue()
    assert "FAILED" in said and not sick.trusted
    assert "rank agreement 0.93 < 0.99: mean Spearman over owners" in said
    assert "set model.compute_dtype=float32" in said
    assert "cannot be trusted in bfloat16" in said.splitlines()[-1]


def test_json_holds_the_verdict_and_no_nan(report, tmp_path):
    bad = report.checks["gradients"][0]._replace(value=float("nan"), passed=False)
    sick = report._replace(checks={**report.checks, "gradients": [bad]})
    write(sick, tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["trusted"] is False and "cannot be trusted" in found["verdict"]
    assert found["checks"][0]["value"] is None
    groups = ["gradients", "tokenizer"] + ["grad_dot"] * 9
    assert [row["of"] for row in found["checks"]] == groups


@pytest.fixture
def answering(monkeypatch):
    """Puts a report in the place of the examination."""

    def put(report: Report):
        monkeypatch.setattr(doctor, "examine", lambda *given: report)

    return put


def test_the_command_ends_well_for_a_sound_model(dareu, answering, report, tmp_path):
    answering(report)
    status, said, _ = dareu("doctor", "model", "--json", tmp_path / "found.json")
    assert status == 0 and "can be trusted" in said
    assert json.loads((tmp_path / "found.json").read_text())["trusted"] is True


def test_the_command_ends_with_one_for_a_sick_model(dareu, answering, report, tmp_path):
    bad = report.checks["gradients"][0]._replace(value=0.5, passed=False)
    answering(report._replace(checks={"gradients": [bad]}))
    status, said, _ = dareu("doctor", "model", "--json", tmp_path / "found.json")
    assert status == 1 and "cannot be trusted" in said
    assert json.loads((tmp_path / "found.json").read_text())["trusted"] is False


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--kernel", "grad_dott"], "did you mean 'grad_dot'"),
        (["--kernel", "constant"], "--kernel constant is a control"),
        (["--records", "missing.jsonl"], "missing.jsonl"),
        (["--json", "nowhere/found.json"], "--json nowhere/found.json"),
    ],
)
def test_bad_input_is_told_in_a_line(dareu, folder, words, complaint):
    status, _, said = dareu("doctor", folder, *words)
    assert status == 2 and said.startswith("dareu: ") and complaint in said
    assert "Traceback" not in said and len(said.splitlines()) <= 2


def test_a_folder_that_is_not_there_is_told(dareu, tmp_path):
    status, _, said = dareu("doctor", tmp_path / "none")
    assert status == 2 and "none holds no imported model" in said


def test_records_of_one_owner_are_refused(model, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES[:5]))
    with pytest.raises(UserError, match="1 owner among the records read"):
        read_text(path, model.tokenizer, ROWS)


def test_texts_beyond_the_context_are_told(folder, records, monkeypatch):
    module = importlib.import_module("dareu_jax.audits.doctor.examine")
    monkeypatch.setattr(module, "check_gradients", lambda *given: [])
    monkeypatch.setattr(module, "check_kernel", lambda *given: [])
    monkeypatch.setattr("dareu_jax.models.hf.imported.Imported.context", 16)
    with pytest.warns(Caution, match=r"\d+ of 16 texts are longer than the 16 tokens"):
        examine(folder, records, rows=8)


def test_a_full_memory_is_told_and_other_errors_are_not_hidden(folder, monkeypatch):
    def fails(message):
        def check(*given):
            raise jax.errors.JaxRuntimeError(message)

        return check

    module = importlib.import_module("dareu_jax.audits.doctor.examine")
    monkeypatch.setattr(
        module, "check_gradients", fails("RESOURCE_EXHAUSTED: out of memory")
    )
    with pytest.raises(UserError, match="does not fit the memory of 8 x cpu"):
        examine(folder, rows=2)
    monkeypatch.setattr(module, "check_gradients", fails("INTERNAL: something else"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        examine(folder, rows=2)
