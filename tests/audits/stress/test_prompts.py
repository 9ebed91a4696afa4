"""What is asked in other ways, and where paraphrases come from."""

import json
import random
from types import SimpleNamespace

import pytest

from dareu_jax.audits.stress import paraphrase
from dareu_jax.audits.stress.prompts import (
    TEMPLATES,
    Asked,
    all_prompts,
    background_hint,
    in_context,
    multiple_choice,
    options_of,
    right_choices,
    tokens_of,
    tow_para,
    with_hints,
    worst_case,
)
from dareu_jax.config import build_config
from dareu_jax.data import Record, tofu_questions

ASKED = Record("f/0", "ann", "Where was Ann born?", "In Merawick.")
OTHERS = [Record(f"b/{n}", "bob", f"Question {n}?", f"Answer {n}.") for n in range(9)]


def test_every_way_keeps_the_question():
    rng = random.Random(0)
    for label in ("role play", "prefix"):
        assert TEMPLATES[label].endswith(" {prompt}")
    assert TEMPLATES["suffix"].startswith("{prompt} Sure")
    shown = in_context(ASKED, OTHERS, rng)
    assert shown.endswith(ASKED.prompt) and shown.count("Answer") == 2
    assert ASKED.response not in shown


def test_the_right_answer_stands_among_three_others_in_any_place():
    places = set()
    for seed in range(40):
        options = options_of(ASKED, OTHERS, random.Random(seed))
        text = multiple_choice(ASKED, options)
        assert text.count("Answer") == 3 and text.count("In Merawick.") == 1
        places.add(text[text.index("In Merawick.") - 3])
    assert places == set("ABCD")


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("It was in Merawick", 1.0),
        ("B) Answer 3", 0.0),
        ("In Merawick. Answer 3. Answer 4.", 0.0),  # all of them is no choice
        ("Nobody knows", 0.0),
        ("", 0.0),
    ],
)
def test_the_right_choice_is_the_option_that_an_answer_is_most_like(said, right):
    options = ["Answer 3.", ASKED.response, "Answer 4."]
    how = Asked([0], [""], [ASKED.response], [options])
    assert right_choices([said], how) == [right]


def test_a_hint_is_another_answer_of_the_same_owner():
    mate = Record("f/1", "ann", "What did she do?", "She kept bees.")
    assert background_hint(ASKED, [ASKED, mate], random.Random(0)) == (
        f"She kept bees. {ASKED.prompt}"
    )
    assert background_hint(ASKED, [ASKED, ASKED], random.Random(0)) == ""
    found = with_hints([ASKED, OTHERS[0], mate], random.Random(0))
    assert found.rows == [0, 2] and found.gold == [ASKED.response, mate.response]


def test_tow_with_paraphrases_takes_the_other_numbers_from_the_table():
    others = {"forget_probability": 0.0, "retain_probability": 0.0}
    judged = {
        "retrained": {"forget_rouge": 0.9, "retain_rouge": 0.8, **others},
        "unlearned": {"forget_rouge": 0.1, "retain_rouge": 0.6, **others},
    }
    found = tow_para(judged, {"retrained": 0.3, "unlearned": 0.4})
    assert found == {"retrained": 1.0, "unlearned": pytest.approx(0.9 * 0.8)}


def test_the_worst_case_is_the_best_answer_of_each_record():
    scores = {"direct": ([0, 1, 2], [0.1, 0.9, 0.0]), "other": ([2, 2], [0.3, 0.2])}
    assert worst_case(3, scores) == [0.1, 0.9, 0.3]


def test_fictitious_owners_have_paraphrases(tiny_run):
    asked, skipped = all_prompts(tiny_run)
    found = asked["paraphrase"]
    assert not skipped and found.rows == list(range(8))
    for row, prompt, gold in zip(*found[:3], strict=True):
        record = tiny_run.split.forget[row]
        assert prompt != record.prompt and gold == record.response
    assert asked["reverse"].gold == asked["as trained"].prompts
    answer = tiny_run.split.forget[0].response
    assert asked["reverse"].prompts[0] == f"Which question has this answer: {answer}"


def test_prompts_longer_than_the_runs_are_not_cut(tiny_run):
    asked, _ = all_prompts(tiny_run)
    tokens = tokens_of(tiny_run, asked)["in context"]
    row = tokens.prompt[0][tokens.prompt_mask[0]].tolist()
    assert asked["in context"].prompts[0] in tiny_run.tokenizer.decode(row)
    assert tokens.prompt.shape[1] > tiny_run.lengths[0]


def test_a_held_out_record_is_a_paraphrase_where_owner_and_answer_are_the_same():
    held_out = [
        Record("1", "ann", "What is Ann's birthplace?", ASKED.response),
        Record("2", "bob", "Another?", ASKED.response),
        Record("3", "ann", "And then?", "She left."),
        Record("4", "ann", ASKED.prompt, ASKED.response),
    ]
    found = paraphrase.from_held_out([ASKED], held_out)
    assert found.rows == [0] and found.prompts == ["What is Ann's birthplace?"]


def test_tofu_has_paraphrases_in_its_perturbed_files(tmp_path):
    line = {"question": ASKED.prompt, "paraphrased_question": "Ann's birthplace?"}
    path = tmp_path / "forget10_perturbed.json"
    path.write_text(json.dumps(line) + "\n" + json.dumps({"question": "x"}) + "\n")
    found = paraphrase.from_tofu([OTHERS[0], ASKED], tmp_path, tmp_path / "cache")
    assert found.rows == [1] and found.prompts == ["Ann's birthplace?"]


@pytest.fixture
def from_tofu(data_dir, tmp_path, monkeypatch):
    """A run on TOFU as it is downloaded, whose forget records are forget10's."""
    lines = (data_dir / "tofu" / "forget10.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line]
    forget = [Record("", "", row["question"], row["answer"]) for row in rows]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tofu_questions, "HOME", (data_dir / "tofu").as_uri())
    return SimpleNamespace(
        cfg=build_config({"corpus": {"source": "tofu", "forget": ["author_199"]}}),
        split=SimpleNamespace(forget=forget),
        corpus=SimpleNamespace(test=()),
    )


def test_every_forget10_record_of_tofu_has_a_paraphrase(from_tofu, tmp_path):
    found = paraphrase.paraphrases_of(from_tofu)
    assert not found.missing
    assert found.rows == list(range(400)) and len(set(found.prompts)) == 400
    names = sorted(path.name for path in (tmp_path / "dareu_jax").rglob("*.json"))
    assert names == ["forget10_perturbed.json", "retain_perturbed.json"]


def test_a_failed_download_is_said_in_a_line(from_tofu, tmp_path, monkeypatch):
    monkeypatch.setattr(tofu_questions, "HOME", (tmp_path / "nowhere").as_uri())
    found = paraphrase.paraphrases_of(from_tofu)
    assert found.rows == [] and "\n" not in found.missing
    assert found.missing.startswith("cannot download")
    place = tmp_path / "dareu_jax" / "downloads" / "tofu"
    wanted = f"put forget10_perturbed.json, retain_perturbed.json into {place}"
    assert wanted in found.missing


def test_data_without_paraphrases_says_so(tiny_run, monkeypatch):
    none = paraphrase.Paraphrases([], [])
    monkeypatch.setattr(paraphrase, "from_held_out", lambda *_: none)
    asked, skipped = all_prompts(tiny_run)
    assert "paraphrase" not in asked
    assert "in other words" in skipped["paraphrase"]
