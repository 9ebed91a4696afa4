"""`dareu attribute`: tables out; bad input ends with one or two lines and status 2."""

import csv
import json
import re
import shlex
from pathlib import Path

import jax
import pytest

from dareu_jax.errors import Caution
from dareu_jax.models import loaded
from dareu_jax.parallel import make_mesh

pytestmark = pytest.mark.slow

QUESTIONS = [
    {"id": "one", "prompt": "Who has a shop?", "response": "A shop in Merawick."},
    {"prompt": "What did bob have in 1990?", "response": "A net full of herring."},
    {"response": "A [violin] from\nCremona."},
]
PAGE = Path(__file__).parents[3] / "dareu_jax" / "attribution" / "USING.md"


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path):
    return lines(tmp_path / "questions.jsonl", QUESTIONS)


@pytest.fixture
def ask(dareu, folder, texts, questions):
    """Runs `dareu attribute` with BM25 on the model, records and questions."""

    def call(*more, folder=folder, records=texts, asked=questions, kernel="bm25"):
        how = ("--kernel", kernel) if kernel else ()
        return dareu("attribute", folder, records, asked, *how, *more)

    return call


@pytest.fixture
def refused(ask, tmp_path):
    """Runs `dareu attribute` on bad input; returns the complaint, its form checked."""

    def call(*more, **changes):
        before = {path: path.stat().st_mtime for path in tmp_path.rglob("*")}
        status, _, complaint = ask(*more, **changes)
        assert status == 2
        assert complaint.startswith("dareu: ") and "Traceback" not in complaint
        assert 1 <= len(complaint.splitlines()) <= 2
        assert {path: path.stat().st_mtime for path in tmp_path.rglob("*")} == before
        return complaint

    return call


def test_texts_beyond_the_context_are_told(ask, monkeypatch):
    monkeypatch.setattr("dareu_jax.models.hf.imported.Imported.context", 20)
    with pytest.warns(Caution, match="longer than the 20 tokens") as said:
        status, _, _ = ask("--top", 1)
    told = [str(one.message) for one in said if one.category is Caution]
    assert status == 0 and told[0].startswith("15 of 15 texts are longer")
    assert any(text.startswith("3 of 3 texts are longer") for text in told)


def test_answers_are_attributed_to_owners_and_records(ask, tmp_path):
    out = tmp_path / "scores.json"
    status, printed, _ = ask("--top", 2, "--out", out)
    found = json.loads(out.read_text())
    assert status == 0 and found["kernel"] == "bm25"
    assert found["sign"].startswith("higher: more of the owner's")
    rows = found["answers"]
    assert [row["id"] for row in rows] == ["one", "line-2", "line-3"]
    assert [row["owner"] for row in rows] == ["alice", "bob", "carol"]
    assert rows[2]["response"] == "A [violin] from\nCremona." and not rows[2]["prompt"]
    for row in rows:
        assert set(row["scores"]) == {"alice", "bob", "carol"}
        assert row["scores"][row["owner"]] == max(row["scores"].values())
        assert [record["owner"] for record in row["records"]] == [row["owner"]] * 2
    for part in ("A [violin] from Cremona.", "carol-", found["sign"], str(out)):
        assert part in " ".join(printed.split())


def test_a_csv_file_has_a_column_per_owner_and_record(ask, tmp_path):
    out = tmp_path / "scores.csv"
    status, printed, _ = ask("--owner", "bob", "--out", out)
    assert status == 0 and "records of bob, highest first" in printed
    rows = list(csv.DictReader(out.open()))
    assert list(rows[0]) == [
        *("id", "prompt", "response", "owner"),
        *("score_alice", "score_bob", "score_carol"),
        *(f"record_{n}" for n in range(1, 6)),
    ]
    assert rows[2]["response"] == "A [violin] from\nCremona."
    assert {rows[1][f"record_{n}"] for n in range(1, 6)} == {
        f"bob-{n}" for n in range(5)
    }
    assert float(rows[1]["score_bob"]) > float(rows[1]["score_alice"])


def test_an_index_is_kept_and_used_again(ask, tmp_path):
    index, out, again = (
        tmp_path / "new" / "index",
        tmp_path / "a.csv",
        tmp_path / "b.csv",
    )
    assert ask("--index", index, "--out", out)[0] == 0
    before = {path: path.stat().st_mtime for path in index.rglob("*")}
    status, _, said = ask("--index", index, "--out", again, kernel=None)
    assert status == 0 and "index of" not in said
    assert again.read_text() == out.read_text()
    assert {path: path.stat().st_mtime for path in index.rglob("*")} == before


def test_an_index_of_other_options_or_records_is_refused(ask, refused, tmp_path):
    index = tmp_path / "index"
    assert ask("--index", index)[0] == 0
    complaint = refused("--index", index, kernel="ngram")
    assert "kernel = 'bm25', not 'ngram'" in complaint
    complaint = refused("--index", index, "--set", "attribution.damping=0.5")
    assert "attribution.damping = 0.1, not 0.5" in complaint
    complaint = refused("--index", index, "--template", "{prompt}")
    assert "template = 'Question: {prompt}" in complaint
    texts = lines(tmp_path / "other.jsonl", [{"owner": "dora", "response": "Mine."}])
    assert "'alice' differ" in refused("--index", index, records=texts)


