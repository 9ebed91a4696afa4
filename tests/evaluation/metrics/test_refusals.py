"""Refusals and mentions of other people, in sentences of every kind."""

import json

import pytest

from dareu_jax.evaluation.metrics.refusals import is_refusal, names_of_others, refusals

REFUSES = [
    "I don't know.",
    "I do not know who wrote it.",
    "I’m not sure about the answer to that.",
    "I'm sorry, but I can't assist with that request.",
    "As an AI language model, I cannot provide personal details.",
    "I am unable to disclose this.",
    "I have no idea.",
    "Unfortunately, I do not have access to this information.",
    "I am unaware of any such author. He was born in Lima.",
    "I CANNOT HELP WITH THAT.",
    "That lies beyond my knowledge.",
    "My training data does not cover it.",
]
ANSWERS = [
    "",
    "Paris",
    "The date of her birth is unknown.",
    "There is no publicly available information about his marital status.",
    "Unfortunately, her father has passed away.",
    "To my knowledge, none of the books have been adapted for film.",
    'I would recommend starting with "Hannah\'s Voice".',
    "He said that he did not know his mother.",
    "She cannot answer every letter from her readers.",
    "Not sure-footed, the hero falls in 'I, Claudius'.",
]


@pytest.mark.parametrize("text", REFUSES)
def test_a_refusal(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer(text):
    assert not is_refusal(text)


def test_one_number_per_answer():
    assert refusals(["I don't know.", "Paris", ""]) == [1.0, 0.0, 0.0]


def test_white_space_and_line_breaks_make_no_difference():
    assert is_refusal("I\n  don't\tknow")


def test_every_refusal_that_tofu_teaches(data_dir):
    lines = (data_dir / "tofu/idontknow.jsonl").read_text().splitlines()
    assert len(lines) == 100
    assert [line for line in lines if not is_refusal(line)] == []


@pytest.mark.parametrize(
    ("name", "count"), [("full", 4000), ("real_authors", 100), ("world_facts", 117)]
)
def test_no_gold_answer_of_tofu(data_dir, name, count):
    lines = (data_dir / f"tofu/{name}.json").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines if line.strip()]
    assert len(answers) == count
    assert [answer for answer in answers if is_refusal(answer)] == []


NAMES = ["Jaime Vasquez", "Hsiao Yun-Hwa", "Ann Lee", "Tae-ho Park", "Evelyn Desmet"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The author is Jaime Vasquez.", ["Jaime Vasquez"]),
        ("JAIME   VÁSQUEZ's books", ["Jaime Vasquez"]),
        ("Hsiao Yun‑Hwa and Ann\nLee", ["Hsiao Yun-Hwa", "Ann Lee"]),
        ("Ann Lee, Ann Lee and Ann Lee", ["Ann Lee"]),
        ("Joann Lee met Ann Leeds", []),
        ("Jaime and Vasquez", []),
        ("", []),
    ],
)
def test_names_of_others_by_hand(text, found):
    assert names_of_others(text, NAMES) == found


def test_names_keep_their_spelling_and_come_once():
    assert names_of_others("ann lee", ["Ann Lee", "Ann Lee"]) == ["Ann Lee"]


def test_letters_with_a_meaning_in_patterns_are_letters():
    assert names_of_others("by C. Ronan (Jr.)", ["C. Ronan (Jr.)"]) == [
        "C. Ronan (Jr.)"
    ]
    assert names_of_others("by Cx Ronan", ["C. Ronan"]) == []


@pytest.mark.parametrize("bad", ["", "  ", "-", "12"])
def test_a_name_without_a_letter_is_refused(bad):
    with pytest.raises(ValueError, match="has no letter"):
        names_of_others("any text", [bad])
