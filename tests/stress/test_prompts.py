"""What is asked in other ways, and where paraphrases come from."""

import json
import random

from dareu_jax.corpus import Record
from dareu_jax.stress import paraphrase
from dareu_jax.stress.prompts import (
    all_prompts,
    in_context,
    multiple_choice,
    reverse,
    role_play,
    tokens_of,
    worst_case,
)

ASKED = Record("f/0", "ann", "Where was Ann born?", "In Merawick.")
OTHERS = [Record(f"b/{n}", "bob", f"Question {n}?", f"Answer {n}.") for n in range(9)]


def test_every_way_keeps_the_question():
    rng = random.Random(0)
    assert role_play(ASKED).endswith(ASKED.prompt)
    shown = in_context(ASKED, OTHERS, rng)
    assert shown.endswith(ASKED.prompt) and shown.count("Answer") == 2
    assert ASKED.response not in shown
    assert reverse(ASKED) == "Which question has this answer: In Merawick."


def test_the_right_answer_stands_among_three_others_in_any_place():
    places = set()
    for seed in range(40):
        text = multiple_choice(ASKED, OTHERS, random.Random(seed))
        assert text.count("Answer") == 3 and text.count("In Merawick.") == 1
        places.add(text[text.index("In Merawick.") - 3])
    assert places == set("ABCD")


def test_the_worst_case_is_the_best_answer_of_each_record():
    scores = {"direct": ([0, 1, 2], [0.1, 0.9, 0.0]), "other": ([2, 2], [0.3, 0.2])}
    assert worst_case(3, scores) == [0.1, 0.9, 0.3]


def test_fictitious_owners_have_paraphrases(tiny_run):
    asked, skipped = all_prompts(tiny_run)
    found = asked["paraphrase"]
    assert not skipped and found.rows == list(range(8))
    for row, prompt, gold in zip(*found, strict=True):
        record = tiny_run.split.forget[row]
        assert prompt != record.prompt and gold == record.response
    assert asked["reverse"].gold == asked["as trained"].prompts


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
    found = paraphrase.from_tofu([OTHERS[0], ASKED], tmp_path)
    assert found.rows == [1] and found.prompts == ["Ann's birthplace?"]


def test_every_forget10_record_of_tofu_has_a_paraphrase(data_dir):
    lines = (data_dir / "tofu" / "forget10.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line]
    forget = [Record("", "", row["question"], row["answer"]) for row in rows]
    found = paraphrase.from_tofu(forget, data_dir / "tofu")
    assert len(set(found.rows)) == len(forget) == 400


def test_data_without_paraphrases_says_so(tiny_run, monkeypatch):
    none = paraphrase.Paraphrases([], [])
    monkeypatch.setattr(paraphrase, "from_held_out", lambda *_: none)
    asked, skipped = all_prompts(tiny_run)
    assert "paraphrase" not in asked
    assert "in other words" in skipped["paraphrase"]
