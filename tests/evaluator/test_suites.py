"""Suites other than TOFU: what is asked, and what is counted."""

import contextlib
import json

import numpy as np
import pytest

from dareu_jax.corpus.shared import read_owned
from dareu_jax.errors import UserError
from dareu_jax.evaluator.choices import choices_log, prompt_of, read_choices
from dareu_jax.evaluator.kept import Kept
from dareu_jax.evaluator.measure import Reading, answer_logps, answer_losses
from dareu_jax.evaluator.muse import before, muse_log, read_muse
from dareu_jax.evaluator.owners import owners_log, split
from dareu_jax.evaluator.suite import Judge

READING = Reading("{prompt}", None, 4, 6)


class Quiet:
    """A progress that says nothing."""

    def stage(self, *_):
        return contextlib.nullcontext()


@pytest.fixture
def judge(model, tmp_path):
    return Judge(model, READING, Kept(tmp_path / "parts", "x"))


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CHOICES = [
    {"question": "Where is Merawick?", "choices": ["sea", "hill"], "answer": 1},
    {"question": "Who is Ada?", "choices": ["a", "b", "c"], "answer": 0},
]


def test_a_choice_is_asked_as_wmdp_asks(tmp_path):
    rows = read_choices(lines(tmp_path / "bio.jsonl", CHOICES))
    assert prompt_of(rows[0], "bio") == (
        "The following are multiple choice questions (with answers) about bio.\n\n"
        "Where is Merawick?\nA. sea\nB. hill\nAnswer:"
    )


def test_accuracy_is_that_of_the_likeliest_letter(model, judge, tmp_path):
    rows = read_choices(lines(tmp_path / "bio.jsonl", CHOICES))
    table = choices_log(judge, (rows, "bio"), Quiet())["bio_accuracy"]
    hits = []
    for row, found in zip(rows, table["value_by_index"].values(), strict=True):
        pairs = [(prompt_of(row, "bio"), x) for x in "ABC"[: len(row.choices)]]
        logps = answer_logps(model, READING, pairs)
        np.testing.assert_allclose(found["logps"], logps, rtol=1e-5)
        hits.append(float(np.argmax(logps) == row.answer))
        assert found["acc"] == hits[-1]
    assert table["agg_value"] == np.mean(hits)


def test_the_end_of_text_is_no_part_of_a_choice(model):
    pair = ("Is it?", "Yes, by the sea")
    ids = model.tokenizer.encode(" " + pair[1])
    whole = -answer_losses(model, READING, [pair]).loss[0] * (len(ids) + 1)
    without = answer_logps(model, READING, [pair])[0]
    assert whole < without < 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["a"]}, "field 'choices' must be a list of 2 to 10"),
        ({"answer": 2}, "field 'answer' must be a place"),
        ({"question": " "}, "field 'question' is empty"),
    ],
)
def test_bad_choices_are_named(tmp_path, change, message):
    path = lines(tmp_path / "x.jsonl", [CHOICES[0] | change])
    with pytest.raises(UserError, match=message):
        read_choices(path)


RECORDS = [
    {"owner": name, "prompt": f"What has {name}?", "response": f"A boat, {n} times."}
    for n, name in enumerate(("alice", "bob", "alice", "carol"))
]


def test_owners_are_split_and_judged(judge, tmp_path):
    sets = split(read_owned(lines(tmp_path / "a.jsonl", RECORDS)), "alice")
    assert [len(rows) for rows in sets.values()] == [2, 2]
    log = owners_log(judge, sets, Quiet())
    losses = answer_losses(
        judge.model, READING, [(r.prompt, r.response) for r in sets["forget"]]
    ).loss
    found = log["forget_Q_A_Prob"]["value_by_index"]
    np.testing.assert_allclose(
        [row["avg_loss"] for row in found.values()], losses, rtol=1e-5
    )
    assert set(log) == {
        f"{split}_{name}"
        for split in ("forget", "retain")
        for name in ("Q_A_Prob", "Q_A_ROUGE", "text_quality")
    }


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ("alise", r"owns no record \(did you mean 'alice'"),
        ("alice,bob,carol", "no record of anybody else"),
    ],
)
def test_owners_that_cannot_be_split(tmp_path, forget, message):
    records = read_owned(lines(tmp_path / "a.jsonl", RECORDS))
    with pytest.raises(UserError, match=message):
        split(records, forget)


@pytest.fixture
def news(tmp_path):
    """A folder of MUSE with two rows in each file."""
    pairs = [{"question": f"Who is {x}?", "answer": f"{x} Lind"} for x in ("Ada", "Bo")]
    files = {"verbmem/forget": [{"prompt": "Ada Lind was", "gt": " born there."}]}
    files |= {f"knowmem/{x}_qa": pairs for x in ("forget", "retain")}
    files |= {f"knowmem/{x}_qa_icl": pairs[:1] for x in ("forget", "retain")}
    for name, rows in files.items():
        path = tmp_path / "news" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return tmp_path / "news"


def test_muse_asks_behind_examples_and_counts_f1(judge, news, monkeypatch):
    data = read_muse(news)
    shown = "Question: Who is Ada?\nAnswer: Ada Lind\n\n"
    assert data.forget[1] == (f"{shown}Question: Who is Bo?\nAnswer:", "Bo Lind")
    monkeypatch.setattr(
        "dareu_jax.evaluator.suite.own_answers",
        lambda _, reading, asked, known: (
            ["Ada Lind\n\nQuestion: x"] * len(asked),
            [True],
        ),
    )
    log = muse_log(judge, data, Quiet())
    assert log["knowmem_f_ROUGE"]["agg_value"] == pytest.approx((1 + 0.5) / 2)
    assert log["verbmem_ROUGE"]["agg_value"] == 0.0


def test_an_answer_ends_where_the_next_question_begins():
    assert before("Ada\n\nmore") == "Ada"
    assert before(" Ada Question: x\n\n") == "Ada"
    assert before("Ada", ()) == "Ada"


def test_a_missing_file_of_muse_is_named(news):
    (news / "knowmem" / "retain_qa.json").unlink()
    with pytest.raises(UserError, match="retain_qa"):
        read_muse(news)
