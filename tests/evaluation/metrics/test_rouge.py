"""ROUGE-L recall and F1 against numbers worked by hand."""

import pytest

from dareu_jax.evaluation.metrics.rouge import rouge_l_recall, rouge_scores


def rouge_l_f1(predictions, references):
    return [row["rougeL_f1"] for row in rouge_scores(predictions, references)]


@pytest.mark.parametrize(
    ("prediction", "reference", "recall"),
    [
        ("a red house", "a red house", 1.0),
        ("", "a red house", 0.0),
        ("blue boats sail", "a red house", 0.0),
        ("anything", "", 0.0),
        # In order: the quick brown .. jumps .. the = 5 of the 9 reference words.
        (
            "The quick brown dog jumps on the log.",
            "The quick brown fox jumps over the lazy dog",
            5 / 9,
        ),
        # Only order counts: "c" before "a b" leaves a b = 2 of 3.
        ("c a b", "a b c", 2 / 3),
        # Recall ignores what is said too much, precision would be 3/7.
        ("well in truth it is a house", "a house", 1.0),
        # Porter stems: running, runs -> run; houses -> house -> hous.
        ("running houses", "runs house", 1.0),
        # Case and punctuation do not count.
        ("PARIS!!!", "paris", 1.0),
    ],
)
def test_by_hand(prediction, reference, recall):
    assert rouge_l_recall([prediction], [reference]) == [pytest.approx(recall)]


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("a red house", "a red house", 1.0),
        ("", "a red house", 0.0),
        ("anything", "", 0.0),
        # Precision 2/7, recall 1.
        ("well in truth it is a house", "a house", 4 / 9),
        # Precision 1, recall 1/3: too short is as bad as too long.
        ("house", "a red house", 1 / 2),
        # LCS "a b": precision 2/4, recall 2/3.
        ("a x b y", "a b c", 4 / 7),
        ("running houses", "runs house", 1.0),
    ],
)
def test_f1_by_hand(prediction, reference, f1):
    assert rouge_l_f1([prediction], [reference]) == [pytest.approx(f1)]


@pytest.mark.parametrize("rouge", [rouge_l_recall, rouge_l_f1])
def test_keeps_the_order_of_pairs(rouge):
    assert rouge(["x y", "a", "b"], ["x z", "a", "c"]) == [0.5, 1.0, 0.0]


@pytest.mark.parametrize("rouge", [rouge_l_recall, rouge_l_f1])
def test_refuses_unequal_counts(rouge):
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        rouge(["a", "b"], ["a"])
