"""`dareu doctor --against transformers`, with a program in transformers' place.

``transformers.json`` is what transformers 5.24.0 on torch 2.13.0 says of the tiny model
of `make_source`; the live test, where torch is, says whether it still does.
"""

import importlib.util
import io
import json
import stat
import sys
from pathlib import Path

import make_golden as hf
import numpy as np
import pytest
from rich.console import Console

from dareu_jax.audits.doctor.checks import failed
from dareu_jax.audits.doctor.conformance import (
    ASKED,
    NEW_TOKENS,
    Found,
    checks_of,
    conformance,
    logits_of_texts,
)
from dareu_jax.audits.doctor.interpreter import ask
from dareu_jax.audits.doctor.output import print_report
from dareu_jax.data import load_tokenizer
from dareu_jax.data.tokenizer_check import TEXTS
from dareu_jax.models.hf.imported import import_folder
from dareu_jax.models.loaded import load_model

pytestmark = pytest.mark.slow

SAID = json.loads(Path(__file__).with_name("transformers.json").read_text())
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
GOOD = Found(ids=[], logits=2e-4, argmax=1.0, answers=[], losses=2e-5)
NAMES = ["ids", "logits", "argmax", "greedy answers", "losses"]


def make_source(folder):
    """A folder of one small layer, a tokenizer that adds bos, and a chat template."""
    load_tokenizer(None, TEXTS * 3, 300, folder)
    one, two = ({"Sequence": {"id": x, "type_id": 0}} for x in "AB")
    begins = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, one],
        "pair": [one, two],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}},
    }
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text()) | {"post_processor": begins}
    path.write_text(json.dumps(fields))
    (folder / "chat_template.jinja").write_text(CHAT)
    # penalties are no part of a greedy answer, ends of text are
    how = {"eos_token_id": [2, 215], "repetition_penalty": 1.5, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(how))
    small = {"num_hidden_layers": 1, "vocab_size": 300, "torch_dtype": "float32"}
    return hf.make_folder(folder, {**hf.config_of("qwen3"), **small})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of `dareu import`."""
    source = make_source(tmp_path_factory.mktemp("source") / "hf")
    return import_folder(source, tmp_path_factory.mktemp("imported") / "model").folder


@pytest.fixture(scope="module")
def logits(folder):
    """The logits of every text, `[T, V]`."""
    return list(logits_of_texts(load_model(folder), SAID["ids"]))


def write_program(place, said, logits):
    """A program that answers with given words, in the place of an interpreter."""
    words = place / "words"
    words.mkdir(parents=True)
    (words / "said.json").write_text(json.dumps(said))
    for number, values in enumerate(logits):
        np.save(words / f"logits_{number}.npy", values)
    program = place / "python"
    copy = f"shutil.copytree({str(words)!r}, '.', dirs_exist_ok=True)"
    program.write_text(f"#!{sys.executable}\nimport shutil\n{copy}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture(scope="module")
def right(logits, tmp_path_factory):
    """A program that says what transformers says."""
    return write_program(tmp_path_factory.mktemp("right"), SAID, logits)


@pytest.fixture(scope="module")
def wrong(logits, tmp_path_factory):
    """A program that says something else in every row of the table."""
    said, other = json.loads(json.dumps(SAID)), [np.array(x) for x in logits]
    said["ids"][0], other[0] = said["ids"][2], other[2]
    other[4][3, other[4][3].argmin()] += 100.0
    said["answers"][5][0] += 1
    said["losses"][7] += 0.5
    return write_program(tmp_path_factory.mktemp("wrong"), said, other)


def test_some_answers_end_early_and_some_do_not():
    lengths = {len(answer) for answer in SAID["answers"]}
    assert NEW_TOKENS in lengths and min(lengths) < NEW_TOKENS


def values(path):
    rows = json.loads(path.read_text())["checks"]
    return {row["name"]: (row["value"], row["passed"]) for row in rows}


def test_a_sound_import_says_what_transformers_says(dareu, folder, right, tmp_path):
    out = tmp_path / "found.json"
    status, said, _ = dareu(
        *("doctor", folder, "--against", "transformers"),
        *("--python", right, "--json", out),
    )
    assert status == 0, said
    assert "10 texts, against transformers 5.24.0 on torch 2.13.0" in said
    assert said.rstrip().endswith("says what transformers says: all 6 checks passed.")
    found = values(out)
    assert list(found) == [*NAMES, "tokenizer.json"]
    assert all(passed for _, passed in found.values())
    assert found["logits"][0] < 1e-5 and found["losses"][0] < 1e-5
    assert json.loads(out.read_text())["trusted"] is True


def test_every_difference_is_a_row_and_the_status_is_one(
    dareu, folder, wrong, tmp_path
):
    out = tmp_path / "found.json"
    status, said, _ = dareu(
        *("doctor", folder, "--against", "transformers"),
        *("--python", wrong, "--json", out),
    )
    assert status == 1 and said.count("FAILED") == 5
    assert "The imported model fails against transformers: ids 1 > 0 (4 more" in said
    found = values(out)
    positions = sum(map(len, SAID["ids"])) - len(SAID["ids"][0]) + len(SAID["ids"][2])
    assert found["ids"] == (1, False) and found["greedy answers"] == (1, False)
    np.testing.assert_allclose(found["logits"][0], 100.0, atol=1e-4)
    np.testing.assert_allclose(found["argmax"][0], 1 - 1 / positions, rtol=1e-6)
    np.testing.assert_allclose(found["losses"][0], 0.5, atol=1e-4)
    assert found["tokenizer.json"] == (0, True)
    assert repr(TEXTS[0][:20]) in said and repr(TEXTS[5][:20]) in said


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"ids": ["a", "b"]}, "ids"),
        ({"logits": 1.1e-3}, "logits"),
        ({"logits": float("nan")}, "logits"),
        ({"argmax": 0.999}, "argmax"),
        ({"answers": ["a"]}, "greedy answers"),
        ({"losses": 1.1e-4}, "losses"),
        ({"losses": float("nan")}, "losses"),
    ],
)
def test_every_row_has_its_limit(change, name):
    assert failed(checks_of(GOOD)) == []
    bad = failed(checks_of(GOOD._replace(**change)))
    assert [check.name for check in bad] == [name] and bad[0].remedy


def test_another_vocabulary_is_told(dareu, folder, logits, tmp_path):
    program = write_program(tmp_path, SAID, [x[:, :-1] for x in logits])
    status, _, said = dareu(
        *("doctor", folder, "--against", "transformers", "--python", program)
    )
    assert status == 2
    assert "has 300 logits, that of transformers 299" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--against", "vllm"], "--against vllm: there is transformers alone"),
        (["--python", "python"], "--python and --source go with --against"),
        (["--source", "hf"], "--python and --source go with --against"),
        (["--against", "transformers", "--kernel", "bm25"], "do not go with --against"),
        (["--against", "transformers", "--source", "gone"], "gone is not there"),
        (["--against", "transformers", "--python", "./none"], "no such program"),
        (["--against", "transformers", "--json", "no/f.json"], "--json no/f.json"),
    ],
)
def test_bad_input_is_told_in_a_line(dareu, folder, words, complaint):
    status, _, said = dareu("doctor", folder, *words)
    assert status == 2 and said.startswith("dareu: ") and complaint in said
    assert len(said.splitlines()) == 1


def test_a_folder_that_was_not_imported_is_told(dareu, tmp_path):
    status, _, said = dareu("doctor", tmp_path, "--against", "transformers")
    assert status == 2 and "holds no imported model" in said


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="torch is installed"
)
def test_an_interpreter_without_torch_is_told(dareu, folder):
    status, _, said = dareu("doctor", folder, "--against", "transformers")
    assert status == 2 and "No module named 'torch'; give an interpreter" in said


@pytest.mark.torch
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)
def test_transformers_still_says_what_is_kept(folder, tmp_path):
    """Nothing that is planted in the folder runs."""
    source = make_source(tmp_path / "hf")
    plant(source, tmp_path / "ran")
    with ask(source, sys.executable, ASKED, NEW_TOKENS) as said:
        assert said.ids == SAID["ids"] and said.answers == SAID["answers"]
        np.testing.assert_allclose(said.losses, SAID["losses"], atol=1e-5)
    report = conformance(folder, sys.executable, source)
    out = io.StringIO()
    print_report(Console(file=out), report)
    assert report.trusted, out.getvalue()
    assert not (tmp_path / "ran").exists()


def plant(source, mark):
    """Puts code and pickles wherever transformers would look for them."""
    code = f"open({str(mark)!r}, 'w')\n"
    for name in ("modeling_mine.py", "tokenization_mine.py", "sitecustomize.py"):
        (source / name).write_text(code)
    (source / "custom_generate").mkdir()
    (source / "custom_generate" / "generate.py").write_text(code)
    for name in ("pytorch_model.bin", "adapter_model.bin", "vocab.pkl"):
        (source / name).write_bytes(
            b"cbuiltins\nexec\n(V" + code.encode()[:-1] + b"\ntR."
        )
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for name, classes in {
        "config.json": {"AutoModelForCausalLM": "modeling_mine.Mine"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "tokenization_mine.Mine"]},
    }.items():
        fields = json.loads((source / name).read_text()) | {"auto_map": classes}
        (source / name).write_text(json.dumps(fields))
