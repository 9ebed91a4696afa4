import io
import json
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from dareu_jax.config import build_config
from dareu_jax.data import NOBODY, Corpus, load_corpus
from dareu_jax.data.sources import waterdrum
from dareu_jax.errors import UserError
from dareu_jax.runs.inputs import read_corpus

FULL = [f"full {n} " + " ".join(f"w{i}" for i in range(48)) for n in range(800)]
TEST = [f"test {n} of the others" for n in range(130)]


def write(folder: Path, full=FULL, test=TEST) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in ((waterdrum.FULL, full), (waterdrum.TEST, test)):
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


def corpus(path: str, **options) -> Corpus:
    options = waterdrum.WaterdrumOptions(path=path, **options)
    rows = list(waterdrum.waterdrum_rows(options, Path("unused")))
    splits = (tuple(r for s, r in rows if s == split) for split in ("train", "test"))
    return Corpus(*splits)


def test_four_hundred_neighbours_are_a_category(tmp_path):
    made = corpus(write(tmp_path))
    counts = Counter(record.owner for record in made.train)
    assert counts == {"category_00": 400, "category_01": 400}
    assert made.train[400].prompt.startswith("full 400 w0")
    assert made.train[400].id == "waterdrum_ax/full/0400"
    assert made.train[400].owner == "category_01"
    assert len(made.test) == 130 and {r.owner for r in made.test} == {NOBODY}


def test_the_whole_set_has_twenty_categories(tmp_path):
    owners = corpus(write(tmp_path, FULL * 10)).owners
    assert owners == tuple(f"category_{n:02d}" for n in range(20))


def test_a_text_is_cut_after_the_prompt_words_or_in_the_middle(tmp_path):
    made = corpus(write(tmp_path, test=["a b c d e f", "a b  c\nd e", "a b"]))
    assert {len(r.prompt.split()) for r in made.train} == {40}
    assert {len(r.response.split()) for r in made.train} == {10}
    cut = [(r.prompt, r.response) for r in made.test]
    assert cut == [("a b c", "d e f"), ("a b", "c d e"), ("a", "b")]
    cut = [(r.prompt, r.response) for r in corpus(str(tmp_path), prompt_words=5).test]
    assert cut == [("a b c d e", "f"), ("a b", "c d e"), ("a", "b")]


def test_the_configuration_sets_the_prompt_words(tmp_path):
    corpus = {"source": "waterdrum_ax", "path": write(tmp_path), "prompt_words": 5}
    made = read_corpus(build_config({"corpus": corpus}), tmp_path / "run")
    assert {len(r.prompt.split()) for r in made.train} == {5}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"full": FULL[:-1]}, ("full.jsonl", "799 records are not 400 for each")),
        ({"full": []}, ("full.jsonl", "0 records")),
        ({"full": ["one", *FULL[1:]]}, ("full.jsonl:1", "'text' is one word")),
        ({"test": ["a b", " "]}, ("test.jsonl:2", "'text' is empty")),
    ],
)
def test_bad_files_are_named(tmp_path, change, parts):
    with pytest.raises(UserError) as error:
        corpus(write(tmp_path, **change))
    assert all(part in str(error.value) for part in parts), error.value


def test_bad_folders_and_options(tmp_path):
    path = write(tmp_path)
    with pytest.raises(UserError, match=r"corpus\.prompt_words = 0: .*equal to 1"):
        build_config({"corpus": {"source": "waterdrum_ax", "prompt_words": 0}})
    (tmp_path / waterdrum.TEST).unlink()
    with pytest.raises(UserError, match=r"corpus\.path.*lacks 'test\.jsonl'"):
        corpus(path)


# ---- the dataset viewer ----


