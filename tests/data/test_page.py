"""The page on adding a source: its block runs, in a run and on the command line."""

import io
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from dareu_jax.config import build_config, dump_config, load_config
from dareu_jax.data import dataset, load_corpus
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES
from dareu_jax.runs import pipeline
from dareu_jax.training.progress import Progress

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "dareu_jax" / "data" / "README.md").read_text(encoding="utf-8")
(BLOCK,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(YAML,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
OWNERS, ENTRIES = ("ann", "bob", "cy"), 12


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's file and diaries; the registry is left as it was."""
    for name in ("_entries", "_about", "_options"):
        monkeypatch.setattr(SOURCES, name, dict(getattr(SOURCES, name)))
    (tmp_path / "diary.py").write_text(BLOCK)
    diaries = tmp_path / "my" / "diaries"
    diaries.mkdir(parents=True)
    for owner in OWNERS:
        lines = [f"May {n}: {owner} saw {n} boats.\n" for n in range(1, ENTRIES + 1)]
        (diaries / f"{owner}.txt").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(folder: Path, *overrides: str):
    (folder / "config.yaml").write_text(YAML)
    return load_config(folder / "config.yaml", overrides)


def test_the_configuration_of_the_page_has_the_options_of_the_source(folder):
    cfg = config_of(folder)
    assert cfg.corpus.options().model_dump() == {
        "folder": "my/diaries",
        "test_every": 4,
    }
    assert config_of(folder, "corpus.test_every=6").corpus.test_every == 6
    assert build_config(yaml.safe_load(dump_config(cfg))) == cfg


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("corpus.test_every=1", r"test_every = 1: .*greater than or equal to 2"),
        ("corpus.test_evry=4", r"'corpus\.test_evry'.*mean 'corpus\.test_every'"),
        ("corpus.owners=3", r"corpus\.owners is no option of source diary"),
    ],
)
def test_a_bad_option_is_refused_before_anything_runs(folder, override, said):
    with pytest.raises(UserError, match=said):
        config_of(folder, override)


def test_the_rows_are_what_the_page_says(folder):
    cfg = config_of(folder)
    corpus = load_corpus("diary", cfg.corpus.options(), folder / "data")
    assert corpus.owners == OWNERS
    assert len(corpus.train) == 27 and len(corpus.test) == 9
    assert corpus.train[0].prompt == "What did ann write on May 1?"
    assert corpus.train[0].response == "ann saw 1 boats."
    (folder / "my" / "diaries" / "ann.txt").write_text("no day\n")
    with pytest.raises(UserError, match=r"ann\.txt:1: no day and colon"):
        load_corpus("diary", cfg.corpus.options(), folder / "data")
    with pytest.raises(UserError, match=r"corpus\.folder: 'nowhere' has no .txt file"):
        options = config_of(folder, "corpus.folder=nowhere").corpus.options()
        load_corpus("diary", options, folder / "data")


def test_the_command_line_lists_the_source(folder, dareu):
    status, said, _ = dareu("list", "sources", "--plugin", "diary.py")
    assert status == 0 and re.search(r"diary +a text file per owner", said)


def test_a_run_writes_the_source_once_and_reads_it_once(folder, monkeypatch):
    changes = ["plugins=[diary.py]", "corpus.source=diary", "corpus.folder=my/diaries"]
    changes += ["corpus.test_every=4", "corpus.forget=[ann]", "methods=[npo]"]
    changes += ["seeds=[0, 1]", "finetune.epochs=1", "classifier.epochs=1"]
    changes += ["evaluation.judge.epochs=1", "finetune.snapshots=0"]
    cfg = load_config(REPO / "tests" / "tiny.yaml", changes)
    calls = []
    for name in ("_write", "_read"):
        call = getattr(dataset, name)

        def counted(*given, name=name, call=call):
            calls.append(name)
            return call(*given)

        monkeypatch.setattr(dataset, name, counted)
    progress = Progress(Console(file=io.StringIO()))
    results, _ = pipeline.run(cfg, folder / "run", progress)
    assert set(results["models"]) == {"original", "retrained", "npo"}
    assert calls == ["_write", "_read"]
    calls.clear()
    assert pipeline.run(cfg, folder / "run", progress)[0] == results
    assert calls == ["_read"]
    (kept,) = (folder / "run" / "data").iterdir()
    assert kept.name.startswith("diary-")


def test_bad_rows_leave_nothing_in_the_run_folder(folder, dareu):
    (folder / "my" / "diaries" / "bob.txt").write_text("no day\n")
    tiny = REPO / "tests" / "tiny.yaml"
    changes = ["plugins=[diary.py]", "corpus.source=diary", "corpus.folder=my/diaries"]
    status, _, said = dareu("run", tiny, *changes, "--out", folder / "run")
    assert status == 2 and "bob.txt:1: no day and colon" in said
    assert not (folder / "run").exists()
