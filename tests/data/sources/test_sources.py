import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from dareu_jax.config import Section, build_config
from dareu_jax.data import NOBODY, Corpus, load_corpus
from dareu_jax.data.sources import tofu
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES

TOFU = (
    Path(os.environ.get("DAREU_DATA") or Path(__file__).parents[4] / "shared") / "tofu"
)
needs_tofu = pytest.mark.skipif(
    not (TOFU / "full.json").is_file(),
    reason="TOFU's files are absent; set DAREU_DATA to the folder that holds tofu/",
)
LINE = {"id": "1", "owner": "ann", "prompt": "Who?", "response": "Me."}


def options_of(source: str, **options) -> Section:
    return build_config({"corpus": {"source": source, **options}}).corpus.options()


def rows(source: str, **options) -> list:
    return list(SOURCES.get(source)(options_of(source, **options), Path("unused")))


def corpus_of(pairs) -> Corpus:
    by_split = {name: tuple(r for s, r in pairs if s == name) for name, _ in pairs}
    return Corpus(by_split["train"], by_split.get("test", ()))


def write(path: Path, *lines) -> str:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text), encoding="utf-8")
    return str(path)


def fake_tofu(folder: Path, authors: int = 3) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    pair = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(authors * 20)]
    write(folder / "full.json", *pair)
    for name in tofu.GENERAL:
        write(folder / name, {"question": f"of {name}", "answer": "x", "other": [1]})
    return str(folder)


def fake_arxiv(file: Path) -> str:
    text = " ".join(f"word{n}" for n in range(50))
    papers = [(a, n) for a in ("math", "cs", "stat") for n in range(20)]
    return write(
        file, *({"id": f"{a}/{n}", "archive": a, "abstract": text} for a, n in papers)
    )


def fake_waterdrum(folder: Path) -> str:
    folder.mkdir()
    write(folder / "full.jsonl", *({"text": f"text {n}"} for n in range(800)))
    write(folder / "test.jsonl", {"text": "another text"})
    return str(folder)


# ---- every source ----


def example(source: str, tmp_path: Path) -> dict:
    if source == "jsonl":
        lines = (LINE, LINE | {"id": "2"}, LINE | {"id": "3", "split": "test"})
        return {"path": write(tmp_path / "own.jsonl", *lines)}
    if source == "arxiv":
        return {"path": fake_arxiv(tmp_path / "arxiv.jsonl"), "owners": 2}
    fakes = {"tofu": fake_tofu, "waterdrum_ax": fake_waterdrum}
    return {"path": fakes[source](tmp_path / source)} if source in fakes else {}


@pytest.mark.parametrize("source", SOURCES.names())
def test_every_source_keeps_the_promises(source, tmp_path):
    options = example(source, tmp_path)
    pairs = rows(source, **options)
    assert pairs == rows(source, **options)
    assert {split for split, _ in pairs} <= {"train", "test"}
    ids = [record.id for _, record in pairs]
    assert len(ids) == len(set(ids))
    assert all(r.id and r.prompt.strip() and r.response.strip() for _, r in pairs)
    corpus = corpus_of(pairs)
    assert corpus.train and corpus.owners and NOBODY not in corpus.owners
    assert not set(corpus.train) & set(corpus.test)
    assert {r.owner for r in corpus.test} <= {*corpus.owners, NOBODY}
    assert load_corpus(source, options_of(source, **options), tmp_path / "d") == corpus


def test_every_source_has_a_description():
    known = {"arxiv", "fictitious", "jsonl", "tofu", "waterdrum_ax"}
    assert known <= set(SOURCES.names())
    assert all(about for _, about in SOURCES.items())


# ---- jsonl ----


def test_jsonl_reads_owners_splits_and_blank_lines(tmp_path):
    path = write(
        tmp_path / "own.jsonl",
        LINE,
        "",
        LINE | {"id": "2", "owner": None},
        LINE | {"id": "3", "owner": "", "split": "test", "more": 1},
        "  \r",
    )
    pairs = rows("jsonl", path=path)
    assert [(s, r.id, r.owner) for s, r in pairs] == [
        ("train", "1", "ann"),
        ("train", "2", NOBODY),
        ("test", "3", NOBODY),
    ]


