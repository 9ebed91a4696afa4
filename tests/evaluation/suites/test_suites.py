"""Suites other than TOFU: what is asked, and what is counted."""

import json
import re
from zlib import compress

import numpy as np
import pytest

from dareu_jax.data import Wording
from dareu_jax.data.sources.jsonl import read_owned
from dareu_jax.errors import Caution, UserError
from dareu_jax.evaluation.metrics.mia import privleak
from dareu_jax.evaluation.suites.choices import choices_log, prompt_of, read_choices
from dareu_jax.evaluation.suites.judge import Judge
from dareu_jax.evaluation.suites.kept import Kept
from dareu_jax.evaluation.suites.measure import (
    Reading,
    answer_logps,
    answer_losses,
    as_tokens,
    own_answers,
)
from dareu_jax.evaluation.suites.muse import attacks_log, before, muse_log, read_muse
from dareu_jax.evaluation.suites.owners import owners_log, split

pytestmark = pytest.mark.slow

READING = Reading(Wording("{prompt} "), 4, 6)


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


def test_accuracy_is_that_of_the_likeliest_letter(model, judge, tmp_path, quiet):
    rows = read_choices(lines(tmp_path / "bio.jsonl", CHOICES))
    table = choices_log(judge, (rows, "bio"), quiet)["bio_accuracy"]
    hits = []
    for row, found in zip(rows, table["value_by_index"].values(), strict=True):
        pairs = [(prompt_of(row, "bio"), x) for x in "ABC"[: len(row.choices)]]
        logps = answer_logps(model, READING, pairs)
        np.testing.assert_allclose(found["logps"], logps, rtol=1e-5)
        hits.append(float(np.argmax(logps) == row.answer))
        assert found["acc"] == hits[-1]
    assert table["agg_value"] == np.mean(hits)


def test_texts_beyond_the_context_are_told(model):
    short, pairs = model._replace(context=12), [("Is it?", "Yes"), ("Is " * 9, "No")]
    with pytest.warns(Caution, match="1 of 2 texts are longer than the 12 tokens"):
        answer_losses(short, READING, pairs)
    with pytest.warns(Caution, match="1 of 2 prompts are longer than the 12 tokens"):
        own_answers(short, READING, [question for question, _ in pairs])


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
    path = tmp_path / "x.json"
    path.write_text(json.dumps([CHOICES[1], CHOICES[0]]))
    assert [row.question for row in read_choices(path)] == [
        CHOICES[1]["question"],
        CHOICES[0]["question"],
    ]
    path = lines(tmp_path / "x.jsonl", [CHOICES[0] | change])
    with pytest.raises(UserError, match=message):
        read_choices(path)


RECORDS = [
    {"owner": name, "prompt": f"What has {name}?", "response": f"A boat, {n} times."}
    for n, name in enumerate(("alice", "bob", "alice", "carol"))
]


def test_owners_are_split_and_judged(judge, tmp_path, quiet):
    sets = split(read_owned(lines(tmp_path / "a.jsonl", RECORDS)), ["alice"])
    assert [len(rows) for rows in sets.values()] == [2, 2]
    log = owners_log(judge, sets, quiet)
    pairs = [(r.prompt, r.response) for r in sets["forget"]]
    losses = answer_losses(judge.model, READING, pairs).loss
    found = log["forget_Q_A_Prob"]["value_by_index"]
    np.testing.assert_allclose(
        [row["avg_loss"] for row in found.values()], losses, rtol=1e-5
    )
    tokens = as_tokens(judge.model, READING, pairs).response_mask.sum(axis=1)
    table = log["forget_Q_A_Perplexity"]
    wanted = np.exp((losses * tokens).sum() / tokens.sum())
    assert table["agg_value"] == pytest.approx(wanted, rel=1e-5)
    rows = [row["perplexity"] for row in table["value_by_index"].values()]
    np.testing.assert_allclose(rows, np.exp(losses), rtol=1e-5)
    assert set(log) == {
        f"{split}_{name}"
        for split in ("forget", "retain")
        for name in ("Q_A_Prob", "Q_A_Perplexity", "Q_A_ROUGE", "text_quality")
    }


@pytest.mark.parametrize(
    ("rename", "wanted"),
    [
        ({}, {"forget": [1.0, 1.0], "retain": [0.0, 1.0]}),
        ({"bob": "owner_7", "carol": "others"}, {"forget": [None] * 2}),
    ],
)
def test_an_answer_that_names_another_owner_of_the_retain_set_is_marked(
    judge, tmp_path, monkeypatch, quiet, rename, wanted
):
    """alice forgot, bob and carol stay; names that are no words cannot be mentioned."""
    monkeypatch.setattr(
        "dareu_jax.evaluation.suites.measure.own_answers",
        lambda _, reading, asked, guessed: (
            ["Bob's, says Alice."] * len(asked),
            [True] * 2,
        ),
    )
    rows = [r | {"owner": rename.get(r["owner"], r["owner"])} for r in RECORDS]
    sets = split(read_owned(lines(tmp_path / "a.jsonl", rows)), ["alice"])
    log = owners_log(judge, sets, quiet)
    for name, values in wanted.items():
        rows = log[f"{name}_text_quality"]["value_by_index"].values()
        assert [row.get("names_other") for row in rows] == values


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        (["alise"], r"owns no record \(did you mean 'alice'"),
        (["alice", "bob", "carol"], "alice, bob, carol: there is no record of anybody"),
        (["alice,bob"], "owns no record; name several owners by --forget A --forget B"),
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


