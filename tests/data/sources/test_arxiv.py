import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from dareu_jax.config import build_config
from dareu_jax.data import NOBODY, Corpus, load_corpus
from dareu_jax.data.sources import arxiv
from dareu_jax.errors import UserError

DATA = (
    Path(os.environ.get("DAREU_DATA") or Path(__file__).parents[4] / "shared") / "arxiv"
)
needs_arxiv = pytest.mark.skipif(
    not (DATA / arxiv.LINES).is_file(),
    reason="arXiv's file is absent; set DAREU_DATA to the folder that holds arxiv/",
)
LARGEST = {
    "astro-ph": 391,
    "cond-mat": 375,
    "math": 319,
    "physics": 136,
    "hep-ph": 118,
    "hep-th": 112,
    "quant-ph": 103,
    "cs": 72,
    "gr-qc": 65,
    "nucl-th": 48,
    "math-ph": 27,
    "hep-ex": 25,
    "nlin": 22,
    "nucl-ex": 20,
    "q-bio": 19,
    "q-fin": 13,
    "hep-lat": 8,
    "stat": 3,
}
"""Usable abstracts of each archive."""


def corpus(path: Path | str, **options) -> Corpus:
    rows = arxiv.arxiv_rows(
        arxiv.ArxivOptions.model_construct(path=str(path), **options), Path("unused")
    )
    by_split = {"train": [], "test": []}
    for split, record in rows:
        by_split[split].append(record)
    return Corpus(tuple(by_split["train"]), tuple(by_split["test"]))


def words(count: int, first: str = "w0") -> str:
    return " ".join([first, *(f"w{n}" for n in range(1, count))])


def paper(id: str, archive: str, abstract: str | None = None) -> dict:
    return {"id": id, "archive": archive, "abstract": abstract or words(50)}


def write(file: Path, *papers: dict) -> Path:
    file.write_text("\n".join(map(json.dumps, papers)), encoding="utf-8")
    return file


@pytest.fixture
def small(tmp_path) -> Path:
    """Math has four usable abstracts; cs and stat have two each, hep-th has one."""
    archives = ("stat", "math", "cs", "math", "hep-th", "math", "cs", "stat", "math")
    return write(
        tmp_path / "small.jsonl", *(paper(str(n), a) for n, a in enumerate(archives))
    )


def ids(records) -> list[str]:
    return [record.id.removeprefix("arxiv/") for record in records]


def test_the_largest_archives_own_their_first_abstracts(small):
    made = corpus(small, owners=2, records_per_owner=2)
    assert made.owners == ("math", "cs")
    assert ids(made.train) == ["1", "3", "2", "6"]
    assert [r.owner for r in made.train] == ["math", "math", "cs", "cs"]
    assert ids(made.test) == ["0", "4"]
    assert {r.owner for r in made.test} == {NOBODY}


def test_a_folder_that_holds_the_file_is_a_path_too(small):
    small.rename(small.parent / arxiv.LINES)
    assert len(corpus(small.parent, owners=1, records_per_owner=4).train) == 4


def test_an_abstract_is_cut_after_the_prompt_words(tmp_path):
    text = " one  two\nthree\tfour " + words(40)
    file = write(tmp_path / "one.jsonl", paper("1", "math", text))
    (record,) = corpus(file, owners=1, records_per_owner=1, prompt_words=3).train
    assert (record.prompt, record.response) == ("one two three", f"four {words(40)}")
    (record,) = corpus(file, owners=1, records_per_owner=1).train
    assert len(record.prompt.split()) == 40
    assert record.response == "w36 w37 w38 w39"


def test_short_and_withdrawn_abstracts_are_not_usable(tmp_path):
    texts = (words(39), words(40), words(41), words(60, "Withdrawn,"), words(80))
    papers = (paper(str(n), "math", text) for n, text in enumerate(texts))
    file = write(tmp_path / "some.jsonl", *papers)

    def usable(prompt_words: int) -> list[str]:
        for most in range(5, 0, -1):
            options = {"records_per_owner": most, "prompt_words": prompt_words}
            try:
                return ids(corpus(file, owners=1, **options).train)
            except UserError:
                continue
        return []

    assert usable(5) == ["1", "2", "4"]
    assert usable(40) == ["2", "4"]
    assert usable(79) == ["4"]
    assert usable(80) == []


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            {"owners": 3, "records_per_owner": 3},
            (
                "corpus.records_per_owner=3: archive 'stat' has only 2 usable",
                "at most 2 or lower corpus.owners=3",
            ),
        ),
        (
            {"owners": 5, "records_per_owner": 1},
            ("corpus.owners=5", "small.jsonl", "only 4 archives", "prompt_words=40"),
        ),
        ({"owners": 1, "prompt_words": 50}, ("only 0 archives", "prompt_words=50")),
    ],
)
def test_options_out_of_range(small, options, parts):
    with pytest.raises(UserError) as error:
        corpus(small, **options)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("name", ["owners", "records_per_owner", "prompt_words"])
def test_options_below_their_range(name):
    with pytest.raises(UserError, match=f"corpus.{name} = 0: .*greater than or equal"):
        build_config({"corpus": {"source": "arxiv", name: 0}})


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.path.*nofile.*No such file"):
        corpus(tmp_path / "nofile.jsonl")
    with pytest.raises(UserError, match=r"neither 'arxiv_abs.*jsonl' nor 'arxiv_data"):
        corpus(tmp_path)
    bad = write(tmp_path / "bad.jsonl", paper("1", "math"), {"id": "2", "archive": "x"})
    with pytest.raises(UserError, match=r"bad\.jsonl:2: field 'abstract' is missing"):
        corpus(bad)