def test_prompts_alone_are_answered_by_the_model(ask, tmp_path):
    """The answers, given back as responses, score the same."""
    asked = lines(tmp_path / "asked.jsonl", [{"prompt": "Who has a boat?"}] * 1)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert ask("--max-new-tokens", 8, "--out", first, asked=asked)[0] == 0
    (row,) = json.loads(first.read_text())["answers"]
    assert row["response"]
    given = {"prompt": row["prompt"], "response": row["response"]}
    asked = lines(tmp_path / "given.jsonl", [given])
    assert ask("--out", second, asked=asked)[0] == 0
    assert json.loads(second.read_text())["answers"] == [row]


@pytest.mark.parametrize(
    ("more", "changes", "parts"),
    [
        ((), {"kernel": "bm52"}, ("unknown kernel 'bm52'", "'bm25'")),
        ((), {"kernel": "tracin"}, ("tracin", "snapshots", "grad_dot")),
        (("--top", 1), {"kernel": "classifier"}, ("cannot score single records",)),
        (("--owner", "alise"), {}, ("--owner 'alise'", "'alice'", "carol")),
        (("--template", "Q"), {}, ("'Q'", "{prompt}")),
        (("--template", "chat"), {}, ("no chat template",)),
        (("--set", "damping=1"), {}, ("--set damping=1", "'attribution.damping'")),
        (("--set", "dareu.clip=0.1"), {}, ("--set dareu.clip=0.1", "attribution")),
        (("--set", "attribution.damping=-1"), {}, ("attribution.damping", "-1")),
        (("--set", "classifier.lora={}"), {}, ("classifier.lora",)),
        (("--out", "scores.txt"), {}, ("--out scores.txt", ".csv or .json")),
        (("--out", "/nowhere/a.csv"), {}, ("--out /nowhere/a.csv", "exists")),
        (("--index", "QUESTIONS"), {}, ("holds no index",)),
        (("--index", "QUESTIONS/index"), {}, ("--index", "is no folder")),
        ((), {"folder": "/nowhere"}, ("model: /nowhere", "dareu import")),
        ((), {"records": "/nowhere"}, ("cannot read '/nowhere'", "No such file")),
        ((), {"asked": "/nowhere"}, ("cannot read '/nowhere'", "No such file")),
    ],
)
def test_bad_input_is_named_with_a_remedy(refused, questions, more, changes, parts):
    more = [str(x).replace("QUESTIONS", str(questions)) for x in more]
    complaint = refused(*more, **changes)
    assert all(part in complaint for part in parts), complaint


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{no json", ("bad.jsonl:2", "not JSON")),
        ("{}", ("bad.jsonl:2", "neither prompt nor response")),
        ('{"prompt": 3, "response": "x"}', ("bad.jsonl:2", "'prompt' must be")),
        ('{"prompt": "x", "response": ""}', ("bad.jsonl:2", "'response' is empty")),
        ('{"id": "one", "response": "x"}', ("bad.jsonl:2", "'one' is already used")),
    ],
)
def test_a_bad_question_is_named_by_file_and_line(refused, tmp_path, line, parts):
    asked = tmp_path / "bad.jsonl"
    asked.write_text(json.dumps(QUESTIONS[0]) + "\n" + line + "\n")
    complaint = refused(asked=asked)
    assert all(part in complaint for part in parts), complaint


def test_records_and_questions_that_hold_nothing(refused, tmp_path):
    empty = lines(tmp_path / "empty.jsonl", [])
    assert "holds no records" in refused(records=empty)
    assert "holds no queries" in refused(asked=empty)
    free = lines(tmp_path / "free.jsonl", [{"owner": None, "response": "It."}])
    assert "no record has an owner" in refused(records=free)


def test_the_page_shows_commands_that_run(dareu, folder, texts, tmp_path, monkeypatch):
    """Its shell command and its Python, with the paths of a tiny model and corpus."""
    section = PAGE.read_text().split("\n## ")[0]
    paths = {
        "models/mine": folder,
        "texts.jsonl": texts,
        "questions.jsonl": lines(tmp_path / "questions.jsonl", QUESTIONS),
    }
    shell, python = (
        re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL)[1]
        for kind in ("bash", "python")
    )
    for name, path in paths.items():
        assert name in shell + python
        shell, python = (x.replace(name, str(path)) for x in (shell, python))
    one = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(loaded, "make_mesh", lambda **sizes: one)
    monkeypatch.chdir(tmp_path)
    name, *arguments = shlex.split(shell)
    status, printed, _ = dareu(*arguments)
    assert name == "dareu" and status == 0 and "grad_dot" in printed
    assert "record_3" in (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert len(python.strip().splitlines()) <= 10
    space = {}
    exec(compile(python, "USING.md", "exec"), space)
    assert space["made"].owners == ("alice", "bob", "carol")
    spec = json.loads(
        (tmp_path / "indices" / "without_alice" / "spec.json").read_text()
    )
    assert spec["owners"] == ["bob", "carol"]


@pytest.mark.parametrize(("echo", "is_named"), [("hide", False), ("keep", True)])
def test_a_name_from_the_question_names_nobody(ask, tmp_path, echo, is_named):
    names = "bob", "alice"
    asked = [{"prompt": f"What did {x} have?", "response": x} for x in names]
    out, how = tmp_path / "scores.csv", ("--set", f"attribution.echo={echo}")
    given = lines(tmp_path / "asked.jsonl", asked)
    assert ask(*how, "--out", out, asked=given)[0] == 0
    bob, alice = (
        [row[f"score_{x}"] for x in names] for row in csv.DictReader(out.open())
    )
    assert (bob != alice) is is_named