def test_muse_asks_behind_examples_and_counts_f1(judge, news, monkeypatch, quiet):
    data = read_muse(news)
    shown = "Question: Who is Ada?\nAnswer: Ada Lind\n\n"
    assert data.forget[1] == (f"{shown}Question: Who is Bo?\nAnswer:", "Bo Lind")
    monkeypatch.setattr(
        "dareu_jax.evaluation.suites.measure.own_answers",
        lambda _, reading, asked, guessed: (
            ["Ada Lind\n\nQuestion: x"] * len(asked),
            [True],
        ),
    )
    log = muse_log(judge, data, quiet)
    assert log["knowmem_f_ROUGE"]["agg_value"] == pytest.approx((1 + 0.5) / 2)
    assert log["verbmem_ROUGE"]["agg_value"] == 0.0
    assert not any(name.startswith("mia_") for name in log)
    assert "no privleak/*.json" in quiet.said[0]


PRIVATE = {
    "forget": ["Ada Lind was born there.", "Bo", "Bo Karr told it. " * 20],
    "retain": ["Cy Dole was not."],
    "holdout": ["Di Ferro, of whom nobody said anything.", "Ed Grant"],
}


@pytest.fixture
def leaky(news):
    """A folder of MUSE with texts for attacks."""
    (news / "privleak").mkdir()
    for side, texts in PRIVATE.items():
        (news / "privleak" / f"{side}.json").write_text(json.dumps(texts))
    return news


def test_attacks_on_whole_texts_are_those_of_plain_numpy(judge, plain, leaky, quiet):
    """No prompt but bos, no end of text; what is beyond the context does not count."""
    log, model = attacks_log(judge, read_muse(leaky).private, quiet), judge.model
    assert model.context == 64
    for side, n in (("holdout", 0), ("forget", 2)):
        text = PRIVATE[side][n]
        ids = model.tokenizer.encode(text)[:63]
        logps, _ = plain(model, [model.tokenizer.bos_id], ids)
        lowest = np.sort(logps)[: int(0.4 * len(logps))]
        wanted = {"loss": -logps.mean(), "min_k": -lowest.mean()}
        wanted["zlib"] = wanted["loss"] / len(compress(text.encode()))
        for name, value in wanted.items():
            row = log[f"mia_{name}"][side]["value_by_index"][str(n)]
            assert row["score"] == pytest.approx(value, rel=1e-5)
    (said,) = quiet.said
    assert said.startswith("privleak: 1 of 3 forget texts are longer than 63 tokens")
    table = log["mia_loss"]
    forget, holdout = (
        [row["score"] for row in table[side]["value_by_index"].values()]
        for side in ("forget", "holdout")
    )
    above = [b > a for a in forget for b in holdout]
    assert table["auc"] == table["agg_value"] == pytest.approx(np.mean(above))
    assert len(table["retain"]["value_by_index"]) == 1


def negated(table):
    """An attack that says the opposite of every text: 1 - AUC."""
    if isinstance(table, dict):
        return {k: -x if k == "score" else negated(x) for k, x in table.items()}
    return table


def test_privleak_is_printed_from_two_logs_of_muse(dareu, folder, leaky, tmp_path):
    how = [folder, "--suite", "muse", "--data", leaky, "--out", tmp_path / "own"]
    status, printed, complaint = dareu("evaluate", *how)
    assert status == 0 and "MIA AUC, min_k ≈" in printed, complaint
    path, other = tmp_path / "own" / "MUSE_EVAL.json", tmp_path / "MUSE_EVAL.json"
    log = json.loads(path.read_text())
    other.write_text(json.dumps(negated(log)))
    status, printed, _ = dareu("evaluate", *how, "--reference", other)
    assert status == 0 and "verbmem_ROUGE: 0." in printed
    assert "mia_" not in printed
    status, scored, complaint = dareu("score-logs", path, "--reference", other)
    assert status == 0, complaint
    for name in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        area = log[f"mia_{name}"]["auc"]
        leak = privleak(area, 1 - area)
        for out in (printed, scored):
            assert re.search(rf"MIA AUC, {name} ≈ +{area:.4f}", out)
            assert re.search(rf"PrivLeak %, {name} ≈ +{leak:.2f}", out)


@pytest.mark.parametrize(
    ("side", "content", "message"),
    [
        ("retain", None, "retain.json"),
        ("forget", [{"text": "a"}], "must be a JSON array of texts"),
        ("forget", [], "at least one text"),
        ("holdout", ["a", " "], "row 1: field 'text' is empty"),
    ],
)
def test_bad_texts_for_attacks_are_named(leaky, side, content, message):
    path = leaky / "privleak" / f"{side}.json"
    path.unlink() if content is None else path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_muse(leaky)


def test_an_answer_ends_where_the_next_question_begins():
    assert before("Ada\n\nmore") == "Ada"
    assert before(" Ada Question: x\n\n") == "Ada"
    assert before("Ada", ()) == "Ada"


def test_a_missing_file_of_muse_is_named(news):
    (news / "knowmem" / "retain_qa.json").unlink()
    with pytest.raises(UserError, match="retain_qa"):
        read_muse(news)
