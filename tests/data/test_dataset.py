import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dareu_jax.data import adopt, load_corpus
from dareu_jax.data import dataset as dataset_module
from dareu_jax.data.dataset import _builder_class
from dareu_jax.data.sources.fictitious.source import FictitiousOptions
from dareu_jax.data.sources.jsonl import JsonlOptions
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES

SMALL = FictitiousOptions(owners=3, records_per_owner=4, general_facts=5)
KILLED = """
import os, signal
from pathlib import Path
from dareu_jax.data import dataset, load_corpus
from dareu_jax.data.sources.fictitious.source import FictitiousOptions

def die(self, split):
    yield 0, {"index": 0, "id": "a", "owner": "a", "prompt": "a", "response": "a"}
    os.kill(os.getpid(), signal.SIGKILL)

dataset._builder_class()._generate_examples = die
options = FictitiousOptions(owners=3, records_per_owner=4, general_facts=5)
load_corpus("fictitious", options, Path(__import__("sys").argv[1]))
"""


def yielded(options: FictitiousOptions, split: str) -> tuple:
    rows = SOURCES.get("fictitious")(options, Path())
    return tuple(record for name, record in rows if name == split)


def datasets(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/owned_text/1.0.0"))


def test_what_is_read_is_what_was_yielded_in_order(tmp_path):
    first = load_corpus("fictitious", SMALL, tmp_path)
    assert first.train == yielded(SMALL, "train")
    assert first.test == yielded(SMALL, "test")
    assert load_corpus("fictitious", SMALL, tmp_path) == first


def test_a_dataset_is_written_once(tmp_path, monkeypatch):
    load_corpus("fictitious", SMALL, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    monkeypatch.setattr(dataset_module, "_write", None)
    load_corpus("fictitious", SMALL, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_every_option_and_every_content_has_its_own_folder(tmp_path):
    load_corpus("fictitious", SMALL, tmp_path)
    load_corpus("fictitious", FictitiousOptions(owners=3, general_facts=5), tmp_path)
    file = tmp_path / "own.jsonl"
    options = JsonlOptions(path=str(file))
    for response in ("old", "new"):
        file.write_text(
            f'{{"id": "1", "owner": "a", "prompt": "p", "response": "{response}"}}'
        )
        assert load_corpus("jsonl", options, tmp_path).train[0].response == response
    assert len(datasets(tmp_path)) == 4


def test_nothing_is_printed_and_tensorflow_stays_out(tmp_path):
    code = (
        "import sys; from pathlib import Path;"
        "from dareu_jax.data import load_corpus; "
        "from dareu_jax.data.sources.fictitious import source;"
        "options = source.FictitiousOptions(owners=2);"
        "load_corpus('fictitious', options, Path(sys.argv[1]));"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == ""


def test_import_is_light():
    heavy = "{'jax', 'grain', 'transformers', 'tokenizers', 'tensorflow_datasets'}"
    code = f"import sys, dareu_jax.data; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kill_while_writing_leaves_nothing_that_is_trusted(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert any(tmp_path.rglob("*incomplete*")) and not datasets(tmp_path)
    assert load_corpus("fictitious", SMALL, tmp_path).train == yielded(SMALL, "train")


def test_bad_input_writes_nothing(tmp_path):
    file = tmp_path / "own.jsonl"
    good = '{"id": "1", "owner": "a", "prompt": "p", "response": "r"}\n'
    file.write_text(good + good)
    with pytest.raises(UserError):
        load_corpus("jsonl", JsonlOptions(path=str(file)), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_unknown_source_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"unknown source 'jsonk'.*did you mean 'jsonl'"
    ):
        load_corpus("jsonk", SMALL, tmp_path)


def test_another_process_may_write_the_same_dataset_first(tmp_path, monkeypatch):
    load_corpus("fictitious", SMALL, tmp_path / "first")
    made = next((tmp_path / "first").iterdir())
    kind = _builder_class()
    generate = kind._generate_examples

    def slow(self, split):
        shutil.copytree(made, tmp_path / "second" / made.name, dirs_exist_ok=True)
        yield from generate(self, split)

    monkeypatch.setattr(kind, "_generate_examples", slow)
    corpus = load_corpus("fictitious", SMALL, tmp_path / "second")
    assert corpus.train == yielded(SMALL, "train")


def test_a_full_disk_is_not_taken_for_another_process(tmp_path, monkeypatch):
    def full(self, split):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_builder_class(), "_generate_examples", full)
    with pytest.raises(OSError, match="No space left"):
        load_corpus("fictitious", SMALL, tmp_path)
    assert not datasets(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "deleted", "overwritten", "metadata"])
def test_damage_is_noticed(tmp_path, damage):
    load_corpus("fictitious", SMALL, tmp_path)
    (dataset,) = datasets(tmp_path)
    file = next(dataset.glob("*train.array_record*"))
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "deleted":
        file.unlink()
    elif damage == "overwritten":
        file.write_bytes(bytes(200) + content[200:])
    else:
        (dataset / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"fictitious-\w+ is damaged.*delete") as error:
        load_corpus("fictitious", SMALL, tmp_path)
    assert str(tmp_path) in str(error.value)


def test_another_record_in_its_place_is_noticed(tmp_path):
    options = FictitiousOptions(owners=2, general_facts=1)
    load_corpus("fictitious", SMALL, tmp_path / "wanted")
    load_corpus("fictitious", options, tmp_path / "other")
    (wanted,), (other,) = datasets(tmp_path / "wanted"), datasets(tmp_path / "other")
    shutil.rmtree(wanted)
    shutil.copytree(other, wanted)
    with pytest.raises(UserError, match="is damaged"):
        load_corpus("fictitious", SMALL, tmp_path / "wanted")


def test_every_load_is_one_read_through_grain(tmp_path, monkeypatch):
    import grain

    counted = []
    source = grain.MapDataset.source
    monkeypatch.setattr(
        grain.MapDataset, "source", lambda rows: counted.append(rows) or source(rows)
    )
    for loads in (1, 2):
        load_corpus("fictitious", SMALL, tmp_path)
        assert len(counted) == 2 * loads  # the splits train and test


def test_a_dataset_is_adopted_whole_and_read_from_its_new_place(tmp_path, monkeypatch):
    trial, kept = tmp_path / "trial", tmp_path / "kept"
    corpus = load_corpus("fictitious", SMALL, trial)
    adopt(trial, kept)
    assert not datasets(trial) and len(datasets(kept)) == 1
    monkeypatch.setattr(dataset_module, "_write", None)
    assert load_corpus("fictitious", SMALL, kept) == corpus


def test_a_dataset_that_is_there_is_not_adopted_again(tmp_path):
    trial, kept = tmp_path / "trial", tmp_path / "kept"
    for folder in (trial, kept):
        load_corpus("fictitious", SMALL, folder)
    before = {p: p.stat().st_mtime_ns for p in kept.rglob("*")}
    adopt(trial, kept)
    assert {p: p.stat().st_mtime_ns for p in kept.rglob("*")} == before


def test_a_dataset_that_cannot_be_adopted_leaves_nothing(tmp_path, monkeypatch):
    load_corpus("fictitious", SMALL, tmp_path / "trial")

    def full(source, target):
        (target / "owned_text").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(OSError, match="No space left"):
        adopt(tmp_path / "trial", tmp_path / "kept")
    assert not any((tmp_path / "kept").iterdir())
