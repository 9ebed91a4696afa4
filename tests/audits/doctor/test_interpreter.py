"""Another interpreter is asked: what it may see, what it answers, how it fails."""

import json
import os
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from dareu_jax.audits.doctor import interpreter
from dareu_jax.audits.doctor.interpreter import ask, link, source_of
from dareu_jax.errors import UserError
from dareu_jax.models.hf.folder import INDEX
from dareu_jax.models.hf.imported import Imported

TEXTS = (("Hi you", False), ("And you?", True))
SAID = {
    "ids": [[1, 2, 3], [4, 5]],
    "losses": [0.5, 0.25],
    "answers": [[6], [7, 8]],
    "versions": ["5.0", "2.0"],
}
WRITE = f"""
import json, numpy as np
for number, count in enumerate((3, 2)):
    np.save(f"logits_{{number}}.npy", np.full((count, 4), number, np.float32))
open("said.json", "w").write(json.dumps({SAID!r}))
"""


@pytest.fixture
def source(tmp_path):
    """A folder with files that may be read, and with code and pickles."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in (
        *("config.json", "tokenizer.json", "tokenizer.model", "merges.txt"),
        *("chat_template.jinja", "model.safetensors", "README.md"),
        *("modeling_mine.py", "sitecustomize.py", "pytorch_model.bin", "x.pt"),
        *("vocab.pkl", "adapter_config.json", "adapter_model.bin"),
    ):
        (folder / name).write_text("{}")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("1 / 0")
    return folder


@pytest.fixture
def stand_in(tmp_path):
    """Makes a program that runs lines of Python in place of the interpreter."""

    def make(body):
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\n{body}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def asked(source, python):
    with ask(source, python, TEXTS, 2):
        pass


def test_the_program_sees_no_code_and_no_pickle(source, tmp_path):
    link(source, tmp_path / "seen")
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [
        *("chat_template.jinja", "config.json", "merges.txt", "model.safetensors"),
        *("tokenizer.json", "tokenizer.model"),
    ]


def test_the_program_stands_alone_and_trusts_no_code():
    text = interpreter.PROGRAM.read_text()
    modules = re.findall(r"^(?:import|from) ([a-z_.]+)", text, re.MULTILINE)
    assert set(modules) == {"json", "sys", "numpy", "torch", "transformers"}
    assert '"trust_remote_code": False' in text
    assert '"local_files_only": True' in text


def test_of_a_gguf_file_the_program_sees_that_file_alone(tmp_path):
    (tmp_path / "small.gguf").write_text("")
    link(tmp_path / "small.gguf", tmp_path / "seen")
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["small.gguf"]


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "/tmp/x.safetensors", "../a.bin"]
)
def test_an_index_that_names_other_files_is_refused(source, stand_in, name):
    (source / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="only safetensors files"):
        asked(source, stand_in(WRITE))


def test_the_answer_is_read_and_nothing_stays(source, stand_in):
    with ask(source, stand_in(WRITE), TEXTS, 2) as said:
        assert said[:4] == (
            *map(SAID.get, ("ids", "losses", "answers")),
            ("5.0", "2.0"),
        )
        np.testing.assert_array_equal(said.logits(1), np.ones((2, 4), np.float32))
        place = said.place
    assert not place.exists()


def test_the_program_is_told_texts_and_runs_alone(source, stand_in, tmp_path):
    """It runs in a folder of its own, offline, on the CPU."""
    body = f"""
import json, os, sys
request = json.load(open("request.json"))
names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CUDA_VISIBLE_DEVICES")
told = [request, [os.environ[n] for n in names], sys.argv[1:], os.getcwd()]
open({str(tmp_path / "told.json")!r}, "w").write(json.dumps(told))
"""
    asked(source, stand_in(body + WRITE))
    request, env, given, here = json.loads((tmp_path / "told.json").read_text())
    assert request["texts"] == [list(text) for text in TEXTS]
    assert request["new_tokens"] == 2 and request["gguf"] is None
    assert env == ["1", "1", ""]
    assert given == ["peer.py", f"{here}/folder"] and Path(here) != source


def test_a_relative_path_is_found_from_where_the_user_is(
    source, stand_in, tmp_path, monkeypatch
):
    stand_in(WRITE)
    monkeypatch.chdir(tmp_path)
    asked(source, "./python")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("import no_such_torch", "'no_such_torch'; give an interpreter where torch"),
        ("raise OSError('no weights\\nin here')", "transformers failed: in here"),
        ("raise SystemExit(3)", "transformers failed: it says nothing"),
        ("import os; os.kill(os.getpid(), 9)", "stopped by signal 9, perhaps for want"),
        ("print('x\\n' * 4_000_000); 1 / 0", "failed: ZeroDivisionError: division"),
        ("raise OSError('y' * 9_000)", "transformers failed: OSError: yyy"),
        ("", "its answer cannot be read"),
        ("open('said.json', 'w').write('[')", "its answer cannot be read"),
        (WRITE + "open('said.json', 'w').write('{}')", "its answer cannot be read"),
        (WRITE.replace("(3, 2)", "(3, 3)"), "logits_1.npy has shape [3, 4]"),
        (WRITE.replace("[4, 5]", "[]"), "not 2 texts"),
        (
            WRITE + "np.save('logits_0.npy', np.array([{}] * 3), allow_pickle=True)",
            "its answer cannot be read",
        ),
    ],
)
def test_a_program_that_fails_is_told_in_a_line(source, stand_in, body, complaint):
    with pytest.raises(UserError) as told:
        asked(source, stand_in(body))
    said = str(told.value)
    assert complaint in said and said.startswith("--python ")
    assert len(said.splitlines()) == 1 and len(said) < 600


def test_a_program_that_does_not_end_is_stopped(
    source, stand_in, monkeypatch, tmp_path
):
    monkeypatch.setattr(interpreter, "PATIENCE", 1.0)
    body = f"""
import os, time
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""
    with pytest.raises(UserError, match="gave no answer in 0 minutes"):
        asked(source, stand_in(body))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_interpreter_that_is_not_there_is_told(source, tmp_path):
    with pytest.raises(UserError, match="there is no such program"):
        asked(source, str(tmp_path / "none"))
    (tmp_path / "data").write_bytes(b"\0\1")
    (tmp_path / "data").chmod(0o755)
    with pytest.raises(UserError, match="cannot be started: Exec format error"):
        asked(source, str(tmp_path / "data"))


def test_the_source_is_that_of_the_import_or_the_one_given(source, tmp_path):
    imported = Imported(tmp_path / "model", None, str(source))
    assert source_of(imported, None) == source
    assert source_of(Imported(tmp_path, None, "gone"), source) == source


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (None, "model was imported from gone, which is gone; give its Hugging Face"),
        ("none", "none is not there; give its Hugging Face folder as --source"),
        ("bare", "bare has no config.json; give a whole Hugging Face folder"),
        ("text.txt", "text.txt is neither a folder nor a .gguf file"),
    ],
)
def test_a_source_that_cannot_be_is_told(tmp_path, given, complaint):
    (tmp_path / "bare").mkdir()
    (tmp_path / "text.txt").write_text("")
    imported = Imported(tmp_path / "model", None, "gone")
    with pytest.raises(UserError) as told:
        source_of(imported, given and tmp_path / given)
    assert complaint in str(told.value) and len(str(told.value).splitlines()) == 1