class Viewer:
    """The rows of two configurations; ``fails`` is the page that it cannot give."""

    def __init__(self):
        self.texts = {"unwatermarked_forget_01": FULL, "test": TEST}
        self.asked, self.fails = [], None
        self.change = lambda answer: answer

    def urlopen(self, url: str, timeout: float) -> io.BytesIO:
        assert (
            url.startswith("https://datasets-server.huggingface.co/rows?") and timeout
        )
        query = {k: v[0] for k, v in parse_qs(urlsplit(url).query).items()}
        assert query["dataset"] == "Glow-AI/WaterDrum-Ax" and query["split"] == "full"
        assert query["length"] == "100" and "Glow-AI%2FWaterDrum-Ax" in url
        page = (query["config"], int(query["offset"]))
        self.asked.append(page)
        if page == self.fails:
            raise urllib.error.HTTPError(url, 429, "Too Many Requests", None, None)
        return io.BytesIO(json.dumps(self.change(self.answer(*page))).encode())

    def answer(self, config: str, offset: int) -> dict:
        part = self.texts[config][offset : offset + 100]
        rows = [
            {"row_idx": offset + n, "row": {"text": text}, "truncated_cells": []}
            for n, text in enumerate(part)
        ]
        return {"rows": rows, "num_rows_total": len(self.texts[config])}


@pytest.fixture
def viewer(monkeypatch) -> Viewer:
    viewer = Viewer()
    monkeypatch.setattr(urllib.request, "urlopen", viewer.urlopen)
    return viewer


def test_it_is_downloaded_once_when_no_path_is_given(viewer, tmp_path):
    data = tmp_path / "data"
    first = load_corpus("waterdrum_ax", waterdrum.WaterdrumOptions(), data)
    assert first == corpus(write(tmp_path / "same"))
    folder = data / "downloads" / "waterdrum_ax"
    assert sorted(file.name for file in folder.iterdir()) == [
        "full.jsonl",
        "test.jsonl",
    ]
    assert corpus(str(folder)) == first
    assert len(viewer.asked) == len(set(viewer.asked)) == 8 + 2
    assert load_corpus("waterdrum_ax", waterdrum.WaterdrumOptions(), data) == first
    assert len(viewer.asked) == 10


def test_an_interrupted_download_goes_on_where_it_stopped(viewer, tmp_path):
    viewer.fails = ("unwatermarked_forget_01", 300)
    with pytest.raises(UserError, match=r"offset=300.*429.*run again.*corpus\.path"):
        load_corpus("waterdrum_ax", waterdrum.WaterdrumOptions(), tmp_path)
    left = sorted(file.name for file in tmp_path.rglob("*") if file.is_file())
    assert left == ["000100.jsonl", "000200.jsonl"]
    viewer.asked, viewer.fails = [], None
    made = load_corpus("waterdrum_ax", waterdrum.WaterdrumOptions(), tmp_path)
    again = [offset for config, offset in viewer.asked if config != "test"]
    assert again == [0, 300, 400, 500, 600, 700]
    assert made == corpus(write(tmp_path / "same"))


CHANGES = {
    "an error": lambda a: {"error": "The dataset viewer is not ready."},
    "not an object": lambda a: [a],
    "a row less": lambda a: a | {"rows": a["rows"][:-1]},
    "no text": lambda a: a | {"rows": [r | {"row": {"t": ""}} for r in a["rows"]]},
    "a number": lambda a: a | {"rows": [r | {"row": {"text": 1}} for r in a["rows"]]},
    "out of place": lambda a: a | {"rows": a["rows"][::-1]},
    "cut": lambda a: (
        a | {"rows": [r | {"truncated_cells": ["text"]} for r in a["rows"]]}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_answer_is_refused_and_not_kept(viewer, tmp_path, change):
    viewer.change = CHANGES[change]
    with pytest.raises(UserError, match=r"offset=0.*something else.*corpus\.path"):
        load_corpus("waterdrum_ax", waterdrum.WaterdrumOptions(), tmp_path)
    assert list(tmp_path.iterdir()) == []