# ---- the public table ----

HEADER = (
    "id,submitter,authors,title,comments,journal-ref,doi,report-no,categories,"
    "license,abstract,versions,update_date,authors_parsed\n"
)


def row(id: str, categories: str, abstract: str) -> str:
    """Returns a row as the table has it: empty fields, quotes, texts of many lines."""
    return (
        f'{id},Ann Bell,"Ann Bell, Bo Cé","On ""x""\n  and y","9 pages, 1 figure",,,,'
        f"{categories},,\"  {abstract}\n\",\"[{{'version': 'v1'}}]\",5/23/2007,"
        "\"[['Bell', 'Ann', '']]\"\n"
    )


TABLE = (
    HEADER
    + row("704.0009", "math.CO cs.CG", f'A ""quoted"" word,\nand\n  {words(44)}')
    + row("704.001", "math.CO", words(50))
    + row("704.2", "hep-th gr-qc", words(50))
)


def test_the_public_table_gives_the_same_records(tmp_path):
    (tmp_path / arxiv.TABLE).write_text(TABLE, encoding="utf-8-sig")
    papers = (
        paper("0704.0009", "math", f'A "quoted" word, and {words(44)}'),
        paper("0704.0010", "math"),
        paper("0704.2000", "hep-th"),
    )
    lines = write(tmp_path / "same.jsonl", *papers)
    options = {"owners": 1, "records_per_owner": 2}
    made = corpus(tmp_path / arxiv.TABLE, **options)
    assert made == corpus(tmp_path, **options) == corpus(lines, **options)
    assert ids(made.train) == ["0704.0009", "0704.0010"]
    assert ids(made.test) == ["0704.2000"]


def test_a_bad_table_is_named_with_its_line(tmp_path):
    file = tmp_path / arxiv.TABLE
    file.write_text(TABLE.replace("categories,", "kind,"))
    with pytest.raises(UserError, match=r"csv:\d+: field 'categories' is missing"):
        corpus(file)
    file.write_text(TABLE[: TABLE.rindex("w20")])
    with pytest.raises(UserError, match=r"csv:\d+: not comma-separated .*restore"):
        corpus(file)
    file.write_bytes(b"\xe9")
    with pytest.raises(UserError, match=r"not UTF-8 .*comma-separated values"):
        corpus(file)


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """Serves a small table from a folder in place of the network."""
    file = tmp_path / "home" / arxiv.TABLE
    file.parent.mkdir()
    file.write_text(TABLE, encoding="utf-8")
    monkeypatch.setattr(arxiv, "HOME", file.parent.as_uri())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(arxiv, "SHA256", digest)
    return file


SMALL = arxiv.ArxivOptions(owners=2, records_per_owner=1)


def test_the_table_is_downloaded_once_when_no_path_is_given(published, tmp_path):
    data = tmp_path / "data"
    first = load_corpus("arxiv", SMALL, data)
    assert first.owners == ("math", "hep-th")
    names = [file.name for file in (data / "downloads" / "arxiv").iterdir()]
    assert names == [arxiv.TABLE]
    published.unlink()
    assert load_corpus("arxiv", SMALL, data) == first


def test_other_contents_are_refused_and_not_kept(published, tmp_path):
    published.write_text("something else")
    with pytest.raises(UserError, match=r"csv has sha256 .*expected.*corpus\.path"):
        load_corpus("arxiv", SMALL, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_offline_says_what_to_do(published, tmp_path):
    published.unlink()
    with pytest.raises(UserError, match=r"cannot download .*csv.*corpus\.path"):
        load_corpus("arxiv", SMALL, tmp_path / "data")


def test_the_published_table_has_one_address():
    assert re.fullmatch(
        r"https://raw\.githubusercontent\.com/gechhai/Topic_Discovery/[0-9a-f]{40}",
        arxiv.HOME,
    )


# ---- the real abstracts ----


@needs_arxiv
def test_the_file_is_the_one_that_the_numbers_are_of():
    digest = hashlib.sha256((DATA / arxiv.LINES).read_bytes()).hexdigest()
    assert digest == "0ce1e6c1436917146abc5ee676a1d503a34012d858ddc8cb42771bc4a902b5ad"


@needs_arxiv
def test_usable_abstracts_of_each_archive():
    records = list(arxiv._usable(DATA / arxiv.LINES, 39))
    assert Counter(record.owner for record in records) == LARGEST
    longer = Counter(record.owner for record in arxiv._usable(DATA / arxiv.LINES, 40))
    fewer = {"math": 311, "hep-th": 110, "nucl-th": 47}
    assert longer == LARGEST | fewer


@needs_arxiv
def test_seven_archives_of_a_hundred(tmp_path):
    options = arxiv.ArxivOptions(path=str(DATA), owners=7, records_per_owner=100)
    made = load_corpus("arxiv", options, tmp_path)
    assert made.owners == tuple(LARGEST)[:7]
    assert Counter(r.owner for r in made.train) == dict.fromkeys(made.owners, 100)
    assert len(made.test) == 100
    assert {len(r.prompt.split()) for r in made.train + made.test} == {40}
    first = made.train[0]
    assert (first.id, first.owner) == ("arxiv/0704.0009", "astro-ph")
    assert first.prompt.startswith("We discuss the results from the combined IRAC")


@needs_arxiv
def test_an_archive_with_too_few_is_named():
    with pytest.raises(UserError, match=r"'quant-ph' has only 103 usable.*at most 103"):
        corpus(DATA, owners=7, records_per_owner=104)
