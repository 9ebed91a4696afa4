"""The command line: bad input ends with one or two lines and status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dareu_jax.cli import main, startup
from dareu_jax.cli.app import app
from dareu_jax.registry import REGISTRIES

REPO = Path(__file__).resolve().parents[2]

TESTS = Path(__file__).resolve().parents[1]
TINY = TESTS / "tiny.yaml"


@pytest.fixture
def refused(dareu, tmp_path):
    """Runs `dareu run` on bad input; returns the complaint, having checked its form."""
    out = tmp_path / "run"

    def call(config, *overrides):
        status, _, complaint = dareu("run", config, *overrides, "--out", out)
        assert status == 2
        assert complaint.startswith("dareu: ") and "Traceback" not in complaint
        assert 1 <= len(complaint.splitlines()) <= 2
        assert not out.exists()
        return complaint

    return call


GOOD = {"id": "x", "owner": "ada", "prompt": "Who?", "response": "Me."}


@pytest.fixture
def with_lines(refused, tmp_path):
    """Runs on a JSONL file of two good lines and the ones given; None: no file."""
    path = tmp_path / "mine.jsonl"

    def call(*lines, good=2, overrides=()):
        rows = [
            json.dumps({**GOOD, "id": f"good{i}", "owner": ("ada", "bo")[i % 2]})
            for i in range(good)
        ]
        text = [x if isinstance(x, str) else json.dumps(x) for x in lines]
        path.write_text("".join(line + "\n" for line in [*rows, *text]))
        return refused(
            TINY,
            "corpus.source=jsonl",
            f"corpus.path={path}",
            "corpus.forget=[ada]",
            *overrides,
        ).replace(str(path), "FILE")

    return call


def test_a_missing_config_file(refused, tmp_path):
    assert "no such config file" in refused(tmp_path / "no.yaml")


def test_a_config_that_is_not_yaml(refused, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("corpus: {owners: 3\nmodel: [")
    assert f"{path} is not valid YAML" in refused(path)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("corpus.onwers=3", ("unknown key 'corpus.onwers'", "'corpus.owners'")),
        ("dareu.clip=2", ("dareu.clip = 2", "less than 1")),
        ("dareu.clip", ("'dareu.clip'", "key=value")),
        ("methods=[dareo]", ("unknown method 'dareo'", "'dareu'", "npo")),
        ("corpus.source=tfou", ("unknown source 'tfou'", "'tofu'")),
        ("reward.kernel=clasifier", ("unknown kernel", "'classifier'")),
        ("model.preset=decoder-1k", ("unknown model 'decoder-1k'", "decoder-40k")),
        ("classifier.model.preset=decoder-2k", ("unknown model 'decoder-2k'",)),
        ("prior.model.preset=decoder-2k", ("unknown model 'decoder-2k'",)),
        ("evaluation.judge.model.preset=decoder-2k", ("unknown model 'decoder-2k'",)),
        ("overrides={daru: {dareu.clip: 0.1}}", ("unknown method 'daru'", "'dareu'")),
        ("corpus.template=Q", ("corpus.template", "{prompt}")),
        ("corpus.tokenizer=/nowhere", ("corpus.tokenizer", "/nowhere")),
        ("mesh.data=3", ("mesh data=3", "8 are there")),
        ("finetune.batch_size=6", ("batch 6 must divide by 8 devices",)),
        ("npo.batch_size=6", ("batch 6 must divide by 8 devices",)),
        (
            "overrides={dareu: {dareu.batch_size: 6}}",
            ("batch 6 must divide by 8 devices",),
        ),
        (
            "overrides={dareu: {corpus.forget: [owner_001]}}",
            ("overrides.dareu", "corpus.forget", "every row"),
        ),
        ("overrides={npo: {reward.kernel: x}}", ("overrides.npo", "reward.kernel")),
        ("seeds=[1, 1]", ("seeds", "twice")),
        ("methods=[npo, npo]", ("methods", "twice")),
    ],
)
def test_a_bad_value_names_its_key_and_the_remedy(refused, override, parts):
    complaint = refused(TINY, override)
    assert all(part in complaint for part in parts), complaint


@pytest.mark.parametrize(
    ("forget", "parts"),
    [
        ("[owner_02]", ("unknown owner 'owner_02'", "owner_002", "3 owners")),
        ("[owner_000, owner_001, owner_002]", ("names all 3 owners",)),
        ("[]", ("names no owner", "owner_000")),
        ("owner_002", ("corpus.forget",)),
    ],
)
def test_a_bad_withdrawal(refused, forget, parts):
    complaint = refused(TINY, f"corpus.forget={forget}")
    assert all(part in complaint for part in parts), complaint


def test_too_few_forget_records_for_a_batch(refused):
    complaint = refused(TINY, "corpus.records_per_owner=5")
    for part in ("owner_002 have 5 records", "dareu.batch_size = 8", "at most 5"):
        assert part in complaint


def test_too_few_forget_records_for_a_batch_of_one_method(refused):
    complaint = refused(TINY, "overrides={dareu_paper: {dareu.batch_size: 16}}")
    assert "8 records" in complaint and "dareu.batch_size = 16" in complaint


@pytest.mark.parametrize("what", ["prompt", "response"])
def test_text_longer_than_the_limit_is_counted_and_can_be_cut(refused, what):
    complaint = refused(TINY, f"corpus.max_{what}_tokens=10", "corpus.truncate=false")
    assert f" {what}s" in complaint and "of " in complaint
    assert f"corpus.max_{what}_tokens=10" in complaint
    assert "corpus.truncate=true" in complaint


def test_a_missing_file_of_records(refused, tmp_path):
    path = tmp_path / "no.jsonl"
    complaint = refused(TINY, "corpus.source=jsonl", f"corpus.path={path}")
    assert "corpus.path" in complaint and str(path) in complaint


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{not json", ("FILE:3", "not JSON")),
        ("[1, 2]", ("FILE:3", "list")),
        ({"id": "x", "owner": "ada", "prompt": "Who?"}, ("FILE:3", "'response'")),
        ({**GOOD, "response": "  "}, ("FILE:3", "'response' is empty")),
        ({**GOOD, "prompt": 7}, ("FILE:3", "'prompt' must be a string, not int")),
        ({**GOOD, "id": "good1"}, ("FILE:3", "'good1'", "FILE:2")),
        ({**GOOD, "split": "dev"}, ("FILE:3", "'dev'")),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(with_lines, line, parts):
    complaint = with_lines(line)
    assert all(part in complaint for part in parts), complaint


def test_a_folder_of_another_run_is_refused_and_left_alone(dareu, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.resolved.yaml").write_text("seeds: [3]\n")
    status, _, complaint = dareu("run", TINY, "--out", folder)
    assert status == 2 and f"{folder} holds a run with" in complaint
    assert "--out" in complaint and len(complaint.splitlines()) == 1
    assert [path.name for path in folder.iterdir()] == ["config.resolved.yaml"]
    assert (folder / "config.resolved.yaml").read_text() == "seeds: [3]\n"


def test_a_folder_that_cannot_be_written(dareu, tmp_path):
    place = tmp_path / "file"
    place.write_text("no folder")
    status, _, complaint = dareu("run", TINY, "--out", place / "run")
    assert status == 2 and "Traceback" not in complaint
    assert len(complaint.splitlines()) <= 2
    assert place.read_text() == "no folder"


def test_a_full_disk_is_noticed_before_anything_is_done(monkeypatch, refused):
    monkeypatch.setattr(startup, "SMALLEST_DISK", 2**62)
    complaint = refused(TINY)
    assert "MiB free" in complaint and "--out" in complaint


@pytest.mark.parametrize("steps", ["10", "3:2", "0:4", "a:b", ":", "1:2:3"])
def test_steps_to_trace_that_are_none(dareu, steps, tmp_path):
    out = tmp_path / "run"
    status, _, complaint = dareu("run", TINY, "--out", out, "--profile", steps)
    assert status == 2 and "write first:last" in complaint and not out.exists()


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_processes_that_are_not_counted(dareu, monkeypatch, name, tmp_path):
    place = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0", name: "two"}
    for key, value in {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", **place}.items():
        monkeypatch.setenv(key, value)
    out = tmp_path / "run"
    status, _, complaint = dareu("run", TINY, "--out", out, "--distributed")
    assert status == 2 and f"{name} must be a number" in complaint and not out.exists()


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list_prints_every_registered_name_with_a_line_about_it(dareu, kind):
    status, printed, complaint = dareu("list", kind)
    assert status == 0 and complaint == ""
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    assert [name for name, _ in lines] == list(REGISTRIES[kind].names())
    assert [about for _, about in lines] == [a for _, a in REGISTRIES[kind].items()]


def test_an_unknown_registry(dareu):
    status, _, complaint = dareu("list", "kernel")
    assert status == 2
    assert complaint == (
        "dareu: no registry 'kernel' (did you mean 'kernels'?); known: families, "
        "kernels, methods, metrics, models, sources, stress\n"
    )


@pytest.mark.parametrize("command", [[], ["run"], ["list"]])
def test_help_is_there(dareu, command):
    status, printed, _ = dareu(*command, "--help")
    assert status == 0 and "Usage" in printed


def test_a_process_ends_with_status_2_and_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "dareu_jax",
        "run",
        str(TINY),
        "corpus.forget=[me]",
    ]
    out = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        cwd=TESTS.parent,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 2 and out.stdout == ""
    assert out.stderr.startswith("dareu: corpus.forget: unknown owner 'me'")
    assert len(out.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "code", "verdict"),
    [([], 0, "\nfits: "), (["lora=null"], 1, "\ndoes not fit: ")],
)
def test_estimate_says_what_fits_and_so_does_its_status(
    capsys, overrides, code, verdict
):
    config = str(REPO / "experiments" / "tofu_llama2_7b" / "config.yaml")
    arguments = ["estimate", config, *overrides, "--chips", "v5e-4"]
    with pytest.raises(SystemExit) as ended:
        main.main(lambda: app(arguments))
    out = capsys.readouterr().out
    assert ended.value.code == code and verdict in out and "logits" in out