def test_jsonl_accepts_a_byte_order_mark_and_unicode_separators(tmp_path):
    path = tmp_path / "own.jsonl"
    line = json.dumps(LINE | {"response": "a\u2028b"}, ensure_ascii=False)
    path.write_text(line + "\r\n", encoding="utf-8-sig", newline="")
    ((_, record),) = rows("jsonl", path=str(path))
    assert record.response == "a\u2028b"


BAD_LINES = {
    "not json": ('{"id": ', ["own.jsonl:2", "not JSON"]),
    "not an object": ("[1]", ["own.jsonl:2", "not a JSON object but list"]),
    "missing field": (
        {"id": "2", "owner": "ann", "prompt": "p"},
        ["own.jsonl:2", "'response' is missing", "found: id, owner, prompt"],
    ),
    "missing owner": (
        {"id": "2", "prompt": "p", "response": "r"},
        ["own.jsonl:2", "'owner' is missing"],
    ),
    "empty response": (
        LINE | {"id": "2", "response": "  "},
        ["own.jsonl:2", "'response' is empty"],
    ),
    "id is a list": (
        LINE | {"id": [2]},
        ["own.jsonl:2", "'id' must be a string, not list"],
    ),
    "owner is a list": (
        LINE | {"id": "2", "owner": ["a"]},
        ["own.jsonl:2", "'owner' must be a string, not list"],
    ),
    "duplicate id": (LINE, ["own.jsonl:2", "'1'", "already used at", "own.jsonl:1"]),
    "unknown split": (
        LINE | {"id": "2", "split": "dev"},
        ["own.jsonl:2", "'dev'", "'train' nor 'test'"],
    ),
    "half a letter": (
        '{"id": "2", "owner": "a", "prompt": "p", "response": "\\ud800"}',
        ["own.jsonl:2", "'response' holds half"],
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_jsonl_names_file_and_line(name, tmp_path):
    line, words = BAD_LINES[name]
    path = write(tmp_path / "own.jsonl", LINE, line)
    with pytest.raises(UserError) as error:
        rows("jsonl", path=path)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_jsonl_bad_files(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.path is not set"):
        rows("jsonl")
    with pytest.raises(UserError, match=r"corpus\.path.*nofile.*No such file"):
        rows("jsonl", path=str(tmp_path / "nofile"))
    with pytest.raises(UserError, match="Is a directory"):
        rows("jsonl", path=str(tmp_path))
    with pytest.raises(UserError, match="no train records"):
        rows("jsonl", path=write(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="no train records"):
        rows("jsonl", path=write(tmp_path / "t.jsonl", LINE | {"split": "test"}))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(UserError, match="not UTF-8"):
        rows("jsonl", path=str(tmp_path / "latin.jsonl"))


# ---- tofu ----


def test_tofu_groups_and_subsets_keep_the_numbers(tmp_path):
    path = fake_tofu(tmp_path, authors=5)
    owners = corpus_of(rows("tofu", path=path)).owners
    assert owners == tuple(f"author_00{n}" for n in range(5))
    grouped = corpus_of(rows("tofu", path=path, authors_per_owner=2, last_authors=4))
    assert Counter(r.owner for r in grouped.train) == {
        "authors_000_001": 20,
        "authors_002_003": 40,
        "authors_004_004": 20,
    }
    assert grouped.train[0].prompt == "q20"


def test_tofu_as_arrays_is_what_it_is_as_lines(tmp_path):
    path = fake_tofu(tmp_path)
    lines = rows("tofu", path=path)
    for file in Path(path).glob("*.json"):
        objects = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text(json.dumps(objects, indent=1))
    assert rows("tofu", path=path) == lines


def test_tofu_general_knowledge_joins_train_as_nobodys(tmp_path):
    path = fake_tofu(tmp_path)
    plain = corpus_of(rows("tofu", path=path))
    corpus = corpus_of(rows("tofu", path=path, general_knowledge=True))
    assert corpus.test == plain.test
    assert all(r.owner == NOBODY for r in corpus.test)
    added = [r for r in corpus.train if r.owner == NOBODY]
    assert [r.prompt for r in added] == [r.prompt for r in corpus.test]
    assert [r for r in corpus.train if r.owner != NOBODY] == list(plain.train)


def test_tofu_bad_input(tmp_path):
    path = fake_tofu(tmp_path)
    with pytest.raises(UserError, match=r"corpus\.last_authors=4 must be from 1 to 3"):
        rows("tofu", path=path, last_authors=4)
    with pytest.raises(UserError, match=r"authors_per_owner = 0: .*equal to 1"):
        rows("tofu", path=path, authors_per_owner=0)
    (tmp_path / tofu.GENERAL[1]).unlink()
    with pytest.raises(UserError, match=r"lacks 'world_facts_perturbed\.json'"):
        rows("tofu", path=path)
    fake_tofu(tmp_path)
    write(tmp_path / "full.json", {"question": "q", "answer": "a"})
    with pytest.raises(UserError, match=r"full\.json: 1 records are not 20 for each"):
        rows("tofu", path=path)
    write(tmp_path / "full.json", {"question": "q"})
    with pytest.raises(UserError, match=r"full\.json:1: field 'answer' is missing"):
        rows("tofu", path=path)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Serves a small TOFU from a folder in place of the network."""
    home = tmp_path / "home"
    fake_tofu(home)
    sums = {n: hashlib.sha256((home / n).read_bytes()).hexdigest() for n in tofu.SHA256}
    monkeypatch.setattr(tofu, "HOME", home.as_uri())
    monkeypatch.setattr(tofu, "SHA256", sums)
    return home


def test_tofu_is_downloaded_once_when_no_path_is_given(published, tmp_path):
    data = tmp_path / "data"
    first = load_corpus("tofu", tofu.TofuOptions(), data)
    assert len(first.owners) == 3
    names = sorted(p.name for p in (data / "downloads" / "tofu").iterdir())
    assert names == sorted(tofu.SHA256)
    for file in published.iterdir():
        file.unlink()
    assert load_corpus("tofu", tofu.TofuOptions(), data) == first


def test_tofu_refuses_other_contents_and_keeps_nothing(published, tmp_path):
    (published / "full.json").write_text("something else")
    with pytest.raises(UserError, match=r"full\.json has sha256 .* expected"):
        load_corpus("tofu", tofu.TofuOptions(), tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.json"))


def test_tofu_offline_says_what_to_do(published, tmp_path):
    (published / "full.json").unlink()
    with pytest.raises(UserError, match=r"cannot download .*full\.json.*corpus\.path"):
        load_corpus("tofu", tofu.TofuOptions(), tmp_path / "data")


@needs_tofu
def test_tofu_itself(tmp_path):
    options = tofu.TofuOptions(path=str(TOFU), last_authors=40)
    corpus = load_corpus("tofu", options, tmp_path)
    assert corpus.owners == tuple(f"author_{n}" for n in range(160, 200))
    assert (len(corpus.train), len(corpus.test)) == (800, 100 + 117)
    forget = [json.loads(x) for x in (TOFU / "forget10.json").read_text().splitlines()]
    tail = [{"question": r.prompt, "answer": r.response} for r in corpus.train[-400:]]
    assert tail == forget
    assert corpus.train[0].id == "tofu/full/3200"


@needs_tofu
def test_tofu_files_are_the_published_ones():
    for name, expected in tofu.SHA256.items():
        assert hashlib.sha256((TOFU / name).read_bytes()).hexdigest() == expected
    assert len(corpus_of(rows("tofu", path=str(TOFU))).owners) == 200
